"""What is written down about how a run came about."""

import json
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import pathmoe.training.provenance as module
from pathmoe.training.provenance import provenance

ROOT = Path(__file__).resolve().parents[2]


def test_versions_are_those_that_run() -> None:
    facts = provenance()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {Requirement(line).name for line in project["dependencies"]} <= facts.keys()
    assert facts["torch"] == torch.__version__
    assert facts["transformers"] == version("transformers")
    assert facts["threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_the_commit_is_the_sources_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert provenance()["git_commit"] == head
    assert provenance()["git_dirty"] in (True, False)


def make_repository(folder: Path) -> None:
    """With all that is in the folder as its first commit."""
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=folder, check=True)


def test_local_changes_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "provenance.py").write_text("")
    make_repository(tmp_path)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "provenance.py"))
    assert provenance()["git_dirty"] is False
    (tmp_path / "provenance.py").write_text("changed")
    assert provenance()["git_dirty"] is True


def test_the_repository_around_an_installed_package_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_own.py").write_text("")
    make_repository(tmp_path)
    installed = tmp_path / ".venv" / "pathmoe"
    installed.mkdir(parents=True)
    (installed / "provenance.py").write_text("")
    monkeypatch.setattr(module, "__file__", str(installed / "provenance.py"))
    facts = provenance()
    assert (facts["git_commit"], facts["git_dirty"]) == (None, None)


def test_outside_a_checkout_and_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "__file__", str(tmp_path / "provenance.py"))
        patch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        assert provenance()["git_commit"] is None
        assert provenance()["git_dirty"] is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance()["git_commit"] is None


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PACKAGES", ("torch", "no-such-package"))
    facts = provenance()
    assert facts["no-such-package"] is None
    assert facts["torch"]
