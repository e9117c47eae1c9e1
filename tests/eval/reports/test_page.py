"""The page: what is escaped, where figures and tables go, and which scripts may run (a browser: test_page_browser)."""

import base64
import hashlib
import html
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.reports.figure_style import line_figure
from pathmoe_eval.reports.page import Chapter, Number, Panel, Table, Tokens, Words, page_html, shown


def panel(title: str = "A figure", *, is_wide: bool = False) -> Panel:
    figure = line_figure([0, 1], {title: [1.0, 2.0]}, {}, "layer", "bits")
    return Panel(title=title, figure=figure, reading="Read it.", num_tokens=12_345, is_wide=is_wide)


def page_of(*parts: Panel | Table, notes: tuple[str, ...] = ()) -> str:
    return page_html("A title", "below it", [Chapter(title="A chapter", notes=notes, parts=parts)])


@given(st.text(st.characters(exclude_categories=[])))
def test_text_is_shown_without_markup_and_without_what_cannot_be_seen(text: str) -> None:
    found = shown(text)
    assert not set(found) & set("<>\"'")
    assert found.isprintable()
    found.encode("utf-8")
    visible = html.unescape(found)
    assert visible == "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@given(st.text(st.characters(exclude_categories=[])))
def test_no_text_of_a_figure_ends_the_script_that_holds_it(text: str) -> None:
    page = page_of(panel(text))
    data = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert json.loads(data[1])[0]["data"][0]["name"] == text


def test_the_policy_names_the_hash_of_each_script_and_nothing_else() -> None:
    page = page_of(panel())
    policy = html.unescape(re.search(r'Content-Security-Policy" content="(.*?)">', page)[1])
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(hashes) == 2
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}'; style-src 'unsafe-inline'; "
        "img-src data: blob:"
    )


def test_nothing_is_fetched() -> None:
    page = page_of(panel())
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r"https?:|\bsrc=|url\(|@import|<link", markup)
    assert re.findall(r'href="(.*?)"', markup) == ["#chapter-0"]


def test_figures_have_their_place_title_reading_and_tokens() -> None:
    page = page_of(panel("One"), panel("Two", is_wide=True))
    assert re.findall(r'<figure class="(.*?)"><h3>(.*?)</h3>', page) == [("panel", "One"), ("panel wide", "Two")]
    assert re.findall(r'id="(figure-\d)" style="height:(\d+)px"', page) == [("figure-0", "360"), ("figure-1", "360")]
    assert page.count('<figcaption>Read it. <span class="count">12,345 tokens.</span></figcaption>') == 2


def test_tables_hold_their_cells() -> None:
    rows = [["a", "1", Words("prose <i>", "aside"), Tokens(("x", "<y>"))], ["b", "", Words(""), Tokens(())]]
    page = page_of(Table(title="T & U", head=["", "n", "w", "t"], rows=rows, reading="How to read."))
    table = re.search(r"<table>.*</table>", page, re.DOTALL)[0]
    assert re.findall(r"<th scope=\"col\"(.*?)>(.*?)</th>", table) == [
        ("", ""), ("", "n"), (' class="words"', "w"), (' class="words tokens"', "t"),
    ]  # fmt: skip
    assert '<th scope="row"><bdi>a</bdi></th><td><bdi>1</bdi></td>' in table
    assert '<td class="words"><bdi>prose &lt;i&gt;</bdi><small>aside</small></td>' in table
    assert '<td class="words tokens"><bdi>x</bdi> <bdi>&lt;y&gt;</bdi></td>' in table
    assert '<td></td><td class="words"></td><td class="words tokens"></td>' in table
    assert '<h3>T &amp; U</h3><div class="scroll" tabindex="0">' in page
    assert '<p class="reading">How to read.</p>' in page


def test_a_number_has_its_interval_below_it() -> None:
    page = page_of(Table(title="", head=["", "n"], rows=[["a", Number("1.5", "1 to 2")]]))
    assert "<td><bdi>1.5</bdi><small>1 to 2</small></td>" in page


def test_a_page_without_figures_has_no_script_to_run() -> None:
    page = page_of(notes=("Only a note.",))
    assert "<p>Only a note.</p>" in page
    assert "script-src &#x27;none&#x27;" in page or "script-src 'none'" in page
    assert "<script>" not in page


def test_an_empty_chapter_is_left_out() -> None:
    chapters = [Chapter(title="Empty", notes=[], parts=[]), Chapter(title="Full", notes=["x"], parts=[])]
    page = page_html("t", "s", chapters)
    assert "Empty" not in page
    assert '<section id="chapter-0"><h2>Full</h2>' in page


def test_a_number_that_json_lacks_is_null() -> None:
    figure = line_figure([0, 1], {"a": [1.0, float("inf")]}, {}, "x", "y")
    page = page_of(Panel(title="t", figure=figure, reading="", num_tokens=1))
    data = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1], parse_constant=pytest.fail)
    assert data[0]["data"][0]["y"] == [1.0, None]
