# Shapes: V vocabulary.

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pathmoe.data.python_stdlib import python_stdlib
from pathmoe.data.tokenizer import (
    END_OF_TEXT,
    check_vocab_size,
    encode,
    fingerprint,
    load_tokenizer,
    text_batches,
    token_byte_lengths,
    train_bpe,
)

TEXTS = [document.text for document in python_stdlib() if document.group in ("json", "tomllib", "zoneinfo")]
TOKENIZER = train_bpe(TEXTS, 600)
ANY_TEXT = (
    st.text() | st.text(alphabet=" \t\n\r.,'!?aé\u0301漢😀\x00") | st.sampled_from([END_OF_TEXT, f"a{END_OF_TEXT} b"])
)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """A tokenizer in the manner of Llama-2: pieces with U+2581 for spaces, bytes as `<0x0A>`, a space put in front."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "\u2581a", "é"]
    backend = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[("\u2581", "a")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@given(text=ANY_TEXT)
@example("")
@example("\r\n  'll <|endoftext|>")
def test_any_text_survives_encoding(text: str) -> None:
    ids = encode(TOKENIZER, [text])[0]
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.eos_token_id not in ids


@given(text=ANY_TEXT)
def test_token_bytes_add_up_to_the_text(text: str) -> None:
    assert token_byte_lengths(TOKENIZER)[encode(TOKENIZER, [text])[0]].sum() == len(text.encode())


def test_each_token_has_the_bytes_that_it_decodes_to() -> None:
    lengths_V = token_byte_lengths(TOKENIZER)
    assert lengths_V[TOKENIZER.eos_token_id] == 0
    for token_id in range(1, len(TOKENIZER)):
        decoded = TOKENIZER.decode([token_id])
        if "\ufffd" not in decoded:  # a part of a character decodes to the replacement character
            assert lengths_V[token_id] == len(decoded.encode())


def test_added_tokens_that_are_text_count_their_bytes() -> None:
    tokenizer = train_bpe(TEXTS, 300)
    tokenizer.add_tokens(["    ", "é漢"])
    for text in ("x    y", "é漢"):
        assert token_byte_lengths(tokenizer)[encode(tokenizer, [text])[0]].sum() == len(text.encode())


def test_bytes_of_a_sentencepiece_tokenizer() -> None:
    tokenizer = sentencepiece_like()
    lengths_V = token_byte_lengths(tokenizer)
    pieces = tokenizer.convert_ids_to_tokens(encode(tokenizer, ["a aé\n"])[0])
    assert pieces == ["\u2581a", "\u2581a", "é", "<0x0A>"]
    assert lengths_V[tokenizer.convert_tokens_to_ids(pieces)].tolist() == [2, 2, 2, 1]
    assert lengths_V[tokenizer.convert_tokens_to_ids(["<s>", "</s>"])].tolist() == [0, 0]


def test_training_is_deterministic_and_has_the_size_asked_for() -> None:
    again = train_bpe(TEXTS, 600)
    assert len(again) == 600
    assert fingerprint(again) == fingerprint(TOKENIZER)
    assert fingerprint(train_bpe(TEXTS, 599)) != fingerprint(TOKENIZER)


def test_threads_do_not_change_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    for parallelism in ("true", "false"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallelism)
        again = train_bpe(TEXTS, 600)
        assert fingerprint(again) == fingerprint(TOKENIZER)
        assert encode(again, TEXTS) == encode(TOKENIZER, TEXTS)


def test_special_tokens_of_the_trained_tokenizer() -> None:
    assert TOKENIZER.bos_token == TOKENIZER.eos_token == TOKENIZER.pad_token == END_OF_TEXT
    assert TOKENIZER.eos_token_id == 0


def test_a_saved_tokenizer_loads_as_itself(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(str(tmp_path))
    loaded = load_tokenizer(str(tmp_path))
    assert fingerprint(loaded) == fingerprint(TOKENIZER)
    assert encode(loaded, TEXTS) == encode(TOKENIZER, TEXTS)


def test_encoding_adds_no_special_tokens() -> None:
    tokenizer = sentencepiece_like()
    assert tokenizer.bos_token_id not in encode(tokenizer, ["a"])[0]
    assert all(TOKENIZER.bos_token_id not in ids for ids in encode(TOKENIZER, TEXTS))


@given(st.lists(st.text(max_size=8)), st.integers(0, 20))
def test_batches_of_texts_are_cut_where_they_are_long_enough(texts: list[str], num_characters: int) -> None:
    batches = list(text_batches(texts, num_characters, len))
    assert [text for batch in batches for text in batch] == texts
    for batch in batches:
        assert len("".join(batch[:-1])) <= num_characters
    assert all(len("".join(batch)) > num_characters for batch in batches[:-1])


def test_a_tokenizer_larger_than_the_vocabulary_is_refused() -> None:
    check_vocab_size("name", TOKENIZER, 600)
    check_vocab_size("name", TOKENIZER, None)
    message = r"data\.tokenizer \(name\) has 600 tokens, more than model\.config\.vocab_size \(599\); set .* least 600"
    with pytest.raises(ValueError, match=message):
        check_vocab_size("name", TOKENIZER, 599)


def test_a_vocabulary_smaller_than_the_bytes_is_refused() -> None:
    assert len(train_bpe(["a"], 257)) == 257
    with pytest.raises(ValueError, match=r"data\.vocab_size \(256\) must be at least 257"):
        train_bpe(["a"], 256)


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.tokenizer \(.*nowhere\) could not be loaded .*; give train-bpe"):
        load_tokenizer(str(tmp_path / "nowhere"))


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=r"must have an eos token"):
        load_tokenizer(str(tmp_path))
