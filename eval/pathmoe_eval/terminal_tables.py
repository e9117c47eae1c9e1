"""Results as tables for a terminal of 80 columns."""

from pathmoe_eval.evaluation.perplexity import PerplexityResult
from pathmoe_eval.perturbations.robustness import Robustness


def perplexity_lines(result: PerplexityResult) -> list[str]:
    """A table for the terminal."""
    rows = [("all", result.total), *((domain.domain, domain) for domain in result.by_domain)]
    lines = [f"{'':24} {'tokens':>11} {'perplexity':>10} {'95% interval':>19} {'bits/byte':>9}"]
    for name, of in rows if len(result.by_domain) > 1 else rows[:1]:
        interval = "" if of.perplexity_interval is None else "{:.2f} to {:.2f}".format(*of.perplexity_interval)
        per_byte = "" if of.bits_per_byte is None else f"{of.bits_per_byte:.4f}"
        value = "" if of.perplexity is None else f"{of.perplexity:.3f}"
        lines.append(f"{name[:24]:24} {of.num_tokens:11,} {value:>10} {interval:>19} {per_byte:>9}")
    if result.total.perplexity_interval is not None:
        lines.append(f"intervals: bootstrap over {result.total.num_documents:,} documents")
    return lines


def robustness_lines(result: Robustness) -> list[str]:
    """A table for the terminal."""
    lines = [f"{'':32} {'perplexity':>11} {'rise, %':>9} {'95% interval':>21}"]
    for one in result.perturbed:
        name = one.intervention if one.setting is None else f"{one.intervention} {one.setting:g}"
        interval = "" if one.rise_percent_interval is None else "{:.1f} to {:.1f}".format(*one.rise_percent_interval)
        value = "" if one.perplexity is None else f"{one.perplexity:.2f}"
        rise = "" if one.rise_percent is None else f"{one.rise_percent:+.1f}"
        lines.append(f"{name[:32]:32} {value:>11} {rise:>9} {interval:>21}")
    return lines
