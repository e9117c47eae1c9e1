import json
from dataclasses import replace
from pathlib import Path

import pytest

from pathmoe.data.estimate import Measured, estimate_lines, measure_source
from pathmoe.data.manifest import SplitManifest
from pathmoe.data.preparation import prepare
from pathmoe.data.recipe import Recipe
from pathmoe.data.shards import Shard, read_shards
from pathmoe.data.sources import Source

COUNTS = SplitManifest(
    content_sha256="ab", documents=3, bytes=4_000_000, tokens=1_000_000, blocks=6, targets=384, dropped_tokens=15,
    bytes_per_target=2.5,
)  # fmt: skip


def test_times_and_sizes_are_in_proportion_to_tokens() -> None:
    shards = [Shard(name=f"train/{number}", size=1_100_000, sha256="", counts=COUNTS) for number in range(2)]
    measured = Measured.of_shards(shards, seconds=1.0, num_workers=4)
    assert measured.rates() == "2,000,000 tokens/s, 8.00 MB/s of text"
    first, hundred_billion, source = estimate_lines(measured, total_tokens=6_000_000)
    assert "2,000,000 tokens of 8,000,000 bytes of text, 2,200,000 bytes on disk" in first and "4 workers" in first
    # 1e11 / 2e6 = 50,000 s = 13.9 h, at 2.2 bytes a token with two shards of 1.1 bytes.
    assert hundred_billion == "  100 B tokens: 13.9 hours, 110.00 GB of disk"
    assert source == "  this source: 3.0 seconds, 0.01 GB of disk"
    assert len(estimate_lines(measured)) == 2


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_source_is_measured_at_its_beginning(tmp_path: Path, num_workers: int) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"text number {number % 100} " * 9}) for number in range(500)))
    recipe = Recipe(
        source=Source(source=str(file)), validation_split=None, validation_fraction=0.1, tokenizer="train-bpe",
        vocab_size=300, sequence_length=32,
    )  # fmt: skip
    measured, total_tokens = measure_source(recipe, file.stat().st_size // 4, num_workers)
    assert measured.num_workers == num_workers
    assert 0.6 < measured.text_bytes / (file.stat().st_size / 4) < 1
    assert measured.tokens_per_second > 0
    (folder,) = prepare([recipe], tmp_path / "cache")
    shards = read_shards(folder)
    # The texts are alike, so a part tells of the whole.
    assert total_tokens == pytest.approx(sum(shard.counts.tokens for shard in shards), rel=0.1)
    per_token = sum(shard.size for shard in shards) / sum(shard.counts.tokens for shard in shards)
    assert measured.disk_bytes / measured.tokens == pytest.approx(per_token, rel=0.1)


def test_the_size_of_a_built_in_source_is_not_known() -> None:
    recipe = Recipe(
        source=Source(source="c-functions", num_documents=50), validation_split=None, validation_fraction=0.1,
        tokenizer="train-bpe", vocab_size=300, sequence_length=32,
    )  # fmt: skip
    measured, total_tokens = measure_source(recipe, 1000, 2)
    assert total_tokens is None and measured.num_workers == 1
    with pytest.raises(ValueError, match=r"data\.vocab_size \(0\)"):
        measure_source(replace(recipe, vocab_size=None), 1000, 1)
