"""Chapters of a report on the geometry of routers and hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pathmoe_eval.reports.geometry_figures import (
    agreement_figure,
    alignment_figure,
    block_figure,
    block_step_figure,
    explained_figure,
    logit_distance_figure,
    overlap_figure,
    pooled_figure,
    probe_figure,
    same_token_figure,
    sequence_correlation_figure,
    sequence_figure,
    shared_direction_figure,
    step_figure,
    subspace_figure,
    tightness_figure,
    trajectory_figure,
    truncation_figure,
)
from pathmoe_eval.reports.number_format import UNDEFINED, count, percent, ratio
from pathmoe_eval.reports.page import Cell, Chapter, Panel, Table

Section = Mapping[str, Any]

_SHARED = ("state_energy", "logit_energy", "mean_state_energy", "mean_logit_energy", "mean_cosine")
_USAGES = {
    "usage_cosine": "the cosine of visit shares",
    "top_p_jaccard": "which experts hold 0.8 of the visits",
    "mask_overlap": "what tokens have in common",
}
_PROBED = {"expert": "this layer's expert", "next expert": "the next layer's expert", "token": "the token"}


def geometry_chapters(section: Section) -> list[Chapter]:
    """Of the section that `analyse_geometry` gives."""
    layers, tokens = section["layers"], section["num_tokens"]
    middle = layers[len(layers) // 2]
    chapters = [
        Chapter(
            title="Routers",
            notes=[
                "What routers see is their row space, after what is the same for all experts was taken out; the rest "
                "of a hidden state is their null space."
            ],
            parts=[_routers(layers)],
        ),
        Chapter(title="Pairs of tokens", notes=[], parts=_token_panels(layers, middle, tokens)),
        Chapter(title="Pairs of sequences", notes=[], parts=_sequence_panels(layers, tokens)),
        Chapter(title="The shared direction, and alignment", notes=[], parts=_direction_panels(layers, middle, tokens)),
        Chapter(title="Control and content", notes=[], parts=_probe_panels(layers)),
        Chapter(title="From layer to layer", notes=[], parts=_drift_panels(section["drift"], tokens)),
    ]
    return [chapter for chapter in chapters if chapter.parts]


def _routers(layers: Sequence[Section]) -> Table:
    rows: list[list[Cell]] = []
    for layer in layers:
        bound, shared = layer["token_pairs"]["bound"], layer["shared_direction"]
        violations = UNDEFINED if bound is None else count(bound["violations_row"] + bound["violations_below"])
        rows.append(
            [str(layer["layer"]), layer["kind"], f"{layer['visible_dimensions']:,} of {layer['hidden_size']:,}",
             violations, *(percent(shared[key]) for key in _SHARED),
             ratio(layer["alignment"]["total"]) if "alignment" in layer else UNDEFINED]
        )  # fmt: skip
    return Table(
        title="",
        head=["layer", "router", "dimensions seen", "pairs beyond the bound", "shared direction, states",
              "shared direction, logits", "mean, states", "mean, logits", "cosine of the two", "alignment"],
        rows=rows,
        reading="The bound is that of Proposition 1, which holds for linear routers. The shared direction is the first "
        "singular direction of the states, with its share of their energy and of that of the logits; the mean is that "
        "of the states, with the same shares, and the cosine that of the two directions. Alignment is the "
        "energy of the logits over that of random routers of equal norm.",
    )  # fmt: skip


def _token_panels(layers: Sequence[Section], middle: Section, tokens: int) -> list[Panel]:
    pairs = middle["token_pairs"]["explained"]["num_pairs"]
    panels = [
        Panel(
            title="What explains common experts",
            figure=explained_figure(layers),
            reading=f"Share of the variance of expert overlap over {pairs:,} pairs of tokens that the distance of "
            "their states explains, in each space, whatever the form of the dependence; logits are the row space as "
            "the router weighs its directions.",
            num_tokens=tokens,
        ),
        Panel(
            title=f"Logits over states, layer {middle['layer']}",
            figure=logit_distance_figure(middle),
            reading="Distance of the logits of two tokens over that of their states: means over bins of equally many "
            "pairs. Dotted: between what Proposition 1 allows in the row space.",
            num_tokens=tokens,
        ),
        Panel(
            title=f"Common experts over distance, layer {middle['layer']}",
            figure=overlap_figure(middle),
            reading="Means over bins of equally many pairs.",
            num_tokens=tokens,
        ),
    ]
    bounded = [layer for layer in layers if layer["token_pairs"]["bound"] is not None]
    if bounded:
        panels.append(
            Panel(
                title="How tight the bound is",
                figure=tightness_figure(bounded),
                reading="Distance of logits over the most that the distance of states allows, median over pairs.",
                num_tokens=tokens,
            )
        )
    repeated = [layer for layer in layers if layer["token_pairs"]["same_token"] is not None]
    if repeated:
        panels.append(
            Panel(
                title="The same token in other contexts",
                figure=same_token_figure(repeated),
                reading="Share of the experts that two occurrences of one token have in common.",
                num_tokens=tokens,
            )
        )
    return panels


def _sequence_panels(layers: Sequence[Section], tokens: int) -> list[Panel]:
    number = layers[0]["sequences"]["num_sequences"]
    panels = [
        Panel(
            title="Usage of experts by pairs of sequences",
            figure=sequence_figure(layers, "usage_cosine", "cosine of visit shares"),
            reading=f"Cosine of the shares of visits of each expert, mean over pairs of {number:,} sequences, with 95% "
            "intervals over the draw of sequences.",
            num_tokens=tokens,
        ),
        Panel(
            title="Experts that hold 0.8 of the visits",
            figure=sequence_figure(layers, "top_p_jaccard", "Jaccard"),
            reading="Jaccard of the fewest experts that hold 0.8 of a sequence's visits, mean over pairs.",
            num_tokens=tokens,
        ),
        Panel(
            title="Experts that two tokens of them have in common",
            figure=sequence_figure(layers, "mask_overlap", "share of experts"),
            reading="Of a token of one sequence and a token of the other, mean over pairs.",
            num_tokens=tokens,
        ),
        Panel(
            title="How alike mean states are",
            figure=pooled_figure(layers),
            reading="Cosine of the mean states of pairs of sequences, in each space.",
            num_tokens=tokens,
        ),
        *(
            Panel(
                title=f"Do mean states tell {name}?",
                figure=sequence_correlation_figure(layers, usage),
                reading="Correlation over pairs of the cosine of mean states, in each space, with this similarity.",
                num_tokens=tokens,
            )
            for usage, name in _USAGES.items()
        ),
    ]
    answering = [layer for layer in layers if "trajectories" in layer]
    if answering:
        panels.append(
            Panel(
                title="Texts by who wrote them, and of what",
                figure=trajectory_figure(answering),
                reading="Jaccard of the fewest experts that hold 0.8 of the visits, mean over pairs of texts; the "
                "author is the domain of a text.",
                num_tokens=tokens,
            )
        )
    return panels


def _direction_panels(layers: Sequence[Section], middle: Section, tokens: int) -> list[Panel]:
    panels = [
        Panel(
            title="Energy along the shared direction",
            figure=shared_direction_figure(layers),
            reading="Share of the energy of states and of logits along the states' first singular direction, and of "
            "their mean, which Proposition 2 has a balance loss take out of the logits.",
            num_tokens=tokens,
        )
    ]
    if "alignment" in middle:
        panels.append(
            Panel(
                title=f"Alignment by direction, layer {middle['layer']}",
                figure=alignment_figure(middle),
                reading="Response of the router along each singular direction of the states, the strongest first, over "
                "that of random routers of equal norm.",
                num_tokens=tokens,
            )
        )
    if "truncation" in middle:
        panels.append(
            Panel(
                title=f"States cut to their first directions, layer {middle['layer']}",
                figure=truncation_figure(middle),
                reading="Share of tokens whose expert of a rank is the one of the whole state. Grey: the "
                "expert that is most often of that rank, for all tokens.",
                num_tokens=tokens,
            )
        )
    return panels


def _probe_panels(layers: Sequence[Section]) -> list[Panel]:
    probed = [layer for layer in layers if "probes" in layer]
    return [
        Panel(
            title=f"Probes for {name}",
            figure=probe_figure(of_class, key),
            reading="Accuracy of logistic probes of parts of the state, on documents that they were not fitted to. "
            "Grey: as many random directions as the router sees, and the most frequent class. Tested on",
            num_tokens=of_class[0]["probes"]["num_tokens"][key],
        )
        for key, name in _PROBED.items()
        if (of_class := [layer for layer in probed if key in layer["probes"]["accuracy"]])
    ]


def _drift_panels(drift: Sequence[Section], tokens: int) -> list[Panel]:
    pairs = [pair for pair in drift if pair["second_layer"] == pair["first_layer"] + 1]
    if not pairs:
        return []
    longer = {pair["first_layer"] for pair in drift if pair not in pairs}
    of_blocks = [pair for pair in drift if pair["first_layer"] in longer and pair["shares_router"]]
    along_blocks = [
        Panel(
            title="Along a block",
            figure=block_figure(of_blocks),
            reading="Share of tokens whose highest logit is of the same expert in the first layer of a block and in a "
            "later one that shares its router, and what is predicted of it.",
            num_tokens=tokens,
        ),
        Panel(
            title="Drift along a block",
            figure=block_step_figure(of_blocks),
            reading="RMS step of a state from the first layer of a block to a later one, over the RMS spread of "
            "states, in what the shared router sees and in what it does not.",
            num_tokens=tokens,
        ),
    ]
    return [
        Panel(
            title="Agreement that steps alone would leave",
            figure=agreement_figure(pairs),
            reading="Share of tokens whose highest logit is of the same expert in both layers. Predicted: logits keep "
            "a share of themselves, and each token has what another one takes up. Between routers that are not shared "
            "indices are names, and nothing is predicted.",
            num_tokens=tokens,
        ),
        Panel(
            title="Steps from layer to layer",
            figure=step_figure(pairs),
            reading="RMS step of a state, over the RMS spread of states, in what the first layer's router sees and in "
            "what it does not.",
            num_tokens=tokens,
        ),
        Panel(
            title="What neighbours look at",
            figure=subspace_figure(pairs),
            reading="Mean squared cosine of principal angles: between the row spaces of both routers, and between the "
            "principal components (90% of the variance) of both layers' states in the first one's row space.",
            num_tokens=tokens,
        ),
        *(along_blocks if of_blocks else []),
    ]
