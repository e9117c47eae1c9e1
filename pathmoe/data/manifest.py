"""What a run was trained and measured on, in numbers: kept beside prepared data and beside every result."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, kw_only=True)
class SplitManifest:
    """One split."""

    content_sha256: str
    """Hash of the documents in order."""
    documents: int
    bytes: int
    """UTF-8 bytes of the documents."""
    tokens: int
    """Tokens of the stream, bos and eos included."""
    blocks: int
    targets: int
    """Tokens predicted when all blocks are read once."""
    dropped_tokens: int
    """Tokens at the end of the stream that no block holds."""
    bytes_per_target: float
    """UTF-8 bytes of text behind the targets, per target: bits per byte = mean nll / ln 2 / bytes_per_target.
    Exact for byte-level tokenizers that do not normalise; for others the bytes of the documents are shared out."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A source, its tokenizer and its splits."""

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

    def write(self, file: Path) -> None:
        """Write as JSON."""
        file.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read what `write` wrote."""
        fields = json.loads(file.read_text())
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
        return "\n".join(lines)
