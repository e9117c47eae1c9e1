import os
from pathlib import Path

import pytest

from pathmoe.bench.tests_first import run_tests


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Two files of tests, of which one passes where a variable is set."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_good.py").write_text("def test_good(): pass")
    (tmp_path / "tests" / "test_set.py").write_text(
        "import os\ndef test_set(): assert (os.environ['SET'], os.environ['INHERITED']) == ('here', 'yes')"
    )
    return tmp_path


def test_tests_that_pass_let_the_program_go_on(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INHERITED", "yes")
    run_tests(checkout, ("test_good.py",))
    run_tests(checkout, ("test_set.py",), environment={"SET": "here"})
    assert "SET" not in os.environ


def test_a_test_that_fails_ends_in_one_line(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_tests(checkout, ("test_good.py", "test_set.py"))
    assert capsys.readouterr().err == (
        f"error: {checkout / 'tests'}: the tests of what is timed must pass; mend what fails above\n"
    )


def test_options_are_handed_to_pytest(checkout: Path) -> None:
    run_tests(checkout, ("test_good.py", "test_set.py"), ("-k", "good"))


def test_a_place_without_tests_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_tests(tmp_path, ("kernels",))
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'tests'} must be there, as what is timed is tested first; run it from a checkout\n"
    )
