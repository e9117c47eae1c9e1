"""What is kept of a run's parts, and which settings are said to differ between two of them."""

import hashlib
import json
from pathlib import Path

import pytest

from pathmoe.training.run_record import RunRecord, changes, hash_files, read_record


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_record(tmp_path) == RunRecord()
    record = RunRecord({"a.yaml": "12"}, [{"first_step": 0, "torch": "2.13"}])
    record.write(tmp_path)
    assert read_record(tmp_path) == record
    assert json.loads((tmp_path / "provenance.json").read_text()) == {
        "config_files": {"a.yaml": "12"},
        "parts": [{"first_step": 0, "torch": "2.13"}],
    }


def test_a_part_counts_where_more_than_its_step_is_new(tmp_path: Path) -> None:
    first = RunRecord().with_part({"first_step": 0, "commit": "a", "splits": (1, 2)}, {"a.yaml": "1"})
    first.write(tmp_path)
    same = read_record(tmp_path).with_part({"first_step": 8, "commit": "a", "splits": (1, 2)}, {"b.yaml": "2"})
    assert same.parts == first.parts == [{"first_step": 0, "commit": "a", "splits": [1, 2]}]
    assert same.config_files == {"a.yaml": "1", "b.yaml": "2"}
    other = same.with_part({"first_step": 8, "commit": "b", "splits": [1, 2]}, {"a.yaml": "3"})
    assert [(part["first_step"], part["commit"]) for part in other.parts] == [(0, "a"), (8, "b")]
    assert other.config_files == {"a.yaml": "3", "b.yaml": "2"}


def test_files_are_known_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"x: 1\n")
    digest = hashlib.sha256(b"x: 1\n").hexdigest()
    assert hash_files([tmp_path / "a.yaml"]) == {str(tmp_path / "a.yaml"): digest}
    assert hash_files([]) == {}


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ({}, ""),
        ({"model": {"lr": 0.02}}, "model.lr (0.01 -> 0.02)"),
        ({"model": {"name": "adamw"}, "steps": 5}, "model.name (muon -> adamw), steps (4 -> 5)"),
        ({"trainer": {"callbacks": []}, "new": None}, "trainer.callbacks, new (unset -> null)"),
    ],
)
def test_what_differs_is_named_by_its_key(now: dict, expected: str) -> None:
    before = {"model": {"lr": 0.01, "name": "muon"}, "steps": 4, "trainer": {"callbacks": [{"class_path": "a"}]}}
    merged = {key: before[key] | now.get(key, {}) for key in ("model", "trainer")}
    assert changes(before, before | now | merged) == expected
    assert changes(before, {"model": before["model"], "steps": 4}) == "trainer.callbacks"
