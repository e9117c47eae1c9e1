"""Numbers as a reader of a report sees them; report.json has them in full."""

from __future__ import annotations

UNDEFINED = "\N{EN DASH}"


def count(value: float | None) -> str:
    """A count with separators, `7,180,000`; a mean or estimate of counts is rounded to one."""
    return UNDEFINED if value is None else f"{value:z,.0f}"


def bits(value: float | None) -> str:
    """Bits with two decimals; below a tenth with four, so that small information is seen."""
    if value is None:
        return UNDEFINED
    return f"{value:z.4f}" if abs(value) < 0.1 else f"{value:z.2f}"


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal."""
    return UNDEFINED if value is None else f"{value:z.1%}"


def ratio(value: float | None) -> str:
    """A number near 1, or a perplexity: three decimals below 10, fewer above."""
    if value is None:
        return UNDEFINED
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    return f"{value:z.3f}" if abs(value) < 10 else f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def interval(ends: list[float] | tuple[float, float] | None) -> str:
    """An interval of numbers like those of `ratio`."""
    return UNDEFINED if ends is None else f"{ratio(ends[0])} to {ratio(ends[1])}"


def standard_error(value: float | None) -> str:
    """What follows the bound of an estimate: `; standard error 0.00046`; nothing where there is none."""
    if value is None:
        return ""
    return f"; standard error {count(value) if value >= 10 else format(value, '.2g')}"


def layers(first: int, num_layers: int) -> str:
    """Names of consecutive layers, counted from 0: `layer 3`, `layers 4 to 7`."""
    last = first + num_layers - 1
    return f"layer {first}" if num_layers == 1 else f"layers {first} to {last}"
