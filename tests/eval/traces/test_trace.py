"""Traces that are written and read in any chunks, against the same tokens in plain lists."""

# Shapes: N tokens, L MoE layers, K experts per token, E experts, S sequences.

import tempfile
import tracemalloc
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.traces.routing_chunk import RoutingChunk
from pathmoe_eval.traces.trace import open_trace
from pathmoe_eval.traces.trace_header import TraceHeader
from pathmoe_eval.traces.trace_writer import TraceWriter

ARRAYS = ("expert_ids_NLK", "token_ids_N", "weights_NLK", "logits_NLE", "predicted_ids_N")
VOCAB_SIZE = 50


def make_header(num_experts=8, *, num_layers=3, num_experts_per_tok=2, has_more=True):
    return TraceHeader(
        num_layers=num_layers,
        num_experts=num_experts,
        num_experts_per_tok=num_experts_per_tok,
        layer_names=tuple(f"layers.{layer}" for layer in range(num_layers)),
        router_of_layer=(0,) * num_layers,
        model="a model",
        tokenizer="its tokenizer",
        data="some data",
        vocab_size=VOCAB_SIZE,
        has_weights=has_more,
        has_logits=has_more,
        has_predicted_ids=has_more,
        provenance={"command": ["record"], "versions": {"numpy": np.__version__}},
    )


def random_arrays(rng, header, num_tokens):
    """Every array, in types that others use."""
    layers, experts, chosen = header.num_layers, header.num_experts, header.num_experts_per_tok
    return {
        "expert_ids_NLK": rng.integers(0, experts, (num_tokens, layers, chosen)),
        "token_ids_N": rng.integers(0, VOCAB_SIZE, num_tokens),
        "weights_NLK": rng.random((num_tokens, layers, chosen), dtype=np.float32),
        "logits_NLE": rng.standard_normal((num_tokens, layers, experts)).astype(np.float32),
        "predicted_ids_N": rng.integers(0, VOCAB_SIZE, num_tokens, dtype=np.uint16),
    }


@dataclass
class Recording:
    """Tokens in memory, and how they are cut on their way to disk and back."""

    header: TraceHeader
    arrays: dict
    lengths: list
    names: list
    domains: list
    cuts: list
    batch_tokens: int

    @property
    def starts(self):
        return [0, *np.cumsum(self.lengths).tolist()]

    def write(self, folder):
        """In chunks that may cut sequences, into record batches that may cut both."""
        with mock.patch("pathmoe_eval.traces.trace_writer._MAX_BATCH_TOKENS", self.batch_tokens):
            writer = TraceWriter(folder, self.header)
        with writer:
            for start, stop in pairwise(self.cuts):
                inner = [edge for edge in self.starts if start < edge < stop]
                begins = [s for s, edge in enumerate(self.starts[:-1]) if start <= edge < stop]
                chunk = RoutingChunk(
                    **{name: values[start:stop] for name, values in self.arrays.items()},
                    starts_S1=np.array(sorted({0, *(edge - start for edge in inner), stop - start})),
                    first_position=start - max(edge for edge in self.starts if edge <= start),
                )
                writer.append(chunk, [self.names[s] for s in begins], [self.domains[s] for s in begins])

    def rows(self, tokens=None):
        """(sequence, position, all values) of each of these tokens."""
        where = [(s, position) for s, length in enumerate(self.lengths) for position in range(length)]
        tokens = range(len(where)) if tokens is None else tokens
        return [(*where[t], *(self.arrays[name][t].tolist() for name in self.arrays)) for t in tokens]


@st.composite
def recordings(draw):
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    num_tokens = sum(lengths)
    num_experts = draw(st.sampled_from([2, 16, 256, 257]))
    header = make_header(num_experts, num_layers=draw(st.integers(1, 3)), has_more=draw(st.booleans()))
    arrays = random_arrays(rng, header, num_tokens)
    return Recording(
        header=header,
        arrays=arrays if header.has_weights else {name: arrays[name] for name in ARRAYS[:2]},
        lengths=lengths,
        names=draw(st.lists(st.text(max_size=5), min_size=len(lengths), max_size=len(lengths))),
        domains=draw(st.lists(st.sampled_from("abc"), min_size=len(lengths), max_size=len(lengths))),
        cuts=sorted({0, num_tokens, *draw(st.lists(st.integers(0, num_tokens), max_size=4))}),
        batch_tokens=draw(st.sampled_from([1, 3, 8, 100])),
    )


def rows_of(chunks):
    rows = []
    for chunk in chunks:
        columns = [getattr(chunk, name) for name in ARRAYS if getattr(chunk, name) is not None]
        rows += zip(
            chunk.sequence_of_token_N().tolist(),
            chunk.position_of_token_N().tolist(),
            *(column.tolist() for column in columns),
            strict=True,
        )
    return rows


@given(recordings(), st.integers(1, 20))
def test_what_is_written_is_read_in_any_chunks(recording, max_tokens):
    with tempfile.TemporaryDirectory() as place:
        recording.write(Path(place, "trace"))
        trace = open_trace(Path(place, "trace"))
        assert trace.header == recording.header
        assert trace.num_tokens == sum(recording.lengths)
        assert trace.num_sequences == len(recording.lengths)
        table = trace.sequences().to_pydict()
        assert table == {
            "name": recording.names,
            "domain": recording.domains,
            "start": recording.starts[:-1],
            "end": recording.starts[1:],
        }
        for _ in range(2):
            chunks = list(trace.chunks(max_tokens))
            assert rows_of(chunks) == recording.rows()
            assert all(1 <= chunk.num_tokens <= max_tokens for chunk in chunks)
        assert all((chunk.weights_NLK is None) != recording.header.has_weights for chunk in chunks)


