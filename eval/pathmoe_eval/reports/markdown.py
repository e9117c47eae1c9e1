"""What a page says, in Markdown."""

from __future__ import annotations

import re

from pathmoe_eval.reports.page import Cell, Number, Table, Tokens, Words, shown


def in_markdown(part: Table | str) -> str:
    """A paragraph, or a table with its title and what to read in it; text is shown as it is, HTML in it included."""
    if isinstance(part, str):
        return _escaped(part)
    lines = [list(part.head), *([_text(cell) for cell in row] for row in part.rows)]
    rows = ["| " + " | ".join(map(_escaped, line)) + " |" for line in lines]
    table = "\n".join([rows[0], "|" + " --- |" * len(part.head), *rows[1:]])
    title = [f"**{_escaped(part.title)}**"] if part.title else []
    return "\n\n".join([*title, table, *([_escaped(part.reading)] if part.reading else [])])


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", shown(text)).replace("&#x27;", "'")


def _text(cell: Cell) -> str:
    if isinstance(cell, Tokens):
        return " ".join(cell.texts)
    if isinstance(cell, Number | Words):
        return f"{cell.text} ({cell.aside})" if cell.aside else cell.text
    return cell
