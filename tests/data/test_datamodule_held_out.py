"""The documents that a data module holds out are those that its validation blocks are packed from."""

import hashlib
import json
from pathlib import Path

import pytest

from pathmoe.data import TokenDataModule, train_bpe
from pathmoe.data.splitting import text_hash


def check(data: TokenDataModule) -> list[str]:
    texts = [document.text for document in data.held_out_documents()]
    data.prepare_data()
    data.setup("validate")
    validation = data.manifest.validation
    content = hashlib.sha256(b"".join(map(text_hash, texts))).hexdigest()
    assert (len(texts), content) == (validation.documents, validation.content_sha256)
    return texts


@pytest.mark.parametrize("validation_fraction", [0.05, 0.4])
def test_of_prepared_data(validation_fraction: float) -> None:
    data = TokenDataModule(
        source="c-functions",
        num_documents=60,
        vocab_size=300,
        sequence_length=32,
        validation_fraction=validation_fraction,
    )
    assert 0 < len(check(data)) < 60


def test_of_a_stream(tmp_path: Path) -> None:
    texts = ["" if number == 3 else f"document {number} with some words in it" for number in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    train_bpe(texts, 280).save_pretrained(str(tmp_path / "tokenizer"))
    data = TokenDataModule(
        source=str(tmp_path / "a.jsonl"),
        tokenizer=str(tmp_path / "tokenizer"),
        streaming=True,
        validation_documents=9,
        sequence_length=32,
    )
    # The empty one is skipped by the source.
    assert check(data) == [*texts[:3], *texts[4:10]]
