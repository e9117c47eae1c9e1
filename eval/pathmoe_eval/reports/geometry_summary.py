"""The figures of the geometry of routers that a reader looks for first: means over layers."""

from __future__ import annotations

from pathmoe_eval.geometry.model_means import model_means
from pathmoe_eval.reports.number_format import count, percent, ratio
from pathmoe_eval.reports.summary_row import Ends, Section, SummaryRow


def geometry_rows(section: Section, ends: Ends) -> list[SummaryRow]:
    """Of the section that `analyse_geometry` gives; what no layer has is left out."""
    means = {name: value for group in model_means(section).values() for name, value in group.items()}
    shown = {name: percent(value) for name, value in means.items()}
    rows = {
        "shared_logit_energy": (
            "Shared direction in logits", shown["shared_logit_energy"], f"{shown['shared_state_energy']} in states",
        ),
        "alignment": ("Alignment of routers", ratio(means["alignment"]), "1 of random routers"),
        "violations": (
            "Pairs beyond Proposition 1", count(means["violations"]), f"median at {shown['tightness']} of the bound",
        ),
        "explained_row": (
            "Common experts told by the row space",
            shown["explained_row"],
            f"{shown['explained_null']} by the null space, {shown['explained_full']} by whole states, "
            f"{shown['explained_logits']} by logits",
        ),
        "overlap_same_token": (
            "Common experts of the same token",
            shown["overlap_same_token"],
            f"{shown['overlap_any']} of any two tokens",
        ),
        "expert_control": (
            "Expert read off the row space",
            shown["expert_control"],
            f"{shown['expert_random']} off random directions, {shown['expert_most_frequent']} always the most frequent",
        ),
        "token_content": (
            "Token read off the null space", shown["token_content"], f"{shown['token_control']} off the row space",
        ),
        "predicted_agreement": (
            "Agreement within blocks, predicted",
            shown["predicted_agreement"],
            f"{shown['agreement']} measured, {shown['agreement_null']} by chance",
        ),
    }  # fmt: skip
    tokens = section["num_tokens"]
    return [SummaryRow(*row, tokens) for name, row in rows.items() if means[name] is not None]
