"""Results as tables for a terminal of 80 columns."""

from collections.abc import Mapping, Sequence
from typing import Any

from pathmoe_eval.evaluation.perplexity import PerplexityResult
from pathmoe_eval.perturbations.robustness import Robustness
from pathmoe_eval.reports.locality_summary import level_name, pairs_name
from pathmoe_eval.reports.number_format import ratio
from pathmoe_eval.reports.summary import perturbed_name


def perplexity_lines(result: PerplexityResult) -> list[str]:
    """A table for the terminal."""
    rows = [("all", result.total), *((domain.domain, domain) for domain in result.by_domain)]
    lines = [f"{'':24} {'tokens':>11} {'perplexity':>10} {'95% interval':>19} {'bits/byte':>9}"]
    for name, of in rows if len(result.by_domain) > 1 else rows[:1]:
        interval = "" if of.perplexity_interval is None else "{:.2f} to {:.2f}".format(*of.perplexity_interval)
        per_byte = "" if of.bits_per_byte is None else f"{of.bits_per_byte:z.4f}"
        value = "" if of.perplexity is None else f"{of.perplexity:.3f}"
        lines.append(f"{name[:24]:24} {of.num_tokens:11,} {value:>10} {interval:>19} {per_byte:>9}")
    if result.total.perplexity_interval is not None:
        lines.append(f"intervals: bootstrap over {result.total.num_documents:,} documents")
    return lines


def robustness_lines(result: Robustness) -> list[str]:
    """A table for the terminal."""
    lines = [f"{'':28} {'perplexity':>11} {'rise, %':>9} {'95% interval':>21} {'listed':>6}"]
    for one in result.perturbed:
        name = perturbed_name(vars(one))
        interval = "" if one.rise_percent_interval is None else "{:z.1f} to {:z.1f}".format(*one.rise_percent_interval)
        value = "" if one.perplexity is None else f"{one.perplexity:.2f}"
        rise = "" if one.rise_percent is None else f"{one.rise_percent:+z.1f}"
        listed = "" if one.listed_share is None else "all" if one.listed_share == 1 else f"{one.listed_share:.1%}"
        lines.append(f"{name[:28]:28} {value:>11} {rise:>9} {interval:>21} {listed:>6}".rstrip())
    if any(one.listed_share is not None for one in result.perturbed):
        source = "the scored documents themselves" if result.paths_from is None else result.paths_from
        lines += [
            "listed: tokens on listed paths; with all, only repeated context may change",
            f"paths are of {source}",
        ]
    return lines


def locality_lines(sections: Mapping[str, Any]) -> list[str]:
    """Sections of a study of locality as tables for the terminal: programs, and overlap by the identity of tokens."""
    lines = [f"{'':8} {'completed':>9} {'compiled':>9} {'groups':>7} {'largest':>8}"]
    for level in sections["equivalence"]["levels"]:
        largest = f"{level['largest'][0]['share_of_compiled']:.1%}" if level["largest"] else ""
        lines.append(
            f"{level_name(level):8} {level['num_completed']:9,} {level['num_compiled']:9,} "
            f"{len(level['groups']):7,} {largest:>8}".rstrip()
        )
    lines += ["", f"{'Jaccard of expert sets':36} {'pairs':>6} {'same token':>15} {'different':>15}"]
    for one in sections["decomposition"]:
        cells = []
        for key in ("same_token", "different_token"):
            found = one[key]
            cells.append("" if found["jaccard"] is None else f"{found['jaccard']:.3f} ({found['multiple']:.1f}x)")
        lines.append(f"{pairs_name(one):36} {one['num_pairs']:6,} {cells[0]:>15} {cells[1]:>15}".rstrip())
    null = sections["decomposition"][0]["jaccard_null_uniform_ratio"]
    return [*lines, f"x: times the {null:.4f} of independent uniform sets"]


def task_lines(results: Sequence[Mapping[str, Any]], mean: Mapping[str, Any] | None) -> list[str]:
    """Downstream tasks, as `tasks.json` has them, as a table for the terminal; their mean below them."""
    lines = [_task_line("task", "metric", "shots", "value", "95% interval", "chance", "documents")]
    for result in results:
        shots = "" if result["num_fewshot"] is None else str(result["num_fewshot"])
        for one in result["metrics"]:
            figures = _task_figures(one)
            lines.append(_task_line(result["task"], one["metric"], shots, *figures, f"{result['num_documents']:,}"))
    if mean is not None:
        lines.append(_task_line("mean of the tasks", "", "", *_task_figures(mean), ""))
    return lines


def _task_figures(of: Mapping[str, Any]) -> tuple[str, str, str]:
    value = "" if of["value"] is None else f"{of['value']:.4f}" if abs(of["value"]) < 10 else ratio(of["value"])
    interval = "" if of["interval"] is None else "{:.4f} to {:.4f}".format(*of["interval"])
    return value, interval, "" if of["value_null"] is None else f"{of['value_null']:.4f}"


def _task_line(task: str, metric: str, shots: str, value: str, interval: str, chance: str, documents: str) -> str:
    return f"{task[:18]:18} {metric[:11]:11} {shots:>5} {value:>8} {interval:>16} {chance:>6} {documents:>9}".rstrip()


def geometry_lines(section: Mapping[str, Any]) -> list[str]:
    """The geometry of routers as a table for the terminal, a row for each layer."""
    lines = [
        f"{'':5} {'shared direction':>19}   {'overlap of experts explained':>28}   {'same':>6} {'any':>6}",
        "layer    states    logits   row space      null    whole    token    two",
    ]
    for layer in section["layers"]:
        shared, pairs = layer["shared_direction"], layer["token_pairs"]
        share = pairs["explained"]["share"]
        of_token = pairs["same_token"] or {"overlap": None, "overlap_any": None}
        lines.append(
            f"{layer['layer']:5} {_share(shared['state_energy']):>9} {_share(shared['logit_energy']):>9}   "
            f"{_share(share['row']):>9} {_share(share['null']):>9} {_share(share['full']):>8}   "
            f"{_share(of_token['overlap']):>6} {_share(of_token['overlap_any']):>6}".rstrip()
        )
    return lines


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
