"""A document, the unit that is split into train and validation and that attention does not cross."""

from typing import NamedTuple


class Document(NamedTuple):
    """A text and what it must not be separated from."""

    text: str
    group: str | None = None
    """Documents of one group go to the same side of the split; None: the document is a group of its own."""
