"""The data of `docs/geometry.md` on interventions: Python, C and English, of which expert usage is compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

from pathmoe.data import TokenDataModule
from pathmoe.data.c_functions import c_functions
from pathmoe.data.sources import PYTHON_STDLIB
from pathmoe.training.errors import OneLineParser, with_one_line_errors

_CHARACTERS = 800
_DOCUMENTS = 16


def main() -> None:
    """Write JSON lines with keys `text` and `domain` into the file of --out."""
    with_one_line_errors(_main)


def _main() -> None:
    parser = OneLineParser(description="Write Python, C and English as JSON lines, for pathmoe-eval geometry.")
    parser.add_argument("--out", type=Path, required=True, help="File to write.")
    out: Path = parser.parse_args().out
    lines = [json.dumps({"text": text, "domain": domain}) for domain, text in documents()]
    out.write_text("\n".join(lines) + "\n")
    print(f"{out}: {len(lines)} documents")


def documents() -> Iterator[tuple[str, str]]:
    """16 pairs of domain and text for each of the three domains, all of at least 800 characters.

    Python is what a run on `python-stdlib` holds out by default, C the first of the programs of `c-functions`, English
    the topics of Python's `help()`, which are strings in its library, so that such a run may have read them.
    """
    python = (document.text for document in TokenDataModule(source=PYTHON_STDLIB).held_out_documents())
    c = (document.text for document in c_functions(seed=0, num_documents=1000))
    for domain, texts in (("python", python), ("c", c), ("english", topics.values())):
        yield from ((domain, text) for text in _first_long(texts))


def _first_long(texts: Iterable[str]) -> list[str]:
    return [text for text in texts if len(text) >= _CHARACTERS][:_DOCUMENTS]


if __name__ == "__main__":
    main()
