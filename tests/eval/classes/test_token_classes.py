"""Taggers by name, documents tagged as a model is given them, and their classes beside recorded routing."""

# Shapes: N tokens, L MoE layers, K experts per token, B blocks, S tokens of a block.

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe.data.packing import cut_blocks, to_stream
from pathmoe.data.python_stdlib import python_stdlib
from pathmoe.data.tokenizer import encode, train_bpe
from pathmoe_eval.classes.python_classes import python_classes
from pathmoe_eval.classes.text_classes import text_classes
from pathmoe_eval.classes.token_classes import (
    MAX_CLASSES,
    SPECIAL,
    ClassNames,
    TaggedDocument,
    load_tagger,
    tag_chunks,
    tag_documents,
)
from pathmoe_eval.classes.token_spans import encode_with_spans

STDLIB = [document.text for document in islice(python_stdlib(), 8)]
BPE = train_bpe(STDLIB, 600)


def lengths(text, spans):
    return [str(end - start) for start, end in spans]


def test_built_in_taggers():
    assert load_tagger("python") is python_classes
    assert load_tagger("text") is text_classes


def test_a_tagger_of_the_users_own_is_found_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "a_tagger_of_mine.py").write_text("def tag(text, spans):\n    return [text[a:b] for a, b in spans]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert load_tagger("a_tagger_of_mine:tag")("abc", [(0, 1), (1, 3)]) == ["a", "bc"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pythn", r"tagger \(pythn\) must be one of python, text, or module:function; change it"),
        (":tag", r"tagger \(:tag\) must be one of"),
        ("no.such.module:tag", r"can be imported \(ModuleNotFoundError: No module named 'no'\); correct it"),
        ("a_broken_tagger:tag", r"can be imported \(SyntaxError: .*\); correct it"),
        ("math:tag", r"tagger \(math:tag\) must name a function, which math has not"),
        ("math:pi", r"tagger \(math:pi\) must name a function, which math has not"),
    ],
)
def test_a_tagger_that_is_not_there(name, message, tmp_path, monkeypatch):
    (tmp_path / "a_broken_tagger.py").write_text("def tag(:\n")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(ValueError, match=message) as error:
        load_tagger(name)
    assert "\n" not in str(error.value)


def test_documents_are_tagged_as_training_data_is_packed():
    names = ClassNames()
    documents = list(tag_documents(STDLIB, BPE, python_classes, names, bos_id=0, eos_id=0))
    stream = to_stream(encode(BPE, STDLIB), 0, 0, len(BPE))
    assert np.array_equal(np.concatenate([document.token_ids_N for document in documents]), stream.tokens_N)
    for text, document in zip(STDLIB, documents, strict=True):
        spans = encode_with_spans(BPE, text)[1].tolist()
        expected = [SPECIAL, *python_classes(text, spans), SPECIAL]
        assert [names.names[class_id] for class_id in document.class_ids_N] == expected


def test_without_ends_there_are_none():
    (document,) = tag_documents(["a b"], BPE, lengths, ClassNames())
    assert document.token_ids_N.tolist() == encode(BPE, ["a b"])[0]


def test_names_are_numbered_as_they_come():
    names = ClassNames()
    assert names.ids(["b", "a", "b"]) == [0, 1, 0]
    assert names.ids(["c", "a"]) == [2, 1]
    assert names.names == ("b", "a", "c")


@pytest.mark.parametrize(
    ("tagger", "message"),
    [
        (lambda text, spans: ["a"], r"tagger \(1 classes for 3 tokens\) must return one string for each span"),
        (lambda text, spans: [1] * len(spans), r"tagger \(a class of type int for 3 tokens\) must return one string"),
    ],
)
def test_a_tagger_that_returns_something_else(tagger, message):
    with pytest.raises(ValueError, match=message):
        list(tag_documents(["a+b"], BPE, tagger, ClassNames()))


def test_too_many_classes():
    with pytest.raises(ValueError, match=rf"tagger \({MAX_CLASSES + 1} classes\) must give at most {MAX_CLASSES}"):
        ClassNames().ids(map(str, range(MAX_CLASSES + 1)))


@given(st.lists(st.integers(0, 6), max_size=6), st.lists(st.integers(0, 9), max_size=8), st.booleans())
def test_chunks_get_the_classes_of_their_tokens(document_lengths, chunk_lengths, has_token_ids):
    num_tokens = sum(document_lengths)
    token_ids_N = np.arange(num_tokens) + 100
    ends = np.cumsum(document_lengths, dtype=np.int64)
    documents = [
        TaggedDocument(token_ids_N[end - length : end], (token_ids_N[end - length : end] % 7).astype(np.int32))
        for end, length in zip(ends, document_lengths, strict=True)
    ]
    stops = [stop for stop in np.cumsum(chunk_lengths, dtype=np.int64).tolist() if stop <= num_tokens]
    pieces = [slice(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]
    routing_NLK = np.arange(num_tokens * 6).reshape(-1, 3, 2)
    chunks = [(routing_NLK[piece], token_ids_N[piece] if has_token_ids else None) for piece in pieces]
    tagged = list(tag_chunks(documents, chunks))
    for piece, chunk in zip(pieces, tagged, strict=True):
        assert np.array_equal(chunk.expert_ids_NLK, routing_NLK[piece])
        assert np.array_equal(chunk.token_ids_N, token_ids_N[piece])
        assert np.array_equal(chunk.class_ids_N, token_ids_N[piece] % 7)


def test_blocks_of_a_validation_split_get_the_classes_of_their_tokens():
    names = ClassNames()
    stream = to_stream(encode(BPE, STDLIB), 0, 0, len(BPE))
    inputs_BS = cut_blocks(stream, 64)[0][:, :-1]
    routing_NLK = np.zeros((inputs_BS.size, 2, 1), dtype=np.uint8)
    chunks = zip(np.split(routing_NLK, [1000]), np.split(inputs_BS.ravel(), [1000]), strict=True)
    documents = tag_documents(STDLIB, BPE, lengths, names, bos_id=0, eos_id=0)
    first, second = tag_chunks(documents, chunks)
    assert np.array_equal(np.concatenate([first.token_ids_N, second.token_ids_N]), inputs_BS.ravel())


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        ([6, 8], r"token 2 of the recording \(8\) must be that of the documents \(7\); give the data"),
        ([6, 7, 8], r"documents \(3 tokens\) must hold all that was recorded \(at least 4\); give the data"),
    ],
)
def test_another_recording_is_refused(token_ids, message):
    documents = [TaggedDocument(np.array([5, 6, 7]), np.zeros(3, dtype=np.int32))]
    routing_NLK = np.zeros((4, 1, 1), dtype=np.uint8)
    chunks = [(routing_NLK[:1], np.array([5])), (routing_NLK[: len(token_ids)], np.array(token_ids))]
    with pytest.raises(ValueError, match=message):
        list(tag_chunks(documents, chunks))
