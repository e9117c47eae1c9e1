"""Where traces are written: what is refused, and what a writer that ends early leaves behind."""

# Shapes: N tokens, L MoE layers, K experts per token, S pieces of sequences.

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pathmoe_eval.traces.routing_chunk import RoutingChunk
from pathmoe_eval.traces.trace import open_trace
from pathmoe_eval.traces.trace_header import TraceHeader
from pathmoe_eval.traces.trace_writer import TraceWriter

ROOT = Path(__file__).resolve().parents[3]


def make_header(**changes):
    fields = {
        "num_layers": 2,
        "num_experts": 4,
        "num_experts_per_tok": 1,
        "layer_names": ("a", "b"),
        "router_of_layer": (0, 1),
        "model": "m",
        "tokenizer": "",
        "data": "d",
        "vocab_size": 10,
        "has_weights": False,
        "has_logits": False,
        "has_predicted_ids": False,
    }
    return TraceHeader(**(fields | changes))


def make_chunk(num_tokens=3, *, starts=None, first_position=0, **changes):
    arrays = {
        "expert_ids_NLK": np.zeros((num_tokens, 2, 1), dtype=np.uint8),
        "token_ids_N": np.zeros(num_tokens, dtype=np.int64),
        "starts_S1": np.array([0, num_tokens] if starts is None else starts),
    }
    return RoutingChunk(**(arrays | changes), first_position=first_position)


def test_a_folder_appears_when_it_is_whole(tmp_path):
    place = tmp_path / "new" / "trace"
    with TraceWriter(place, make_header()) as writer:
        writer.append(make_chunk(), ["a"], [""])
        assert not place.exists()
    assert sorted(path.name for path in place.iterdir()) == ["sequences.arrow", "tokens.arrow", "trace.json"]
    assert [path.name for path in place.parent.iterdir()] == ["trace"]
    writer.close()  # once more does nothing
    assert open_trace(place).num_tokens == 3


def test_others_may_read_it_where_they_may_read_the_folder_above(tmp_path):
    (tmp_path / "plain").mkdir()
    with TraceWriter(tmp_path / "trace", make_header()) as writer:
        writer.append(make_chunk(), ["a"], [""])
    assert (tmp_path / "trace").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_empty_folder_will_do(tmp_path):
    with TraceWriter(tmp_path, make_header()) as writer:
        writer.append(make_chunk(), ["a"], [""])
    assert open_trace(tmp_path).num_tokens == 3


def test_an_exception_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="the model broke"), TraceWriter(tmp_path / "trace", make_header()) as writer:
        writer.append(make_chunk(), ["a"], [""])
        raise RuntimeError("the model broke")
    assert list(tmp_path.iterdir()) == []


