"""How long a corpus takes to prepare and how large it gets, from a rate that was measured."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from pathmoe.data.manifest import SplitManifest
from pathmoe.data.packed_split import pack_split
from pathmoe.data.parallel import run_jobs
from pathmoe.data.pieces import Piece, cut_source, read_piece
from pathmoe.data.recipe import Recipe
from pathmoe.data.shards import Shard
from pathmoe.data.splitting import measure
from pathmoe.data.tokenizer import TRAIN_BPE, load_tokenizer, train_bpe

_TOKENS = 100_000_000_000
_FACTORS = ((86_400, "days"), (3_600, "hours"), (60, "minutes"), (1, "seconds"))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What some workers did together."""

    num_workers: int
    tokens: int
    text_bytes: int
    disk_bytes: int
    tokens_per_second: float
    """Of all workers together."""

    @classmethod
    def of_shards(cls, shards: Sequence[Shard], seconds: float, num_workers: int) -> Self:
        """Of a preparation that wrote these in this time."""
        counts = SplitManifest.of_parts([shard.counts for shard in shards])
        return cls(
            num_workers=num_workers,
            tokens=counts.tokens,
            text_bytes=counts.bytes,
            disk_bytes=sum(shard.size for shard in shards),
            tokens_per_second=counts.tokens / seconds,
        )

    def rates(self) -> str:
        """Tokens and bytes of text a second, for people."""
        text_rate = self.tokens_per_second * self.text_bytes / max(self.tokens, 1)
        return f"{self.tokens_per_second:,.0f} tokens/s, {text_rate / 1e6:,.2f} MB/s of text"


def estimate_lines(measured: Measured, total_tokens: float | None = None) -> list[str]:
    """What was measured, and what follows for 100 B tokens and for the whole source where its size is known."""
    lines = [
        f"  measured: {measured.tokens:,} tokens of {measured.text_bytes:,} bytes of text, {measured.disk_bytes:,} "
        f"bytes on disk; {measured.rates()} with {measured.num_workers} worker{'s' * (measured.num_workers > 1)}"
    ]
    for name, tokens in (("100 B tokens", _TOKENS), ("this source", total_tokens)):
        if tokens is not None and measured.tokens:
            disk = measured.disk_bytes * tokens / measured.tokens
            lines.append(f"  {name}: {_time(tokens / measured.tokens_per_second)}, {disk / 1e9:,.2f} GB of disk")
    return lines


def measure_source(recipe: Recipe, num_bytes: int, num_workers: int) -> tuple[Measured, float | None]:
    """Read, hash, tokenise and pack about the first `num_bytes` of a source, a part of them on each worker.

    A tokenizer to train is trained on these. Nothing is kept. Returns also the tokens that the source has at this rate
    of tokens per byte; None where the size of the source is not known.
    """
    pieces = cut_source(recipe.source, -(-num_bytes // num_workers))
    sample = pieces[:num_workers]
    with tempfile.TemporaryDirectory() as folder:
        name = recipe.tokenizer
        if name == TRAIN_BPE:
            name = folder
            texts = (document.text for piece in sample for document in read_piece(piece))
            train_bpe(texts, recipe.vocab_size or 0).save_pretrained(name)
        jobs = [_Sample(piece, name, recipe.sequence_length) for piece in sample]
        parts = list(run_jobs(_prepare_sample, jobs, num_workers))
    counts = SplitManifest.of_parts([part.counts for part in parts])
    measured = Measured(
        num_workers=len(sample),
        tokens=counts.tokens,
        text_bytes=counts.bytes,
        disk_bytes=sum(part.disk_bytes for part in parts),
        tokens_per_second=sum(part.counts.tokens / part.seconds for part in parts),
    )
    sizes = [piece.num_bytes for piece in pieces]
    if None in sizes:
        return measured, None
    total, of_sample = (sum(size or 0 for size in some) for some in (sizes, sizes[: len(sample)]))
    return measured, counts.tokens * total / of_sample


class _Sample(NamedTuple):
    piece: Piece
    tokenizer: str
    sequence_length: int


class _Prepared(NamedTuple):
    counts: SplitManifest
    disk_bytes: int
    seconds: float


def _prepare_sample(sample: _Sample) -> _Prepared:
    """Both passes of a preparation over a piece, without a file."""
    tokenizer = load_tokenizer(sample.tokenizer)
    sizes: list[int] = []
    start = time.perf_counter()
    measure(read_piece(sample.piece))
    texts = (document.text for document in read_piece(sample.piece))
    counts = pack_split(texts, tokenizer, sample.sequence_length, lambda table: sizes.append(table.nbytes))
    return _Prepared(counts, sum(sizes), time.perf_counter() - start)


def _time(seconds: float) -> str:
    factor, unit = next((f, u) for f, u in _FACTORS if seconds >= f or f == 1)
    return f"{seconds / factor:,.1f} {unit}"
