"""A figure of a run that a study compares: what it is called, where it stands, how it is shown."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class Factor(NamedTuple):
    """How a figure is a factor, of which the logarithm is averaged and compared."""

    unit: float
    offset: float

    def log(self, value: float) -> float:
        """Of the factor that a value stands for."""
        return math.log(value / self.unit + self.offset)

    def value(self, log: float) -> float:
        """The value of a factor, from its logarithm."""
        return (math.exp(log) - self.offset) * self.unit


TIMES = Factor(unit=1.0, offset=0.0)
RISE_PERCENT = Factor(unit=100.0, offset=1.0)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure."""

    key: str
    name: str
    place: str
    """Dotted path from `summary`, or from a section of the run's report; a list at its end stands for its mean."""
    form: Callable[[float | None], str]
    note: str = ""
    """What a reader must know of it."""
    factor: Factor | None = None
    """Of one that is a factor: its mean over seeds is the geometric one, and its difference a ratio."""
