"""A figure of a run that a study compares: what it is called, where it stands, how it is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


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
