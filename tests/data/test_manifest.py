import json
from dataclasses import replace
from pathlib import Path

import pytest

from pathmoe.data.manifest import Manifest, SplitManifest

SPLIT = SplitManifest(
    content_sha256="ab" * 32, documents=3, bytes=1000, tokens=400, blocks=6, targets=384, dropped_tokens=15,
    bytes_per_target=2.5,
)  # fmt: skip
MANIFEST = Manifest(
    source="python-stdlib", subset=None, split=None, interpreter="3.11.7", tokenizer="train-bpe",
    tokenizer_sha256="cd" * 32, vocab_size=512, sequence_length=64, validation=SPLIT,
    train=replace(SPLIT, documents=70),
)  # fmt: skip


@pytest.mark.parametrize("manifest", [MANIFEST, replace(MANIFEST, source=["a.txt", "b.txt"], interpreter=None)])
def test_manifest_survives_its_file(manifest: Manifest, tmp_path: Path) -> None:
    manifest.write(tmp_path / "manifest.json")
    assert Manifest.read(tmp_path / "manifest.json") == manifest
    assert json.loads((tmp_path / "manifest.json").read_text())["validation"]["targets"] == 384


def test_summary_names_sizes_and_hashes_of_what_there_is() -> None:
    summary = MANIFEST.summary()
    for part in ("Python 3.11.7", "512 tokens", "cdcdcdcdcdcd", "70 documents", "15 tokens dropped", "2.500 bytes"):
        assert part in summary
    assert "data: python-stdlib of Python 3.11.7, tokenizer" in summary
    assert "data: a/b (its split train), tokenizer" in replace(MANIFEST, source="a/b", split="train").summary()
    streamed = replace(MANIFEST, train=None).summary()
    assert "train:" not in streamed and "validation: 3 documents" in streamed
