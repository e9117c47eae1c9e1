"""Whether two accumulators count the same thing, so that their counts may be added up."""

from __future__ import annotations


def check_mergeable(ours: object, other: object, *names: str) -> None:
    """Raise ValueError unless the attributes of these names are equal in both."""
    for name in names:
        value, others = getattr(ours, name), getattr(other, name)
        if value != others:
            raise ValueError(f"other.{name} ({others}) must equal {name} ({value}); merge counts of one kind only")
