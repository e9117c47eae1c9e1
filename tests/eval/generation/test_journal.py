"""Searches that were killed and go on, against one that was not; journals of others, damaged ones, and two at once."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pathmoe_eval.generation.decoder import Decoder
from pathmoe_eval.generation.journal import Journal
from pathmoe_eval.generation.search import Limits, tree_search
from pathmoe_eval.generation.segments import Sampling, Segment

SEARCH = {"model": "small", "prompt": "über"}
KILLED = """
import os, signal, sys
sys.path[:0] = [sys.argv[2], sys.argv[3]]
from conftest import _build
from test_journal import run
from pathmoe_eval.generation.journal import Journal

class Killed(Journal):
    def write(self, place, segment):
        super().write(place, segment)
        if len(self.segments) == int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)

run(_build("path_b4", num_hidden_layers=4), sys.argv[1], int(sys.argv[5]), Killed)
"""


def run(model, path, batch_size, journal_type=Journal):
    sampling = Sampling(temperature=1.0, top_tokens=2, max_mass=0.3, num_children=3, max_new_tokens=12)
    with Decoder(model) as decoder, journal_type(path and Path(path), SEARCH) as journal:
        return tree_search(
            decoder, [5, 9, 2], sampling, Limits(max_completions=30, max_forks=15), eos_ids=frozenset({0, 7, 13}),
            vocab_size=40, batch_size=batch_size, journal=journal,
        )  # fmt: skip


def segment(**fields):
    routing = [np.array([[3, 500], [0, 1]], dtype=np.uint16)]
    return Segment(**{"token_ids": [4], "log_probabilities": [-0.1], "expert_ids": routing} | fields)


def same(found, expected):
    return (
        (found.token_ids, found.log_probabilities, found.end, found.children)
        == (expected.token_ids, expected.log_probabilities, expected.end, expected.children)
        and np.array_equal(found.expert_ids, expected.expert_ids)
        and np.array_equal(found.fork_mass, expected.fork_mass, equal_nan=True)
    )


def begun(path, *segments):
    with Journal(path, SEARCH) as journal:
        for number, one in enumerate(segments):
            journal.write((number, 2), one)
    return path.read_bytes()


SEGMENTS = (
    segment(end=1, log_probabilities=[-0.1234567890123456]),
    segment(fork_mass=0.3, children=[(4, -0.5), (2, -1e-9)]),
    segment(token_ids=[], log_probabilities=[], expert_ids=[], fork_mass=0.1, children=[(1, -2.0)]),
)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_a_killed_search_goes_on_to_the_same_tree_and_forwards_what_is_missing(build_moe, tmp_path, batch_size):
    model, path = build_moe("path_b4", num_hidden_layers=4), tmp_path / "journal.jsonl"
    here = Path(__file__).resolve().parent
    command = [sys.executable, "-c", KILLED, str(path), str(here.parent), str(here), "12", str(batch_size)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    path.write_bytes(path.read_bytes() + b'{"place": [0, 1')
    with Journal(path, SEARCH) as journal:
        assert len(journal.segments) == 12
        num_decoded = sum(len(one.expert_ids) for one in journal.segments.values())
    whole = run(model, None, batch_size)
    resumed = run(model, path, batch_size)
    for name in ("parent_N", "token_ids_N", "end_N", "has_routing_N", "expert_ids_NLK"):
        np.testing.assert_array_equal(getattr(resumed.tree, name), getattr(whole.tree, name), err_msg=name)
    for name in ("log_probability_N", "fork_mass_N"):
        np.testing.assert_allclose(getattr(resumed.tree, name), getattr(whole.tree, name), rtol=0, atol=1e-5)
    assert num_decoded > 0 and resumed.num_read_again > 0
    if batch_size == 1:
        assert resumed.num_forwarded == whole.num_forwarded - num_decoded + resumed.num_read_again
    # Again: nothing but the prompt, which no segment holds.
    assert run(model, path, batch_size).num_forwarded == 3


def test_segments_come_back_as_they_were(tmp_path):
    path = tmp_path / "new" / "journal.jsonl"
    begun(path, *SEGMENTS)
    with Journal(path, SEARCH) as journal:
        assert list(journal.segments) == [(0, 2), (1, 2), (2, 2)]
        assert all(same(found, one) for found, one in zip(journal.segments.values(), SEGMENTS, strict=True))


def test_a_last_line_that_was_cut_anywhere_is_left_out(tmp_path):
    path = tmp_path / "journal.jsonl"
    text = begun(path, *SEGMENTS)
    ends = [number + 1 for number, byte in enumerate(text) if byte == ord("\n")]
    for length in [*range(0, len(text), 7), *ends]:
        path.write_bytes(text[:length])
        with Journal(path, SEARCH) as journal:
            whole = len([end for end in ends[1:] if end <= length])
            assert len(journal.segments) == whole
            journal.write((9,), SEGMENTS[0])
        assert path.read_bytes().startswith(text[: ends[whole]])
        with Journal(path, SEARCH) as journal:
            assert len(journal.segments) == whole + 1


def test_the_journal_of_another_search_is_refused_and_stays_as_it_was(tmp_path):
    path = tmp_path / "journal.jsonl"
    text = begun(path, *SEGMENTS)
    with pytest.raises(
        ValueError, match=r"^\S+ \(of another search\) must be of this model.*; choose another --out.*$"
    ):
        Journal(path, SEARCH | {"prompt": "other"})
    assert path.read_bytes() == text
    path.write_bytes(b"notes without an end of line")
    with pytest.raises(ValueError, match="of another search"):
        Journal(path, SEARCH)
    assert path.read_bytes() == b"notes without an end of line"


@pytest.mark.parametrize("line", [b"{}", b"[]", b"\x00\xff", b'{"place": 3}', b'{"place": [1], "fork_mass": null}'])
def test_a_line_that_is_no_segment_is_refused(tmp_path, line):
    path = tmp_path / "journal.jsonl"
    begun(path, SEGMENTS[0])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ValueError, match=r"^\S+ \(line 3\) must be a segment of a search; remove the file$"):
        Journal(path, SEARCH)


def test_two_at_once_are_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path, SEARCH), pytest.raises(ValueError, match=r"^\S+ \(in use\) must be of one process; wait .*$"):
        Journal(path, SEARCH)
    Journal(path, SEARCH).__exit__()


def test_a_file_holds_plain_json(tmp_path):
    lines = begun(tmp_path / "journal.jsonl", *SEGMENTS).decode("ascii").splitlines()
    assert json.loads(lines[0]) == {"format": 1, "search": SEARCH}
    assert json.loads(lines[2])["children"] == [[4, -0.5], [2, -1e-9]]
    assert json.loads(lines[1])["fork_mass"] is None
