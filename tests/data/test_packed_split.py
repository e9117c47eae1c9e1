import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from pathmoe.data import packed_split
from pathmoe.data.blocks import Blocks
from pathmoe.data.packed_split import pack_split
from pathmoe.data.tokenizer import train_bpe

TOKENIZER = train_bpe(["the quick brown fox jumps over the lazy dog " * 3, "äöü 漢字 " * 5], 280)
TEXTS = st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=12)


def target_bytes(blocks: Blocks) -> int:
    """Bytes behind the targets, counted token by token."""
    labels = blocks.batch(np.arange(len(blocks)))["shift_labels"].flatten().tolist()
    pieces = [TOKENIZER.convert_ids_to_tokens(label) for label in labels if label not in (-100, TOKENIZER.eos_token_id)]
    # In the byte-level alphabet one character is one byte.
    return sum(len(piece) for piece in pieces)


@given(texts=TEXTS, length=st.integers(1, 12))
def test_counts_and_bytes_per_target_are_exact(texts: list[str], length: int) -> None:
    tables: list[pa.Table] = []
    counts = pack_split(texts, TOKENIZER, length, tables.append)
    blocks = Blocks.in_memory(tables)
    assert counts.documents == len(texts)
    assert counts.bytes == sum(len(text.encode()) for text in texts)
    assert (
        counts.content_sha256
        == hashlib.sha256(b"".join(hashlib.sha256(text.encode()).digest() for text in texts)).hexdigest()
    )
    assert counts.blocks == len(blocks)
    assert counts.targets == blocks.num_targets(np.arange(len(blocks))).sum()
    assert counts.tokens == counts.dropped_tokens + (counts.blocks and counts.blocks * length + 1)
    if counts.targets:
        assert counts.bytes_per_target * counts.targets == pytest.approx(target_bytes(blocks), rel=1e-12)


@given(texts=TEXTS)
def test_all_bytes_are_counted_when_nothing_is_dropped(texts: list[str]) -> None:
    # One block that holds the whole stream: every token of every document is a target.
    length = sum(len(ids) + 2 for ids in TOKENIZER(texts, add_special_tokens=False)["input_ids"]) - 1
    tables: list[pa.Table] = []
    counts = pack_split(texts, TOKENIZER, length, tables.append)
    assert (counts.blocks, counts.dropped_tokens) == (1, 0)
    assert counts.targets == length - (len(texts) - 1)
    assert counts.bytes_per_target * counts.targets == pytest.approx(counts.bytes, rel=1e-12)


def test_a_tokenizer_that_normalises_shares_out_the_bytes_of_the_documents() -> None:
    tokenizer = train_bpe(["aaa bbb"], 257)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("ä", "a")
    texts = ["ää", "äa"]
    tables: list[pa.Table] = []
    counts = pack_split(texts, tokenizer, 7, tables.append)
    # Seven bytes in documents, four after normalisation; all four are targets.
    assert counts.targets == 6
    assert counts.bytes_per_target == pytest.approx(7 / 6)


def test_batches_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text number {number} " * 5 for number in range(40)]
    whole: list[pa.Table] = []
    counts = pack_split(texts, TOKENIZER, 16, whole.append)
    monkeypatch.setattr(packed_split, "_CHARACTERS_PER_BATCH", 200)
    pieces: list[pa.Table] = []
    assert pack_split(texts, TOKENIZER, 16, pieces.append) == counts
    assert len(pieces) > len(whole)
    assert pa.concat_tables(pieces).combine_chunks().equals(pa.concat_tables(whole).combine_chunks())
