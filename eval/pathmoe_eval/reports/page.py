"""One self-contained HTML page of chapters with figures and tables, light and dark, from a phone's width up.

Nothing is fetched: plotly.js is in the page, and its content security policy allows the page's own scripts by their
hashes and no others, so a token text that gets past escaping would still not run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A figure with a sentence on how to read it."""

    title: str
    figure: go.Figure
    reading: str
    """How to read it, and what chance gives."""
    num_tokens: int
    """Tokens behind its numbers."""
    unit: str = "tokens"
    """What `num_tokens` counts, where it is something else."""
    is_wide: bool = False
    """Whether it takes the whole width, and scrolls in a narrow window."""


@dataclass(frozen=True)
class Tokens:
    """A cell of several texts from data, each set apart from the others."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Words:
    """A cell of prose or names, set flush left."""

    text: str
    aside: str = ""
    """In small type below it."""


@dataclass(frozen=True)
class Number:
    """A cell of a number, set flush right."""

    text: str
    aside: str = ""
    """In small type below it."""


Cell = str | Number | Tokens | Words


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells; those of the first column are names, the others numbers unless they are words or tokens."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    reading: str = ""
    is_wide: bool = True
    """Whether it takes the whole width."""


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """A heading with what stands below it, in order."""

    title: str
    notes: Sequence[str]
    """Paragraphs."""
    parts: Sequence[Panel | Table]


def page_html(title: str, subtitle: str, chapters: Sequence[Chapter]) -> str:
    """The page as text.

    Args:
        title: of the window and of the page; like all texts of the chapters, plain, not HTML.
        subtitle: a line below it.
        chapters: those without notes and parts are left out.
    """
    chapters = [chapter for chapter in chapters if chapter.notes or chapter.parts]
    panels = [part for chapter in chapters for part in chapter.parts if isinstance(part, Panel)]
    numbers = {id(panel): number for number, panel in enumerate(panels)}
    body = "\n".join(_chapter(place, chapter, numbers) for place, chapter in enumerate(chapters))
    contents = "".join(
        f'<li><a href="#chapter-{place}">{shown(chapter.title)}</a></li>' for place, chapter in enumerate(chapters)
    )
    scripts = [get_plotlyjs(), _resource("page.js")] if panels else []
    figures = _json_in_html([json.loads(panel.figure.to_json(engine="json")) for panel in panels])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{shown(title)}</title>
<style>
{_resource("page.css")}</style>
</head>
<body>
<header>
<h1>{shown(title)}</h1>
<p class="subtitle">{shown(subtitle)}</p>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
</header>
<main>
{body}
</main>
<script type="application/json" id="figures">{figures}</script>
{"".join(f"<script>{script}</script>" for script in scripts)}
</body>
</html>
"""


def shown(text: str) -> str:
    """Text for HTML: escaped, and what cannot be seen or would steer the text around it written as an escape."""
    return escape("".join(character if character.isprintable() else ascii(character)[1:-1] for character in text))


def _chapter(place: int, chapter: Chapter, numbers: dict[int, int]) -> str:
    notes = "".join(f"<p>{shown(note)}</p>" for note in chapter.notes)
    parts = "\n".join(
        _panel(part, numbers[id(part)]) if isinstance(part, Panel) else _table(part) for part in chapter.parts
    )
    return (
        f'<section id="chapter-{place}"><h2>{shown(chapter.title)}</h2>{notes}<div class="parts">\n{parts}\n</div>'
        "</section>"
    )


def _panel(panel: Panel, number: int) -> str:
    kind = "panel wide" if panel.is_wide else "panel"
    height = int(panel.figure.layout.height)
    return (
        f'<figure class="{kind}"><h3>{shown(panel.title)}</h3>'
        f'<div class="scroll"><div class="plot" id="figure-{number}" style="height:{height}px" role="img" '
        f'aria-label="{shown(panel.title)}"></div></div>'
        f'<figcaption>{shown(panel.reading)} <span class="count">{panel.num_tokens:,} {panel.unit}.</span></figcaption>'
        "</figure>"
    )


def _table(table: Table) -> str:
    first = table.rows[0] if table.rows else [""] * len(table.head)
    head = "".join(
        f'<th scope="col"{_kind(cell)}>{shown(title)}</th>' for title, cell in zip(table.head, first, strict=True)
    )
    rows = "\n".join(_row(row) for row in table.rows)
    title = f"<h3>{shown(table.title)}</h3>" if table.title else ""
    reading = f'<p class="reading">{shown(table.reading)}</p>' if table.reading else ""
    return (
        f'<div class="table{" wide" if table.is_wide else ""}">{title}<div class="scroll" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>{reading}</div>"
    )


def _row(row: Sequence[Cell]) -> str:
    first, *others = row
    cells = "".join(f"<td{_kind(cell)}>{_content(cell)}</td>" for cell in others)
    return f'<tr><th scope="row">{_content(first)}</th>{cells}</tr>'


def _kind(cell: Cell) -> str:
    if isinstance(cell, str | Number):
        return ""
    return ' class="words tokens"' if isinstance(cell, Tokens) else ' class="words"'


def _content(cell: Cell) -> str:
    # Each text is isolated, so that a right-to-left one does not reorder its neighbours.
    if isinstance(cell, Tokens):
        return " ".join(f"<bdi>{shown(text)}</bdi>" for text in cell.texts)
    text, aside = (cell.text, cell.aside) if isinstance(cell, Number | Words) else (cell, "")
    below = f"<small>{shown(aside)}</small>" if aside else ""
    return (f"<bdi>{shown(text)}</bdi>" if text else "") + below


def _policy(scripts: Sequence[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


def _json_in_html(value: Any) -> str:
    """JSON in which nothing can end the script element that holds it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _resource(name: str) -> str:
    return files("pathmoe_eval.reports").joinpath(name).read_text(encoding="utf-8")
