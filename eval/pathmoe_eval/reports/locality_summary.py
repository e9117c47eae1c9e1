"""The figures of a study of routing locality that a reader looks for first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pathmoe_eval.reports.number_format import count, percent, ratio
from pathmoe_eval.reports.summary_row import Ends, Section, SummaryRow, between

PAIRS_IN_WORDS = {
    ("any", "within"): "within groups",
    ("any", "across"): "across groups",
    ("any", "any"): "all pairs",
    ("siblings", "within"): "siblings within groups",
    ("siblings", "across"): "siblings across groups",
    ("siblings", "any"): "siblings",
}
"""Relation and grouping of pairs, as readers see them."""


def pairs_name(one: Section) -> str:
    """Which pairs a `TokenIdentity` as a dict is of, and how they are aligned: `within groups, by diff`."""
    return f"{PAIRS_IN_WORDS[one['relation'], one['grouping']]}, by {one['alignment']}"


def tree_rows(section: Section, ends: Ends) -> list[SummaryRow]:
    """Of `TreeSummary` as a dict."""
    forwarded, alone = section["num_forwarded"], section["num_without_sharing"]
    return [
        SummaryRow(
            "Completions", count(section["num_completions"]), f"{count(section['num_distinct'])} different",
            section["num_generated"],
        ),
        SummaryRow(
            "Tokens forwarded", count(forwarded), f"{count(alone)} if no prefix were shared", section["num_generated"]
        ),
    ]  # fmt: skip


def equivalence_rows(section: Section, ends: Ends) -> list[SummaryRow]:
    """Of the first level of a section `equivalence`."""
    level = section["levels"][0]
    completed, compiled = level["num_completed"], level["num_compiled"]
    rows = [
        SummaryRow(
            "Programs that compile", percent(compiled / completed), f"{compiled:,} of {completed:,} completions",
            completed, unit="completions",
        ),
        SummaryRow(
            f"Groups of equal {assembly_of(level)}", count(len(level["groups"])), f"of {compiled:,} programs",
            completed, unit="completions",
        ),
    ]  # fmt: skip
    if level["largest"]:
        largest = level["largest"][-1]
        rows.append(
            SummaryRow(
                f"Programs in the largest {groups_in_words(largest['num_groups'])}",
                percent(largest["share_of_compiled"]),
                f"of the compiled; {percent(largest['share_of_completed'])} of the completed",
                completed,
                unit="completions",
            )
        )
    return rows


def assembly_of(level: Section) -> str:
    """What a level compares: `assembly, -O0`."""
    kind = "bytecode" if level["language"] == "python" else "assembly"
    return f"{kind}, {level_name(level)}"


def level_name(level: Section) -> str:
    """A level as its compiler takes it: `-O0`, of Python `0`."""
    return level["level"][1] if level["language"] == "python" else f"-{level['level']}"


def groups_in_words(num_groups: int) -> str:
    """`group`, `3 groups`."""
    return "group" if num_groups == 1 else f"{num_groups} groups"


def decomposition_rows(section: Sequence[Section], ends: Ends) -> list[SummaryRow]:
    """Of each kind of pairs in the first alignment that it has."""
    rows = []
    for one in leading(section):
        for name, key in (("same token", "same_token"), ("different token", "different_token")):
            found = one[key]
            if found["jaccard"] is None:
                continue
            null = found["jaccard_null_matched"]
            beside = f"{found['multiple']:.1f} times random ({percent(one['jaccard_null_uniform_ratio'])})"
            rows.append(
                SummaryRow(
                    f"Jaccard, {name}, {pairs_name(one)}",
                    percent(found["jaccard"]),
                    beside + ("" if null is None else f"; {percent(null)} with the same tokens elsewhere"),
                    found["num_positions"],
                    between(found["jaccard_interval"], percent),
                    unit="positions",
                )
            )
    return rows


def leading(section: Sequence[Section]) -> list[Section]:
    """Of each kind of pairs the first alignment."""
    first: dict[tuple[str, str], Section] = {}
    for one in section:
        first.setdefault((one["relation"], one["grouping"]), one)
    return list(first.values())


def union_rows(section: Section, ends: Ends) -> list[SummaryRow]:
    """Of `UnionGrowth` as a dict: at the largest number of samples."""
    samples, union = section["sample_counts"][-1], section["union"][-1]
    beside = f"{ratio(section['union_null_uniform'][-1])} of independent samples, "
    return [
        SummaryRow(
            f"Experts that {samples} samples touch a step",
            ratio(union),
            beside + f"{ratio(section['union_null_loads'][-1])} with the same loads",
            section["num_steps"],
            unit="steps",
        )
    ]


def cache_rows(section: Sequence[Section], ends: Ends) -> list[SummaryRow]:
    """Of the first of a section `caches`, with a quarter of the experts resident."""
    simulation = section[0]
    place = quarter_resident(simulation)
    policies = {one["policy"]: one for one in simulation["policies"]}
    lru = policies["lru"]
    return [
        SummaryRow(
            f"Hit rate of LRU, {simulation['num_resident'][place]} experts a layer",
            percent(lru["hit_rate"][place]),
            f"{percent(lru['hit_rate_null_permuted'][place])} in random order; at best "
            f"{percent(policies['belady']['hit_rate'][place])}",
            simulation["num_tokens"],
        )
    ]


def quarter_resident(simulation: Section) -> int:
    """Place of the size of the cache that is nearest to a quarter of the experts."""
    sizes = simulation["num_resident"]
    return min(range(len(sizes)), key=lambda place: abs(4 * sizes[place] - sizes[-1]))


LOCALITY_ROWS: dict[str, Callable[[Any, Ends], list[SummaryRow]]] = {
    "tree": tree_rows,
    "equivalence": equivalence_rows,
    "decomposition": decomposition_rows,
    "union_growth": union_rows,
    "caches": cache_rows,
}
"""Rows of each section of a study."""
