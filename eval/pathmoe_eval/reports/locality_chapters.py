"""Chapters of a report on routing locality: the tree, its programs, their overlap, and what a cache makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pathmoe_eval.reports.locality_figures import (
    bytes_figure,
    distance_figure,
    group_figure,
    hit_rate_figure,
    hit_rate_map,
    layer_figure,
    neighbour_figure,
    union_figure,
    union_layer_figure,
)
from pathmoe_eval.reports.locality_summary import leading, level_name, pairs_name, quarter_resident
from pathmoe_eval.reports.number_format import UNDEFINED, count, interval, percent, ratio
from pathmoe_eval.reports.page import Cell, Chapter, Panel, Table, Words
from pathmoe_eval.reports.tree_figure import tree_figure

Section = Mapping[str, Any]

_METHODS = {
    "tree": "Tree search: a sequence forks where its next token is open.",
    "samples": "Independent samples of the prompt (best-of-N sampling).",
    "beams": "Beam search.",
}
_ORDERS = {"samples": "one sample after another", "parallel": "all samples side by side"}
DIFFERENCES = {
    "comments_share": "comments",
    "blank_lines_share": "blank lines",
    "spacing_share": "blanks, indentation, line ends",
    "names_share": "names",
    "other_share": "other code",
    "only_comments_or_blank_lines_share": "nothing but comments or blank lines",
}


def tree_chapter(section: Section) -> Chapter:
    """Of `TreeSummary` as a dict, with `method` and `drawn`."""
    mean_children = section["mean_children"]
    facts = {
        "completions": count(section["num_completions"]),
        "different ones": count(section["num_distinct"]),
        "cut at the limit of length": count(section["num_cut"]),
        "drawn and not searched": count(section["num_not_searched"]),
        "forks": count(section["num_forks"]),
        "children of a fork, mean": ratio(mean_children),
        "tokens of a completion, median": count(section["median_completion_tokens"]),
        "tokens generated": count(section["num_generated"]),
        "tokens forwarded": count(section["num_forwarded"]),
        "of these again, after an interruption": count(section["num_read_again"]),
        "tokens to forward without sharing": count(section["num_without_sharing"]),
    }
    drawn = section["drawn"]
    of_all = "all" if drawn["num_completions"] == section["num_completions"] else f"{drawn['num_completions']} of the"
    return Chapter(
        title="The tree",
        notes=[_METHODS[section["method"]]],
        parts=[
            Panel(
                title="Completions from the prompt on",
                figure=tree_figure(drawn),
                reading=f"The way to {of_all} completions; each line ends where a completion does. Colours are groups "
                "of programs that compile to the same, the largest first; a grey stretch leads to several.",
                num_tokens=section["num_generated"],
                is_wide=True,
            ),
            Table(title="", head=["", ""], rows=[[name, value] for name, value in facts.items()], is_wide=False),
        ],
    )


def equivalence_chapter(section: Section) -> Chapter:
    """Of a section `equivalence`: levels and differences."""
    levels, differences = section["levels"], section["differences"]
    rows: list[list[Cell]] = [
        [
            level_name(level),
            count(level["num_compiled"]),
            count(len(level["groups"])),
            *(share_of_largest(level, number) for number in (1, 3, 10)),
            Words(", ".join(f"{reason} {number}" for reason, number in level["failures"].items()) or UNDEFINED),
        ]
        for level in levels
    ]
    first = levels[0]
    note = (
        f"{first['num_completed']:,} completions, compiled by {first['compiler_version']}, never run; grouped by what "
        f"comes out, normalised. Equal assembly is not equal meaning, nor the other way round. {_held(first)}"
    )
    parts: list[Panel | Table] = [
        Table(
            title="",
            head=["level", "compiled", "groups", "largest", "largest 3", "largest 10", "failed"],
            rows=rows,
            reading="Shares are of the compiled; in brackets, of the completed.",
        )
    ]
    if first["groups"]:
        parts.append(
            Panel(
                title="Sizes of groups",
                figure=group_figure(levels),
                reading="Programs of each group, the largest first, at each level.",
                num_tokens=first["num_compiled"],
                unit="programs",
            )
        )
    parts.append(
        Table(
            title="What differs within a group",
            head=["", "pairs of different texts"],
            rows=[[name, percent(differences[key])] for key, name in DIFFERENCES.items()],
            reading=f"Of {differences['num_differing_pairs']:,} pairs that differ, among {differences['num_pairs']:,} "
            f"of one group at {level_name(first)}; a pair may differ in several ways.",
            is_wide=False,
        )
    )
    return Chapter(title="Equivalent programs", notes=[note], parts=parts)


def _held(level: Section) -> str:
    """What the compiler was held by, in a sentence."""
    held, limits = level["confinement"], level["limits"]
    return (
        f"What held the compiler: {held['files']} for files, {held['network']} for the network, "
        f"{limits['wall_seconds']:g} s, and {limits['memory_bytes'] >> 20:,} MiB a process."
    )


def share_of_largest(level: Section, num_groups: int) -> str:
    """Share of the so many largest groups of the compiled, and in brackets of the completed."""
    found = next((one for one in level["largest"] if one["num_groups"] == num_groups), None)
    if found is None:
        return UNDEFINED
    return f"{percent(found['share_of_compiled'])} ({percent(found['share_of_completed'])})"


def decomposition_chapter(section: Sequence[Section]) -> Chapter:
    """Of a section `decomposition`: a list of `TokenIdentity` as dicts."""
    aligned = [one for one in section if _num_positions(one)]
    parts: list[Panel | Table] = []
    if aligned:
        one = aligned[0]
        across = next((other for other in leading(aligned) if other["grouping"] == "across"), None)
        elsewhere = "Dashed, the same with the second token taken from another place where its id occurs: what the two "
        elsewhere += "tokens' identity alone makes alike."
        parts = [
            Panel(
                title=f"By layer, {pairs_name(one)}",
                figure=layer_figure(one, None if one["grouping"] == "across" else across),
                reading=f"Mean over positions of a pair, then over pairs. {elsewhere}",
                num_tokens=_num_positions(one),
                unit="positions",
            ),
            Panel(
                title=f"By distance from the fork, {pairs_name(one)}",
                figure=distance_figure(one),
                reading=f"Mean over layers; bars are {one['confidence']:.0%} intervals over forks. {elsewhere}",
                num_tokens=_num_positions(one),
                unit="positions",
            ),
        ]
    parts.append(_decomposition_table(section))
    exact, ratio_of_means = section[0]["jaccard_null_uniform"], section[0]["jaccard_null_uniform_ratio"]
    note = (
        f"Multiples are of k / (2E - k) = {ratio_of_means:.4f}, as papers print them; the exact mean of two "
        f"independent uniform sets is {exact:.4f}. Intervals are over forks, which pairs share; below about twenty "
        "forks they are too narrow, and with one fork, as independent samples have, there is none."
    )
    return Chapter(title="Overlap of routing, by the identity of tokens", notes=[note], parts=parts)


def _num_positions(one: Section) -> int:
    return int(one["same_token"]["num_positions"] + one["different_token"]["num_positions"])


def _decomposition_table(section: Sequence[Section]) -> Table:
    rows: list[list[Cell]] = []
    for one in section:
        for key, name in (("same_token", "same"), ("different_token", "different")):
            found, test = one[key], one["permutation"]
            rows.append(
                [
                    Words(pairs_name(one), name),
                    Words(ratio(found["jaccard"]), interval(found["jaccard_interval"])),
                    UNDEFINED if found["multiple"] is None else f"{found['multiple']:.1f}",
                    ratio(found["jaccard_null_matched"]),
                    count(found["num_positions"]),
                    f"{count(found['num_pairs'])} of {count(one['num_pairs_available'])}",
                    count(found["num_forks"]),
                    UNDEFINED if key == "different_token" or test is None else f"{test['p_value']:.3f}",
                ]
            )
    return Table(
        title="",
        head=["pairs and tokens", "Jaccard", "times random", "elsewhere", "positions", "pairs", "forks", "p"],
        rows=rows,
        reading="p is that of same against different tokens, their labels permuted within forks; neighbours are alike, "
        "so that it is too small where they differ. Pairs are drawn evenly over forks where there are too many.",
    )


def union_chapter(section: Section) -> Chapter:
    """Of `UnionGrowth` as a dict."""
    samples = section["sample_counts"][-1]
    rows: list[list[Cell]] = [
        [
            f"{part['first_step']}" + ("+" if part["last_step"] is None else f" to {part['last_step']}"),
            count(part["num_steps"]),
            UNDEFINED if part["union"] is None else ratio(part["union"][-1]),
        ]
        for part in section["bins"]
    ]
    reading = "Exact mean over all choices of so many of the samples that go on, at the same step. Dotted: independent "
    reading += "uniform sets; dashed: independent tokens with the loads of these steps."
    note = (
        "Completions of a tree share prefixes, and touch the same experts until they part; independent samples "
        "(--num_samples) share none but the prompt."
    )
    return Chapter(
        title="Experts that samples touch together",
        notes=[note],
        parts=[
            Panel(
                title="By samples", figure=union_figure(section), reading=reading, num_tokens=section["num_steps"],
                unit="steps",
            ),
            Panel(
                title="By layer", figure=union_layer_figure(section), reading=f"Of {samples} samples.",
                num_tokens=section["num_steps"], unit="steps",
            ),
            Table(
                title="By step", head=["tokens since the prompt", "steps", f"experts of {samples} samples"], rows=rows,
                is_wide=False,
            ),
        ],
    )  # fmt: skip


def cache_chapter(section: Sequence[Section]) -> Chapter:
    """Of a section `caches`: a list of `CacheSimulation` as dicts."""
    first = section[0]
    parallel = next(one for one in section if one["order"] == "parallel")
    reading = "LRU with the same accesses in random order shows what uneven loads alone are worth."
    parts: list[Panel | Table] = [
        Panel(
            title="Hit rate, one sample after another",
            figure=hit_rate_figure(first),
            reading=f"Of the experts that a token wants, those that are resident. {reading}",
            num_tokens=first["num_tokens"],
        ),
        Panel(
            title="Hit rate, all samples side by side",
            figure=hit_rate_figure(parallel),
            reading="An access is what all samples of a step want together. Static experts stay, and others pass "
            "through room beside them, so that in small caches they may be above Belady's bound.",
            num_tokens=parallel["num_tokens"],
        ),
        Panel(
            title="Megabytes loaded a token, one sample after another",
            figure=bytes_figure(first),
            reading=f"All layers; an expert has {first['bytes_per_expert']:,} bytes.",
            num_tokens=first["num_tokens"],
        ),
        Panel(
            title="Hit rate of LRU by layer",
            figure=hit_rate_map(first),
            reading="One sample after another.",
            num_tokens=first["num_tokens"],
        ),
        _cache_table(section),
    ]
    note = (
        "A cache of experts in each layer, over the recorded routing of generated tokens: the second half counts, the "
        "first fills the caches. Nothing is timed; a hit rate says how many loads a policy saves, not how many seconds."
    )
    return Chapter(title="What locality is worth to a cache", notes=[note], parts=parts)


def _cache_table(section: Sequence[Section]) -> Table:
    place = quarter_resident(section[0])
    names = [one["policy"] for one in section[0]["policies"]]
    rows: list[list[Cell]] = []
    for simulation in section:
        rates = {one["policy"]: one["hit_rate"][place] for one in simulation["policies"]}
        order = Words(_ORDERS[simulation["order"]], f"{simulation['start']} at its beginning")
        rows.append([order, *(percent(rates[name]) for name in names)])
    return Table(
        title=f"Hit rate with {section[0]['num_resident'][place]} experts resident in a layer",
        head=["order", *(name.replace("_", ", ") for name in names)],
        rows=rows,
    )


def phases_chapter(section: Section) -> Chapter:
    """Of `Phases` as a dict."""
    rows: list[list[Cell]] = [
        [
            phase["phase"],
            count(phase["num_tokens"]),
            percent(phase["load"]["mean_entropy_share"]),
            ratio(sum(phase["distinct_experts"]) / len(phase["distinct_experts"])),
            ratio(phase["distinct_experts_null_uniform"]),
            ratio(phase["mean_neighbour_jaccard"]),
            ratio(phase["mean_neighbour_jaccard_null_loads_ratio"]),
        ]
        for phase in section["phases"]
    ]
    overlap = section["load_overlap"]
    said = "" if overlap is None else (
        f"Loads of prefill and generation overlap by {percent(sum(overlap) / len(overlap))}; so few tokens of one "
        f"uniform load would by {percent(section['load_overlap_null_uniform'])}."
    )  # fmt: skip
    parts: list[Panel | Table] = [
        Table(
            title="",
            head=[
                "phase", "tokens", "load entropy", "experts touched", "if uniform", "Jaccard with the token before",
                "by loads alone",
            ],
            rows=rows,
            reading=f"Means over layers. {said}".strip(),
        )
    ]  # fmt: skip
    if any(phase["neighbour_jaccard"] is not None for phase in section["phases"]):
        parts.insert(
            0,
            Panel(
                title="Overlap with the token before",
                figure=neighbour_figure(section),
                reading="Two tokens in a row; dotted, two independent tokens with the loads of all.",
                num_tokens=section["phases"][-1]["num_tokens"],
            ),
        )
    return Chapter(title="Prefill and generation", notes=[], parts=parts)
