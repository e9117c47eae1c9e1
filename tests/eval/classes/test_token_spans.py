"""Spans of tokens against the bytes that byte-level tokens stand for, and the majority against counting characters."""

# Shapes: N tokens, M characters of a document, V vocabulary.

import unicodedata
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from pathmoe.data.python_stdlib import python_stdlib
from pathmoe.data.tokenizer import encode, token_byte_lengths, train_bpe
from pathmoe_eval.classes.token_spans import encode_with_spans, majority_class, spans_of_ids

STDLIB = [document.text for document in islice(python_stdlib(), 25)]
BPE = train_bpe(STDLIB, 700)
BYTE_LENGTHS_V = token_byte_lengths(BPE)
# "e" with an acute accent, composed and not; Greek, Chinese, a flag of two code points, a zero-width joiner
OTHER_SCRIPTS = "caf\u00e9 cafe\u0301  \u03b1\u03b2\u03b3\n\t\u65e5\u672c\u8a9e \U0001f1ea\U0001f1fa a\u200db\r\n "
TEXT = st.text(st.characters(codec="utf-8"), max_size=30)


def spans_by_bytes(text, byte_lengths):
    """The characters that have a byte among those of each token."""
    character_of_byte = [place for place, character in enumerate(text) for _ in character.encode()]
    assert sum(byte_lengths) == len(character_of_byte)
    spans, first = [], 0
    for length in byte_lengths:
        characters = character_of_byte[first : first + length]
        spans.append([characters[0], characters[-1] + 1])
        first += length
    return spans


def assert_tiles(spans, text):
    covered = set()
    position = 0
    for start, end in spans:
        assert 0 <= start <= position <= end
        covered.update(range(start, end))
        position = end
    assert covered == set(range(len(text)))


def changed_bpe(*, normalizer=None, post_processor=None):
    backend = Tokenizer.from_str(BPE.backend_tokenizer.to_str())
    if normalizer is not None:
        backend.normalizer = normalizer
    if post_processor is not None:
        backend.post_processor = post_processor
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("text", [*STDLIB[:6], OTHER_SCRIPTS, "", "<|endoftext|> is text here"])
def test_spans_of_byte_level_bpe_are_those_of_its_bytes(text):
    ids, spans_N2 = encode_with_spans(BPE, text)
    assert [ids] == encode(BPE, [text])
    assert spans_N2.tolist() == spans_by_bytes(text, BYTE_LENGTHS_V[ids].tolist())
    assert_tiles(spans_N2.tolist(), text)


@given(TEXT)
def test_spans_of_any_text_are_those_of_its_bytes(text):
    ids, spans_N2 = encode_with_spans(BPE, text)
    assert spans_N2.tolist() == spans_by_bytes(text, BYTE_LENGTHS_V[ids].tolist())


@given(TEXT)
def test_a_tokenizer_without_offsets_is_followed_by_decoding(text):
    ids, spans_N2 = encode_with_spans(BYTES, text)
    assert len(ids) == len(text.encode())
    assert spans_N2.tolist() == spans_by_bytes(text, [1] * len(ids))


def word_level():
    backend = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


BYTES = ByT5Tokenizer()
TRIMMING = changed_bpe(post_processor=processors.ByteLevel(trim_offsets=True))
COMPOSING = changed_bpe(normalizer=normalizers.NFC())
DROPPING = PreTrainedTokenizerFast(tokenizer_object=word_level(), unk_token="?")


@given(TEXT.filter(str.strip))
def test_what_a_tokenizer_trims_or_composes_is_in_a_span_all_the_same(text):
    for tokenizer in (TRIMMING, COMPOSING, DROPPING):
        ids, spans_N2 = encode_with_spans(tokenizer, text)
        assert len(ids) == len(spans_N2)
        assert_tiles(spans_N2.tolist(), text)


