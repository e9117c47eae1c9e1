"""Python cut into lexemes by its own tokenizer."""

from __future__ import annotations

import io
import keyword
import tokenize
from collections.abc import Iterator
from itertools import accumulate

_KINDS = {
    tokenize.NAME: "name",
    tokenize.NUMBER: "number",
    tokenize.STRING: "string",
    tokenize.COMMENT: "comment",
    tokenize.OP: "punctuation",
    tokenize.NEWLINE: "whitespace",
    tokenize.NL: "whitespace",
    tokenize.ERRORTOKEN: "punctuation",
}


def python_pieces(source: str) -> Iterator[tuple[str, str]]:
    """Kind and text of each lexeme; see `lexemes`. A string with fields is a string as far as its quotes and text go.

    Raises:
        ValueError: as in `lexemes`.
    """
    lines = list(io.StringIO(source, newline=""))
    line_starts = [0, *accumulate(map(len, lines))]
    end = 0
    try:
        for token in tokenize.generate_tokens(iter([*lines, ""]).__next__):
            start, stop = (min(line_starts[row - 1] + column, len(source)) for row, column in (token.start, token.end))
            name = tokenize.tok_name[token.type]
            kind = _KINDS.get(token.type, "string" if "STRING_" in name else "")
            if not kind or stop <= end:
                continue
            if start > end:
                yield _kind_of_gap(source[end:start]), source[end:start]
            start = max(start, end)
            yield "keyword" if kind == "name" and keyword.iskeyword(token.string) else kind, source[start:stop]
            end = stop
    except (tokenize.TokenError, SyntaxError) as error:
        raise ValueError(f"source ({source[:20]!r}...) must be Python: {error}") from error
    if end < len(source):
        yield _kind_of_gap(source[end:]), source[end:]


def _kind_of_gap(gap: str) -> str:
    # Of two braces in an f-string the tokenizer leaves one out, from Python 3.12 on.
    return "string" if gap.strip(" \t\f\v\r\n\\\ufeff") else "whitespace"
