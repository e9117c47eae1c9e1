"""Traces that were damaged: cut at any byte, or changed where the sizes do not show it."""

# Shapes: N tokens, L MoE layers, K experts per token, E experts.

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pathmoe_eval.traces.routing_chunk import RoutingChunk
from pathmoe_eval.traces.trace import open_trace
from pathmoe_eval.traces.trace_header import TraceHeader
from pathmoe_eval.traces.trace_writer import TraceWriter

FILES = ("trace.json", "tokens.arrow", "sequences.arrow")
BATCH_TOKENS = 16


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A trace of three record batches."""
    header = TraceHeader(
        num_layers=3,
        num_experts=8,
        num_experts_per_tok=2,
        layer_names=("a", "b", "c"),
        router_of_layer=(0, 0, 1),
        model="m",
        tokenizer="",
        data="d",
        vocab_size=50,
        has_weights=True,
        has_logits=True,
        has_predicted_ids=True,
    )
    rng = np.random.default_rng(0)
    chunk = RoutingChunk(
        expert_ids_NLK=np.arange(40 * 6).reshape(40, 3, 2) % 8,
        token_ids_N=np.arange(40),
        weights_NLK=rng.random((40, 3, 2)),
        logits_NLE=rng.random((40, 3, 8)),
        predicted_ids_N=np.arange(40) + 10,
        starts_S1=np.array([0, 10, 30, 40]),
    )
    folder = tmp_path_factory.mktemp("traces") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pathmoe_eval.traces.trace_writer._MAX_BATCH_TOKENS", BATCH_TOKENS)
        with TraceWriter(folder, header) as writer:
            writer.append(chunk, ["x", "y", "z"], ["code", "books", "code"])
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def read(folder):
    return sum(chunk.num_tokens for chunk in open_trace(folder).chunks())


def change_index(folder, **changes):
    file = folder / "trace.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def record_size(folder, name):
    """What an index says of a file that was changed on purpose."""
    change_index(folder, **{name.replace(".arrow", "_bytes"): (folder / name).stat().st_size})


def rewrite(folder, name, change):
    """Write one of the Arrow files again, its record batches changed, and make the index agree with its size."""
    with pa.OSFile(str(folder / name), "rb") as source:
        reader = pa.ipc.open_file(source)
        batches = change([reader.get_batch(number) for number in range(reader.num_record_batches)])
    with pa.ipc.new_file(str(folder / name), batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    record_size(folder, name)


def with_column(batch, name, change):
    number = batch.schema.get_field_index(name)
    kept = batch.schema.field(number)
    values = pa.array(change(batch.column(number).to_pylist()), type=kept.type)
    return pa.RecordBatch.from_arrays(
        [values if index == number else column for index, column in enumerate(batch.columns)], schema=batch.schema
    )


def test_the_whole_trace_is_read(copy):
    assert read(copy) == 40
    for name in FILES[1:]:
        rewrite(copy, name, lambda batches: batches)
    assert read(copy) == 40


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(name=st.sampled_from(FILES), position=st.floats(0, 1, exclude_max=True), agrees=st.booleans())
def test_a_file_cut_at_any_byte_is_refused(whole, tmp_path, name, position, agrees):
    folder = tmp_path / "cut"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    size = (folder / name).stat().st_size - (name == "trace.json")  # its last byte is a newline, which nobody needs
    (folder / name).write_bytes((folder / name).read_bytes()[: int(position * size)])
    if agrees and name != "trace.json":
        record_size(folder, name)
        if json.loads((folder / "trace.json").read_text())[name.replace(".arrow", "_bytes")] == 0:
            change_index(folder, **{name.replace(".arrow", "_bytes"): 1})
    with pytest.raises(ValueError, match=r"; .*(copy|record)") as error:
        read(folder)
    assert "\n" not in str(error.value) and name in str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(copy, name):
    (copy / name).unlink()
    line = rf"{name} \(not there\) must lie beside trace\.json; copy the whole folder of the trace, or record it again$"
    with pytest.raises(ValueError, match=r"no trace\.json" if name == "trace.json" else line):
        read(copy)


def test_a_file_with_more_bytes_is_refused(copy):
    with (copy / "tokens.arrow").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"tokens\.arrow \(\d+ bytes\) must have the \d+ bytes of trace\.json; it was"):
        read(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_tokens": 39}, r"tokens\.arrow \(8 tokens in batch 2\) must hold 7 there"),
        ({"num_tokens": 41}, r"tokens\.arrow \(8 tokens in batch 2\) must hold 9 there"),
        ({"num_tokens": 50}, r"tokens\.arrow \(3 batches\) must hold the 4 of num_tokens \(50\)"),
        ({"num_tokens": 32}, r"tokens\.arrow \(3 batches\) must hold the 2 of num_tokens \(32\)"),
        ({"num_sequences": 2}, r"sequences\.arrow \(3 sequences\) must hold num_sequences \(2\)"),
        ({"num_experts_per_tok": 3}, r"tokens\.arrow \(expert_ids fixed_size_list.*\[6\].*must hold .*\[9\]"),
        ({"num_experts": 300}, r"tokens\.arrow \(expert_ids fixed_size_list<item: uint8 .*must hold .*uint16"),
        ({"has_weights": False}, r"tokens\.arrow \(.*weights .*\) must hold expert_ids"),
        ({"vocab_size": 49}, r"predicted_ids \(49, token 39\) must be at least 0 and below vocab_size \(49\)"),
        ({"vocab_size": 30}, r"token_ids \(39, token 39\) must be at least 0 and below vocab_size \(30\)"),
    ],
)
def test_files_that_differ_from_the_header_are_refused(copy, changes, message):
    change_index(copy, **changes)
    with pytest.raises(ValueError, match=message) as error:
        read(copy)
    assert "\n" not in str(error.value)


def test_expert_ids_beyond_the_experts_are_refused(copy):
    change_index(copy, num_experts=7, has_logits=False)
    rewrite(copy, "tokens.arrow", lambda batches: [batch.drop_columns("logits") for batch in batches])
    with pytest.raises(ValueError, match=r"expert_ids \(7, token 33\) must .* below num_experts \(7\) in trace\.json"):
        open_trace(copy)  # the last batch is read at once
    change_index(copy, num_experts=8)
    assert read(copy) == 40


def test_negative_token_ids_are_refused_when_their_batch_is_read(copy):
    rewrite(
        copy,
        "tokens.arrow",
        lambda batches: [with_column(batches[0], "token_ids", lambda ids: [*ids[:5], -3, *ids[6:]]), *batches[1:]],
    )
    trace = open_trace(copy)
    with pytest.raises(ValueError, match=r"token_ids \(-3, token 5\) must be at least 0"):
        list(trace.chunks())


def test_batches_of_other_sizes_are_refused(copy):
    rewrite(copy, "tokens.arrow", lambda batches: [batches[0].slice(0, 10), *batches[1:]])
    trace = open_trace(copy)
    with pytest.raises(ValueError, match=r"tokens\.arrow \(10 tokens in batch 0\) must hold 16 there"):
        list(trace.chunks())


@pytest.mark.parametrize("ends", [[10, 10, 40], [30, 10, 40], [10, 30, 39], [10, 30, 41], [0, 30, 40], [-5, 30, 40]])
def test_sequences_that_do_not_ascend_to_the_last_token_are_refused(copy, ends):
    rewrite(copy, "sequences.arrow", lambda batches: [with_column(batches[0], "end", lambda _: ends)])
    with pytest.raises(ValueError, match=r"sequences\.arrow: end .* must ascend .* to num_tokens \(40\)"):
        open_trace(copy)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(name=st.sampled_from(FILES[1:]), position=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_read_within_bounds(whole, tmp_path, name, position, value):
    folder = tmp_path / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    content = bytearray((folder / name).read_bytes())
    content[int(position * len(content))] = value
    (folder / name).write_bytes(content)
    try:
        trace = open_trace(folder)
        chunks = list(trace.chunks())
    except ValueError as error:
        assert "\n" not in str(error) and name in str(error)
        return
    assert sum(chunk.num_tokens for chunk in chunks) == 40
    assert all(chunk.expert_ids_NLK.max() < 8 and chunk.token_ids_N.max() < 50 for chunk in chunks)