@given(recordings(), st.data())
def test_a_selection_is_what_a_filter_of_the_tokens_gives(recording, data):
    steps = data.draw(st.lists(st.sampled_from(["first", "of_domain"]), min_size=1, max_size=3))
    max_tokens = data.draw(st.integers(1, 20))
    with tempfile.TemporaryDirectory() as place:
        recording.write(Path(place, "trace"))
        trace = open_trace(Path(place, "trace"))
        kept = list(range(trace.num_tokens))
        domain_of_token = np.repeat(recording.domains, recording.lengths)
        sequence_of_token = np.repeat(np.arange(len(recording.lengths)), recording.lengths)
        for step in steps:
            if step == "first":
                number = data.draw(st.integers(1, len(kept)))
                trace, kept = trace.first(number), kept[:number]
            else:
                domain = data.draw(st.sampled_from(trace.domains()))
                trace, kept = trace.of_domain(domain), [t for t in kept if domain_of_token[t] == domain]
            assert trace.num_tokens == len(kept)
            assert trace.num_sequences == len(set(sequence_of_token[kept]))
            assert trace.domains() == tuple(dict.fromkeys(domain_of_token[kept].tolist()))
            chunks = list(trace.chunks(max_tokens))
            assert rows_of(chunks) == recording.rows(kept)
            assert all(1 <= chunk.num_tokens <= max_tokens for chunk in chunks)


@pytest.mark.parametrize(("num_experts", "dtype"), [(256, np.uint8), (257, np.uint16), (65536, np.uint16)])
def test_ids_take_one_byte_up_to_256_experts(tmp_path, num_experts, dtype):
    header = make_header(num_experts, num_layers=1, num_experts_per_tok=1, has_more=False)
    ids_NLK = np.array([0, num_experts - 1]).reshape(2, 1, 1)
    with TraceWriter(tmp_path / "trace", header) as writer:
        chunk = RoutingChunk(expert_ids_NLK=ids_NLK, token_ids_N=np.array([0, 49]), starts_S1=np.array([0, 2]))
        writer.append(chunk, ["a"], [""])
    (chunk,) = open_trace(tmp_path / "trace").chunks()
    assert chunk.expert_ids_NLK.dtype == dtype
    assert chunk.expert_ids_NLK.tolist() == ids_NLK.tolist()


def write_large(folder, num_tokens):
    header = make_header()
    arrays = random_arrays(np.random.default_rng(0), header, 10_000)
    with TraceWriter(folder, header) as writer:
        for _ in range(num_tokens // 10_000):
            writer.append(RoutingChunk(**arrays, starts_S1=np.array([0, 10_000])), ["a"], ["b"])


def test_chunks_are_read_only_views_of_the_file(tmp_path):
    write_large(tmp_path / "trace", 400_000)
    trace = open_trace(tmp_path / "trace")
    num_bytes = (tmp_path / "trace" / "tokens.arrow").stat().st_size
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    total = 0
    for chunk in trace.chunks():
        for name in ARRAYS:
            values = getattr(chunk, name)
            assert not values.flags.owndata and not values.flags.writeable
            total += values.nbytes
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total > 50_000_000 and total <= num_bytes
    assert peak < 1_000_000
    assert pa.total_allocated_bytes() - before < 1_000_000


def resident_file_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells")
def test_what_was_read_does_not_stay_resident_and_is_there_when_looked_at_again(tmp_path):
    write_large(tmp_path / "trace", 800_000)
    before, most, first = resident_file_bytes(), 0, None
    for chunk in open_trace(tmp_path / "trace").chunks():
        first = first or (chunk, {name: getattr(chunk, name).copy() for name in ARRAYS})
        for name in ARRAYS:
            getattr(chunk, name).max()
        most = max(most, resident_file_bytes())
    assert (tmp_path / "trace" / "tokens.arrow").stat().st_size > 100_000_000
    assert most - before < 20_000_000
    chunk, copies = first
    assert all(np.array_equal(getattr(chunk, name), copies[name]) for name in ARRAYS)


def test_writing_takes_no_more_memory_for_more_tokens(tmp_path):
    peaks = []
    for num_tokens in (200_000, 800_000):
        tracemalloc.start()
        write_large(tmp_path / str(num_tokens), num_tokens)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]


@pytest.fixture
def trace(tmp_path):
    header = make_header()
    chunk = RoutingChunk(**random_arrays(np.random.default_rng(0), header, 10), starts_S1=np.array([0, 4, 10]))
    with TraceWriter(tmp_path / "trace", header) as writer:
        writer.append(chunk, ["x", "y"], ["code", "books"])
    return open_trace(tmp_path / "trace")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda trace: trace.first(11), r"num_tokens \(11\) must be between 1 and 10, .*; ask for fewer"),
        (lambda trace: trace.of_domain("code").first(5), r"num_tokens \(5\) must be between 1 and 4"),
        (lambda trace: trace.first(0), r"num_tokens \(0\) must be between 1 and 10"),
        (lambda trace: trace.of_domain("web"), r"domain \(web\) must be one of .* \(code, books\); choose"),
        (lambda trace: trace.first(3).of_domain("books"), r"domain \(books\) must be one of .* \(code\)"),
        (lambda trace: next(trace.chunks(0)), r"max_tokens \(0\) must be at least 1; raise it"),
    ],
)
def test_what_a_trace_does_not_have_is_refused(trace, call, message):
    with pytest.raises(ValueError, match=message):
        call(trace)
