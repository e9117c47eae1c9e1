"""The tables of `eval/RESULTS.md` from the reports of `pathmoe-eval locality`, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pathmoe.training.errors import OneLineParser, fail, with_one_line_errors
from pathmoe_eval.reports.locality_chapters import DIFFERENCES, share_of_largest
from pathmoe_eval.reports.locality_summary import level_name, pairs_name
from pathmoe_eval.reports.number_format import UNDEFINED, count, percent
from pathmoe_eval.reports.report import REPORT_FILE, read_report

Sections = Mapping[str, Any]
_KINDS = (("same_token", "same"), ("different_token", "different"))


def main() -> None:
    """Print the tables of the reports that the arguments name."""
    with_one_line_errors(_main)


def _main() -> None:
    parser = OneLineParser(description="Tables of eval/RESULTS.md from reports of pathmoe-eval locality.")
    parser.add_argument(
        "reports", type=Path, nargs="+", help="Folders of the reports; their names stand in the tables."
    )
    folders = parser.parse_args().reports
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        fail(f"reports ({', '.join(names)}) must be folders of different names, which stand in the tables; rename one")
    print(results({folder.name: read_report(folder / REPORT_FILE)["sections"] for folder in folders}))


def results(reports: Mapping[str, Sections]) -> str:
    """All tables.

    Args:
        reports: name of each model and the sections of its report.
    """
    tables = {
        "Trees": _trees(reports),
        "Groups of equal programs": _programs(reports),
        "What differs within groups": _differences(reports),
        "Overlap by token identity": _overlap(reports),
        "By layer": _by_layer(reports),
        "By distance from the fork": _by_distance(reports),
        "Union growth": _unions(reports),
        "Hit rates of caches": _caches(reports),
    }
    return "\n\n".join(f"### {title}\n\n{table}" for title, table in tables.items())


def _trees(reports: Mapping[str, Sections]) -> str:
    rows = []
    for name, sections in reports.items():
        tree, generated = sections["tree"], sections["phases"]["phases"][-1]
        counts = ("num_completions", "num_distinct", "num_forks", "num_not_searched", "num_forwarded")
        rows.append(
            [name, tree["method"], *(count(tree[key]) for key in (*counts, "num_without_sharing")),
             percent(generated["load"]["mean_entropy_share"])]
        )  # fmt: skip
    head = "model, way, completions, different, forks, not searched, forwarded, without sharing, load entropy"
    return _table(head.split(", "), rows)


def _programs(reports: Mapping[str, Sections]) -> str:
    rows = [
        [name, level_name(level), count(level["num_completed"]), count(level["num_compiled"]),
         count(len(level["groups"])), *(share_of_largest(level, number) for number in (1, 3, 10))]
        for name, sections in reports.items()
        for level in sections["equivalence"]["levels"]
    ]  # fmt: skip
    return _table(["model", "level", "completed", "compiled", "groups", "largest", "largest 3", "largest 10"], rows)


def _differences(reports: Mapping[str, Sections]) -> str:
    rows = [
        [name, count(found["num_differing_pairs"]), *(percent(found[kind]) for kind in DIFFERENCES)]
        for name, found in ((name, sections["equivalence"]["differences"]) for name, sections in reports.items())
    ]
    return _table(["model", "pairs that differ", *DIFFERENCES.values()], rows)


def _overlap(reports: Mapping[str, Sections]) -> str:
    rows = []
    for name, sections in reports.items():
        for one in sections["decomposition"]:
            for key, kind in _KINDS:
                found = one[key]
                is_same = key == "same_token"
                rows.append(
                    [name, pairs_name(one), kind, _three(found["jaccard"]), _ends(found["jaccard_interval"]),
                     UNDEFINED if found["multiple"] is None else f"{found['multiple']:.1f}",
                     _three(found["jaccard_null_matched"]), count(found["num_positions"]), count(found["num_pairs"]),
                     count(found["num_forks"]), _three(one["difference"]) if is_same else UNDEFINED,
                     _ends(one["difference_interval"]) if is_same else UNDEFINED, _p_value(one, key)]
                )  # fmt: skip
    head = "model, pairs, token, Jaccard, interval, times random, elsewhere, positions, pairs, forks, same minus "
    head += "different, its interval, p"
    return _table(head.split(", "), rows)


def _ends(ends: Sequence[float] | None) -> str:
    return UNDEFINED if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def _p_value(one: Mapping[str, Any], key: str) -> str:
    test = one["permutation"]
    return UNDEFINED if test is None or key == "different_token" else f"{test['p_value']:.3f}"


def _by_layer(reports: Mapping[str, Sections]) -> str:
    rows = []
    for name, sections in reports.items():
        for grouping in ("within", "across"):
            kinds = ("any", grouping)
            one = next((one for one in sections["decomposition"] if (one["relation"], one["grouping"]) == kinds), None)
            for key, kind in _KINDS:
                if one is not None and (values := one[key]["jaccard_of_layer"]) is not None:
                    rows.append([name, pairs_name(one), kind, *map(_three, values)])
    num_layers = max(len(row) - 3 for row in rows) if rows else 0
    return _table(["model", "pairs", "token", *map(str, range(num_layers))], rows)


def _by_distance(reports: Mapping[str, Sections]) -> str:
    rows: list[tuple[str, str, str, dict[str, str]]] = []
    names: dict[str, None] = {}
    for name, sections in reports.items():
        for one in sections["decomposition"]:
            if (one["relation"], one["grouping"]) != ("any", "within"):
                continue
            for key, kind in _KINDS:
                values = {str(part["first_distance"]): _three(part["jaccard"]) for part in one[key]["distances"]}
                names |= dict.fromkeys(values)
                rows.append((name, pairs_name(one), kind, values))
    return _table(
        ["model", "pairs", "token", *(f"from {distance}" for distance in names)],
        [[*row[:3], *(row[3].get(distance, UNDEFINED) for distance in names)] for row in rows],
    )


def _unions(reports: Mapping[str, Sections]) -> str:
    counts = min((sections["union_growth"]["sample_counts"] for sections in reports.values()), key=len)
    rows = []
    for name, sections in reports.items():
        growth = sections["union_growth"]
        for what, key in (
            ("observed", "union"),
            ("independent, same loads", "union_null_loads"),
            ("independent, uniform", "union_null_uniform"),
        ):
            rows.append([name, what, *(f"{value:.2f}" for value in growth[key][: len(counts)])])
    return _table(["model", "experts of n samples", *(f"n = {number}" for number in counts)], rows)


def _caches(reports: Mapping[str, Sections]) -> str:
    rows = []
    sizes = next(iter(reports.values()))["caches"][0]["num_resident"]
    shown = [size for size in sizes if size in (sizes[0], sizes[-1] // 4, sizes[-1] * 3 // 8, sizes[-1] // 2)]
    for name, sections in reports.items():
        for simulation in (one for one in sections["caches"] if one["start"] == "warm"):
            for one in simulation["policies"]:
                rates, megabytes = one["hit_rate"], one["bytes_per_token"]
                cells = [f"{percent(rates[sizes.index(s)])}, {megabytes[sizes.index(s)] / 1e6:.2f} MB" for s in shown]
                rows.append([name, simulation["order"], one["policy"], *cells])
            lru = next(one for one in simulation["policies"] if one["policy"] == "lru")
            cells = [percent(lru["hit_rate_null_permuted"][sizes.index(size)]) for size in shown]
            rows.append([name, simulation["order"], "lru in random order", *cells])
    return _table(["model", "order", "policy", *(f"{size} experts" for size in shown)], rows)


def _three(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