def test_a_trace_without_tokens_is_refused_and_leaves_nothing(tmp_path):
    writer = TraceWriter(tmp_path / "trace", make_header())
    writer.append(make_chunk(0, starts=[0]), [], [])
    with pytest.raises(ValueError, match=r"trace \(0 tokens\) must hold at least 1; record more data"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def fill_with_a_trace(place):
    with TraceWriter(place, make_header()) as writer:
        writer.append(make_chunk(), ["a"], [""])


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (fill_with_a_trace, r"trace \(another trace\) must be a new or an empty folder; choose another"),
        (lambda place: (place.mkdir(), (place / "notes.txt").touch()), r"trace \(notes\.txt\) must be a new or"),
        (lambda place: place.touch(), r"trace \(a file\) must be a new or"),
    ],
)
def test_a_place_that_is_taken_is_refused_at_the_beginning_and_at_the_end(tmp_path, fill, message):
    place = tmp_path / "trace"
    early = TraceWriter(place, make_header())
    early.append(make_chunk(), ["a"], [""])
    fill(place)
    content = sorted((path, path.read_bytes()) for path in place.rglob("*"))
    with pytest.raises(ValueError, match=message):
        TraceWriter(place, make_header())
    with pytest.raises(ValueError, match=message):
        early.close()
    assert sorted((path, path.read_bytes()) for path in place.rglob("*")) == content
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize(
    ("header", "chunk", "names", "domains", "message"),
    [
        ({}, {}, [], [""], r"names \(0\) must be one for each of the 1 sequences"),
        ({}, {"starts": [0, 1, 3]}, ["a", "b"], [""], r"domains \(1\) must be one for each of the 2 sequences"),
        ({}, {"first_position": 2}, ["a"], [""], r"names \(1\) must be one for each of the 0 sequences .*; leave out"),
        ({}, {"first_position": 2}, [], [], r"first_position \(2\) must be 0 or 3, the tokens so far"),
        ({"has_weights": True}, {}, ["a"], [""], r"weights_NLK \(missing\) must be in each chunk; set has_weights"),
        (
            {"num_experts_per_tok": 2},
            {},
            ["a"],
            [""],
            r"expert_ids_NLK \(uint8 \[3, 2, 1\]\) must be .* \[tokens, 2, 2\]",
        ),
        ({}, {"token_ids_N": np.zeros(3)}, ["a"], [""], r"token_ids_N \(float64 \[3\]\) must be int32 \[tokens\]"),
        ({}, {"token_ids_N": np.array([1, 10, 2])}, ["a"], [""], r"token_ids_N \(10\) must .* vocab_size \(10\)"),
        ({}, {"token_ids_N": np.array([1, -1, 2])}, ["a"], [""], r"token_ids_N \(-1\) must be at least 0"),
        ({}, {"expert_ids_NLK": np.full((3, 2, 1), 4)}, ["a"], [""], r"expert_ids_NLK \(4\) must .* num_experts \(4\)"),
    ],
)
def test_a_chunk_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, header, chunk, names, domains, message):
    ids_NLK = np.zeros((3, 2, header.get("num_experts_per_tok", 1)), dtype=np.int64)
    weights = {"weights_NLK": np.ones((3, 2, 1))} if "has_weights" in header else {}
    good = make_chunk(expert_ids_NLK=ids_NLK, **weights)
    with TraceWriter(tmp_path / "trace", make_header(**header)) as writer:
        writer.append(good, ["first"], [""])
        with pytest.raises(ValueError, match=message) as error:
            writer.append(make_chunk(**chunk), names, domains)
        assert "\n" not in str(error.value)
        writer.append(good, ["second"], [""])
    assert open_trace(tmp_path / "trace").sequences().to_pydict()["end"] == [3, 6]


def test_a_header_that_json_cannot_write_is_refused_at_the_beginning(tmp_path):
    for value in (object(), float("nan")):
        with pytest.raises(ValueError, match=r"provenance \(.*\) must be what JSON can write; use text"):
            TraceWriter(tmp_path / "trace", make_header(provenance={"key": value}))
    assert list(tmp_path.iterdir()) == []


def test_many_short_sequences_stay_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("pathmoe_eval.traces.trace_writer._SEQUENCES_PER_BATCH", 7)
    with TraceWriter(tmp_path / "trace", make_header()) as writer:
        for number in range(100):
            writer.append(make_chunk(1), [f"s{number}"], [""])
            writer.append(make_chunk(2, first_position=1), [], [])
    table = open_trace(tmp_path / "trace").sequences().to_pydict()
    assert table["name"] == [f"s{number}" for number in range(100)]
    assert table["end"] == list(range(3, 301, 3))


# Writes until it is killed, into several record batches and then beyond.
ENDLESS = """
import sys
sys.path[:0] = [{folder!r}]
from test_trace_writer import TraceWriter, make_chunk, make_header
writer = TraceWriter({place!r}, make_header())
while True:
    writer.append(make_chunk(50_000), ["a"], [""])
    if writer.num_tokens > 200_000:
        print("writing", flush=True)
"""


def test_a_killed_writer_leaves_nothing_that_looks_like_a_trace(tmp_path):
    place = tmp_path / "trace"
    code = ENDLESS.format(folder=str(Path(__file__).parent), place=str(place))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [ROOT, ROOT / "kernels", ROOT / "eval"]))}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "writing\n"
        with TraceWriter(tmp_path / "trace", make_header()) as another:
            another.discard()
        assert len(list(tmp_path.iterdir())) == 1  # of a process that lives
        process.send_signal(signal.SIGKILL)
    assert not place.exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".trace-") and (left / "tokens.arrow").stat().st_size > 0
    with pytest.raises(ValueError, match=r"\(no trace\.json\) must be the folder of a trace"):
        open_trace(left)
    fill_with_a_trace(place)
    assert open_trace(place).num_tokens == 3
    assert list(tmp_path.iterdir()) == [place]
