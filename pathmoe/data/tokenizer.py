"""The tokenizer: a byte-level BPE trained on the source, or any that transformers loads."""

# Shapes: V vocabulary.

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

TRAIN_BPE = "train-bpe"
"""The value of `data.tokenizer` that asks for a tokenizer trained on the source."""

END_OF_TEXT = "<|endoftext|>"
_T = TypeVar("_T")
_SMALLEST_VOCAB = len(pre_tokenizers.ByteLevel.alphabet()) + 1


def train_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE (the GPT-2 recipe) of at most `vocab_size` tokens, trained on `texts`; deterministic.

    `<|endoftext|>` is bos, eos and pad. Every unicode text encodes and decodes to itself, also one that spells
    `<|endoftext|>`: text never becomes a special token. Raises ValueError if vocab_size cannot hold all bytes.
    """
    if vocab_size < _SMALLEST_VOCAB:
        raise ValueError(
            f"data.vocab_size ({vocab_size}) must be at least {_SMALLEST_VOCAB}, all bytes and {END_OF_TEXT}; raise it"
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Tokenizer from a local folder or the hub. Raises ValueError if there is none or it has no eos token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"data.tokenizer ({name}) could not be loaded ({reason}); "
            f"give {TRAIN_BPE}, a folder with a saved tokenizer, or the name of one on the hub"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"data.tokenizer ({name}) must have an eos token, which ends each document; give another one")
    return tokenizer


def check_vocab_size(name: str, tokenizer: PreTrainedTokenizerBase, vocab_size: int | None) -> None:
    """Raise ValueError if the model's vocabulary cannot hold every token."""
    if vocab_size is not None and len(tokenizer) > vocab_size:
        raise ValueError(
            f"data.tokenizer ({name}) has {len(tokenizer)} tokens, more than model.config.vocab_size ({vocab_size}); "
            f"set model.config.vocab_size to at least {len(tokenizer)}"
        )


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without bos and eos; text that spells a special token stays text."""
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def text_batches(texts: Iterable[_T], num_characters: int, length_of: Callable[[_T], int]) -> Iterator[list[_T]]:
    """Texts, or what has one of this length, in lists to encode: each ends with the text that takes it above
    `num_characters`, which is enough to keep the tokenizer's threads busy and bounds the memory."""
    batch: list[_T] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += length_of(text)
        if size > num_characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of all that decides how the tokenizer encodes documents."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    ends = (type(tokenizer).__name__, tokenizer.bos_token_id, tokenizer.eos_token_id)
    return hashlib.sha256(f"{ends}{described}".encode()).hexdigest()


def token_byte_lengths(tokenizer: PreTrainedTokenizerBase) -> npt.NDArray[np.int64]:
    """UTF-8 bytes of text that each token id stands for, int64 [V]; special tokens stand for none.

    Exact for byte-level BPE, whose alphabet has one character per byte. For others (a SentencePiece model that puts a
    space before the text, a normaliser) the sum over a document can differ from its bytes; the caller rescales.
    """
    added, special = tokenizer.get_added_vocab(), set(tokenizer.all_special_ids)
    count_bytes = len if _is_byte_level(tokenizer) else _piece_bytes
    vocab = tokenizer.get_vocab()
    lengths_V = np.zeros(max(vocab.values()) + 1, dtype=np.int64)
    for token, token_id in vocab.items():
        if token_id not in special:
            lengths_V[token_id] = len(token.encode()) if token in added else count_bytes(token)
    return lengths_V


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and isinstance(backend.decoder, decoders.ByteLevel)


def _piece_bytes(piece: str) -> int:
    """Bytes of a SentencePiece piece: `<0x0A>` is one byte, U+2581 stands for a space."""
    return 1 if re.fullmatch(r"<0x[0-9A-F]{2}>", piece) else len(piece.replace("\u2581", " ").encode())
