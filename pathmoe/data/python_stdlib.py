"""The built-in source `python-stdlib`: the standard library of the running interpreter, as text."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from pathmoe.data.document import Document

_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def python_stdlib() -> Iterator[Document]:
    """Every module of the standard library that is UTF-8, without its tests, sorted by path.

    The group of a document is its top-level module or package (`asyncio`, `json`), so that a split by group shares no
    file and no package. Files that the build of the interpreter wrote (`_sysconfigdata*`, `config-*`) are left out:
    they hold the build machine's settings and differ from one installation to the next.
    """
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        group = relative.parts[0].removesuffix(".py")
        if _LEFT_OUT.intersection(relative.parts[:-1]) or group.startswith(("_sysconfigdata", "config-")):
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
        if text:
            yield Document(text, group)
