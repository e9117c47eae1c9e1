"""Markdown shows the text of a page as it is."""

from pathmoe_eval.reports.markdown import in_markdown
from pathmoe_eval.reports.page import Table, Tokens, Words


def test_markdown_shows_cells_as_they_are() -> None:
    rows = [["a_b", Words("x|y", "<i>"), Tokens(("p", "q")), "< 0.001"]]
    table = Table(title="A title", head=["", "w", "t", "it's"], rows=rows, reading="*read*")
    assert in_markdown(table) == (
        "**A title**\n\n|  | w | t | it's |\n| --- | --- | --- | --- |\n"
        "| a\\_b | x\\|y (&lt;i&gt;) | p q | &lt; 0.001 |\n\n\\*read\\*"
    )
