"""Whether two accumulators count the same thing, so that counts may be added up; and taking counts away again."""

from __future__ import annotations

import copy
from typing import TypeVar

Counts = TypeVar("Counts")


def check_mergeable(ours: object, other: object, *names: str) -> None:
    """Raise ValueError unless the attributes of these names are equal in both."""
    for name in names:
        value, others = getattr(ours, name), getattr(other, name)
        if value != others:
            raise ValueError(f"other.{name} ({others}) must equal {name} ({value}); merge counts of one kind only")


def difference(counts: Counts, part: Counts, *names: str) -> Counts:
    """A copy of `counts` whose numbers and arrays of these names are less by those of `part`."""
    rest = copy.copy(counts)
    for name in names:
        setattr(rest, name, getattr(counts, name) - getattr(part, name))
    return rest
