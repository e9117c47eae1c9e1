"""What a run was trained and measured on, in numbers: kept beside prepared data and beside every result."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from pathmoe.data.cache import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class SplitManifest:
    """One split."""

    content_sha256: str
    """Hash of the documents in order; of several shards or sources, hash of theirs."""
    documents: int
    bytes: int
    """UTF-8 bytes of the documents."""
    tokens: int
    """Tokens of the stream, bos and eos included."""
    blocks: int
    targets: int
    """Tokens predicted when all blocks are read once."""
    dropped_tokens: int
    """Tokens at the end of the stream, or of that of each shard, that no block holds."""
    bytes_per_target: float
    """UTF-8 bytes of text behind the targets, per target: bits per byte = mean nll / ln 2 / bytes_per_target.
    Exact for byte-level tokenizers that do not normalise; for others the bytes of the documents are shared out."""

    @classmethod
    def of_parts(cls, parts: Sequence[Self]) -> Self:
        """Counts of a split that is made of others: shards, or the sources of a mixture."""
        if len(parts) == 1:
            return parts[0]
        counted = ("documents", "bytes", "tokens", "blocks", "targets", "dropped_tokens")
        sums = {name: sum(getattr(part, name) for part in parts) for name in counted}
        behind_targets = sum(part.bytes_per_target * part.targets for part in parts)
        return cls(
            content_sha256=hashlib.sha256("".join(part.content_sha256 for part in parts).encode()).hexdigest(),
            bytes_per_target=behind_targets / sums["targets"] if sums["targets"] else 0.0,
            **sums,
        )


@dataclass(frozen=True, kw_only=True)
class MixedSource:
    """One source of a mixture."""

    label: str
    share: float
    """Of the training tokens."""
    validation: SplitManifest
    train: SplitManifest

    def summary(self, sequence_length: int) -> str:
        """One line for people."""
        tokens = self.train.blocks * sequence_length
        return (
            f"  {self.share:.1%} {self.label}: {tokens:,} tokens, an epoch in {tokens / self.share:,.0f} of the run; "
            f"{self.validation.blocks:,} blocks of validation, sha256 {self.train.content_sha256[:12]}"
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A source, or the sources of a mixture, the tokenizer and the splits."""

    source: str | list[str]
    subset: str | None
    split: str | None
    """Split trained on; None where the source is read as files, or built in, and has no named splits."""
    interpreter: str | None
    """Version of the interpreter whose library python-stdlib is; results of different ones do not compare."""
    tokenizer: str
    tokenizer_sha256: str
    vocab_size: int
    """Tokens that the tokenizer has."""
    sequence_length: int
    validation: SplitManifest
    train: SplitManifest | None
    """None where the source is streamed: nobody has counted it."""
    mixture: list[MixedSource] | None = None
    """Where there are several sources, of which `train` and `validation` are the sums."""

    def write(self, file: Path) -> None:
        """Write as JSON."""
        write_json(file, asdict(self))

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read what `write` wrote."""
        fields = read_json(file)
        for split in ("train", "validation"):
            fields[split] = SplitManifest(**fields[split])
        return cls(**fields)

    def summary(self) -> str:
        """Two or three lines for people: sizes, hashes, what was dropped."""
        interpreter = f" of Python {self.interpreter}" if self.interpreter else ""
        tokenizer = f"{self.tokenizer} ({self.vocab_size:,} tokens, sha256 {self.tokenizer_sha256[:12]})"
        source = f"{self.source}{interpreter}" if self.split is None else f"{self.source} (its split {self.split})"
        lines = [f"data: {source}, tokenizer {tokenizer}, sequence length {self.sequence_length}"]
        for name, split in (("train", self.train), ("validation", self.validation)):
            if split is not None:
                lines.append(
                    f"  {name}: {split.documents:,} documents, {split.bytes:,} bytes, {split.tokens:,} tokens, "
                    f"{split.blocks:,} blocks ({split.dropped_tokens:,} tokens dropped), "
                    f"{split.bytes_per_target:.3f} bytes a target, sha256 {split.content_sha256[:12]}"
                )
        lines += [mixed.summary(self.sequence_length) for mixed in self.mixture or ()]
        return "\n".join(lines)
