"""Classes of a trace's tokens, against tagging each document's text, and against a loop over chunks."""

# Shapes: N tokens.

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pathmoe.data.python_stdlib import python_stdlib
from pathmoe.data.tokenizer import encode, train_bpe
from pathmoe_eval.classes.python_classes import python_classes
from pathmoe_eval.classes.token_classes import SPECIAL, ClassNames
from pathmoe_eval.classes.token_spans import encode_with_spans
from pathmoe_eval.classes.trace_classes import InPieces, trace_classes
from pathmoe_eval.traces.routing_chunk import RoutingChunk

TEXTS = [document.text[:3000] for document in islice(python_stdlib(), 6)] + ["größer €uro 日本語"]
BPE = train_bpe(TEXTS, 500)
IDS = encode(BPE, TEXTS)


def characters(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """A tagger that says the text itself."""
    return [text[start:end] for start, end in spans]


def chunks_of(sequences: list[list[int]], sizes: list[int]) -> list[RoutingChunk]:
    """The sequences one after the other, cut into chunks of these sizes, the last of what is left."""
    ids_N = np.concatenate(sequences)
    starts = np.cumsum([0, *map(len, sequences)])
    chunks, first = [], 0
    for size in [*sizes, len(ids_N)]:
        stop = min(first + size, len(ids_N))
        if stop == first:
            continue
        inner = starts[(starts > first) & (starts < stop)]
        sequence_start = int(starts[starts <= first][-1])
        chunks.append(
            RoutingChunk(
                expert_ids_NLK=np.zeros((stop - first, 1, 1), dtype=np.uint8),
                token_ids_N=ids_N[first:stop],
                starts_S1=np.concatenate([[0], inner - first, [stop - first]]),
                first_position=first - sequence_start,
            )
        )
        first = stop
    return chunks


@given(st.lists(st.integers(1, 900), max_size=12))
def test_classes_do_not_depend_on_the_chunks_and_are_those_of_the_text(sizes: list[int]) -> None:
    sequences = [[*ids, BPE.eos_token_id] for ids in IDS]
    names = ClassNames()
    arrays = list(trace_classes(chunks_of(sequences, sizes), BPE, python_classes, names))
    assert list(map(len, arrays)) == list(map(len, sequences))
    classes_N = np.concatenate(arrays)
    wanted: list[str] = []
    for text in TEXTS:
        _, spans_N2 = encode_with_spans(BPE, text)
        wanted += [*python_classes(text, [(start, end) for start, end in spans_N2.tolist()]), SPECIAL]
    assert [names.names[number] for number in classes_N] == wanted


def test_no_more_sequences_are_read_than_are_asked_for() -> None:
    read = []

    def arrays() -> Iterator[NDArray[np.int32]]:
        for length in (3, 2, 4):
            read.append(length)
            yield np.arange(length, dtype=np.int32)

    pieces = InPieces(arrays())
    assert (pieces.take(2).tolist(), read) == ([0, 1], [3])
    assert (pieces.take(0).tolist(), pieces.take(1).tolist(), read) == ([], [2], [3])
    assert (pieces.take(3).tolist(), read) == ([0, 1, 0], [3, 2, 4])
    assert (pieces.take(9).tolist(), pieces.take(1).tolist()) == ([1, 2, 3], [])


@given(st.lists(st.integers(0, 5)), st.data())
def test_pieces_of_any_length_are_all_entries_in_order(lengths: list[int], data: st.DataObject) -> None:
    entries = np.arange(sum(lengths), dtype=np.int32)
    arrays = np.split(entries, np.cumsum(lengths)) if lengths else []
    pieces, taken = InPieces(arrays), []
    while len(taken) < len(entries):
        length = data.draw(st.integers(1, 7))
        piece = pieces.take(length).tolist()
        assert len(piece) == min(length, len(entries) - len(taken))
        taken += piece
    assert taken == entries.tolist()


def test_ids_that_no_text_would_give_are_tagged_by_what_they_decode_to() -> None:
    letters = [id for (id,) in encode(BPE, list("import"))]
    assert letters != encode(BPE, ["import"])[0]
    names = ClassNames()
    (classes_N,) = trace_classes(chunks_of([letters], []), BPE, characters, names)
    assert [names.names[number] for number in classes_N] == list("import")


def test_a_tagger_that_gives_too_few_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tagger \(0 classes for 3 tokens\) must return one string for each span"):
        list(trace_classes(chunks_of([IDS[0][:3]], []), BPE, lambda text, spans: [], ClassNames()))


def test_a_tagger_that_fails_is_named_in_one_line() -> None:
    def broken(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
        raise KeyError("x")

    with pytest.raises(
        ValueError, match=r"tagger \(KeyError: 'x'\) must not fail, but does on the document that begins"
    ):
        list(trace_classes(chunks_of([IDS[0]], []), BPE, broken, ClassNames()))