def test_dropped_blanks_belong_to_the_next_word_and_at_the_end_to_the_last():
    assert encode_with_spans(DROPPING, "  ab  c \n")[1].tolist() == [[0, 4], [4, 9]]


def test_composed_letters_keep_their_place():
    text = "cafe\u0301!"
    assert unicodedata.normalize("NFC", text) == "caf\u00e9!"
    spans = encode_with_spans(COMPOSING, text)[1].tolist()
    assert_tiles(spans, text)
    assert spans[-1] == [5, 6]


class LowerCasing(ByT5Tokenizer):
    def _tokenize(self, text, **kwargs):
        return super()._tokenize(text.lower(), **kwargs)


class BlankDropping(ByT5Tokenizer):
    def _tokenize(self, text, **kwargs):
        return super()._tokenize(text.replace(" ", ""), **kwargs)


def test_blanks_that_decoding_lacks_are_found_in_the_text():
    assert encode_with_spans(BlankDropping(), "a b  ")[1].tolist() == [[0, 1], [1, 5]]


def test_a_tokenizer_that_changes_the_text_and_has_no_offsets_is_refused():
    with pytest.raises(
        ValueError, match=r"tokenizer \(LowerCasing\) must decode its tokens .* character 2; use a fast"
    ):
        encode_with_spans(LowerCasing(), "abCd")


@given(st.data())
def test_majority_counts_characters_and_ties_go_to_the_lowest_class(data):
    classes = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=12))
    place = st.integers(0, len(classes))
    spans = [sorted(span) for span in data.draw(st.lists(st.tuples(place, place), max_size=6))]
    expected = []
    for start, end in spans:
        counts = Counter(classes[start:end])
        expected.append(min(counts, key=lambda c: (-counts[c], c)) if counts else -1)
    spans_N2 = np.array(spans, dtype=np.int64).reshape(-1, 2)
    assert majority_class(np.array(classes), spans_N2, 4).tolist() == expected


def test_more_tokens_than_are_counted_at_once(monkeypatch):
    classes_M = np.random.default_rng(0).integers(0, 3, 100)
    spans_N2 = np.stack([np.arange(99), np.arange(99) + 2], axis=1)
    at_once = majority_class(classes_M, spans_N2, 3)
    monkeypatch.setattr("pathmoe_eval.classes.token_spans._TOKENS_AT_ONCE", 7)
    assert np.array_equal(majority_class(classes_M, spans_N2, 3), at_once)


@given(st.sampled_from([*STDLIB[:4], OTHER_SCRIPTS]), st.integers(1, 400))
def test_a_document_that_was_cut_keeps_its_spans(text, length):
    ids = encode(BPE, [text])[0][:length]
    _, spans_N2 = encode_with_spans(BPE, text)
    cut, spans = spans_of_ids(BPE, ids)
    whole = [token for token in range(len(ids)) if "\ufffd" not in cut[slice(*spans[token])]]
    assert [spans[token] for token in whole] == [tuple(spans_N2[token].tolist()) for token in whole]
    # All but a last character that was cut.
    assert len(whole) >= len(ids) - 3


@given(st.lists(st.integers(1, 699), max_size=40))
def test_any_ids_have_spans_that_tile_their_text(ids):
    text, spans = spans_of_ids(BPE, ids)
    assert len(spans) == len(ids)
    assert_tiles(spans, text)
    for span, id in zip(spans, ids, strict=True):
        alone = BPE.decode([id])
        if "\ufffd" not in alone and "\ufffd" not in text[slice(*span)]:
            assert text[slice(*span)] == alone


def test_blanks_before_words_stay_where_the_tokenizer_marks_them():
    backend = Tokenizer(models.WordLevel({"\u2581a": 0, "\u2581b": 1, "c": 2}, unk_token="c"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    marking = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert spans_of_ids(marking, [0, 2, 1]) == ("ac b", [(0, 1), (1, 2), (2, 4)])
