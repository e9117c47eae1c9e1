import sysconfig
from pathlib import Path

import pytest

from pathmoe.data.document import Document
from pathmoe.data.python_stdlib import python_stdlib


def test_documents_are_the_library_of_this_interpreter() -> None:
    documents = list(python_stdlib())
    root = Path(sysconfig.get_path("stdlib"))
    for name, group in (("json/decoder.py", "json"), ("asyncio/events.py", "asyncio"), ("argparse.py", "argparse")):
        assert Document((root / name).read_bytes().decode(), group) in documents
    assert 5e6 < sum(len(document.text.encode()) for document in documents) < 50e6


def test_two_readings_are_the_same() -> None:
    assert list(python_stdlib()) == list(python_stdlib())


def test_tests_packages_and_files_of_the_build_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ["b/__init__.py", "b/deep/x.py", "a.py", "b.py", "test.py", "test_a.py"]
    # The build's files hold paths and settings of the machine that built the interpreter.
    left_out = ["b/tests/x.py", "test/x.py", "idle/idle_test/x.py", "site-packages/c.py", "dist-packages/c.py"]
    left_out += ["__pycache__/a.py", "_sysconfigdata_linux.py", "config-3.11/x.py", "b/data.txt"]
    for name in [*kept, *left_out]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}")
    (tmp_path / "empty.py").touch()
    (tmp_path / "latin.py").write_bytes(b"# \xe4")
    monkeypatch.setattr(sysconfig, "get_path", {"stdlib": str(tmp_path)}.get)
    assert list(python_stdlib()) == [
        Document(f"# {name}", name.split("/")[0].removesuffix(".py")) for name in sorted(kept)
    ]
