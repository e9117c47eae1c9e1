import sysconfig
from pathlib import Path

from pathmoe.data.python_stdlib import python_stdlib


def test_documents_are_the_library_without_its_tests() -> None:
    documents = list(python_stdlib())
    root = Path(sysconfig.get_path("stdlib"))
    names = [document.name or "" for document in documents]
    assert names == sorted(names) and len(set(names)) == len(names)
    assert {"json/decoder.py", "asyncio/events.py", "argparse.py"} <= set(names)
    for document in documents:
        parts = Path(document.name or "").parts
        assert not {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"} & set(parts[:-1])
        assert document.group == parts[0].removesuffix(".py")
        assert document.text
    decoder = documents[names.index("json/decoder.py")]
    assert decoder.text.encode() == (root / "json" / "decoder.py").read_bytes()
    assert decoder.group == "json"
    assert 5e6 < sum(len(document.text.encode()) for document in documents) < 50e6


def test_two_readings_are_the_same() -> None:
    assert list(python_stdlib()) == list(python_stdlib())


def test_files_of_the_build_are_left_out() -> None:
    # They hold paths and settings of the machine that built the interpreter.
    assert not [d.name for d in python_stdlib() if d.group and d.group.startswith(("_sysconfigdata", "config-"))]
