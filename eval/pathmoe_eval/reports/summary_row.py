"""A row of a summary, and what rows are made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Section = Mapping[str, Any]
Ends = Mapping[str, Sequence[float]]
"""Lower and upper end of figures, by their places in a report: see `DocumentIntervals`."""


class SummaryRow(NamedTuple):
    """One figure."""

    name: str
    value: str
    beside: str
    """What chance gives, or a bound."""
    num_tokens: int
    interval: str = ""
    """Its interval; empty where it has none."""
    unit: str = "tokens"
    """What `num_tokens` counts, where it is something else: positions, steps, completions."""

    @property
    def context(self) -> str:
        """Interval and chance in one."""
        return "; ".join(part for part in (self.interval, self.beside) if part)


def between(ends: Sequence[float] | None, form: Callable[[float], str]) -> str:
    """An interval as text; empty where there is none."""
    return "" if ends is None else f"{form(ends[0])} to {form(ends[1])}"


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)
