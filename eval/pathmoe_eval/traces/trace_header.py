"""The form of a trace folder: what trace.json says, and which columns its Arrow files hold."""

# Shapes: N tokens, L MoE layers, K experts per token, E experts.

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

FORMAT_VERSION = 1
INDEX_FILE = "trace.json"
TOKENS_FILE = "tokens.arrow"
SEQUENCES_FILE = "sequences.arrow"

_MAX_EXPERTS = 1 << 16  # their ids are uint16
_MAX_VOCAB_SIZE = 1 << 31  # token ids are int32


@dataclass(frozen=True, kw_only=True)
class TraceHeader:
    """What a trace was recorded from, and what it holds for each token."""

    num_layers: int
    """MoE layers; dense ones are not in a trace."""
    num_experts: int
    """Experts that a router chooses from, in each layer."""
    num_experts_per_tok: int
    """Experts that a token goes to, in each layer."""
    layer_names: tuple[str, ...]
    """Name of each MoE layer's module in the model."""
    router_of_layer: tuple[int, ...]
    """One number a layer, equal where layers share a router's parameters."""
    model: str
    """Name or path of the model."""
    tokenizer: str
    """Name or path of the tokenizer; empty where nobody knows."""
    data: str
    """What was read."""
    vocab_size: int
    """Token ids are below it."""
    has_weights: bool
    """Whether the weight of each chosen expert is there."""
    has_logits: bool
    """Whether router logits are there."""
    has_predicted_ids: bool
    """Whether the model's most probable next token is there."""
    is_sorted_by_weight: bool = True
    """Whether a token's experts stand in the order of their weights, so that the first is the top-1 choice."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Versions, command, time: whatever JSON can write."""

    def __post_init__(self) -> None:
        """Check every field against its rule."""
        as_many = f"be as many as num_layers ({self.num_layers})"
        rules: list[tuple[str, bool, str]] = [
            ("num_layers", self.num_layers >= 1, "be at least 1"),
            ("num_experts", 1 <= self.num_experts <= _MAX_EXPERTS, f"be between 1 and {_MAX_EXPERTS}"),
            (
                "num_experts_per_tok",
                1 <= self.num_experts_per_tok <= self.num_experts,
                f"be between 1 and num_experts ({self.num_experts})",
            ),
            ("layer_names", len(self.layer_names) == self.num_layers, as_many),
            ("router_of_layer", len(self.router_of_layer) == self.num_layers, as_many),
            ("vocab_size", 1 <= self.vocab_size <= _MAX_VOCAB_SIZE, f"be between 1 and {_MAX_VOCAB_SIZE}"),
        ]
        for key, is_right, rule in rules:
            if not is_right:
                value = getattr(self, key)
                found = f"{len(value)} of them" if isinstance(value, tuple) else value
                raise ValueError(f"{key} ({found}) must {rule}; take it from the model's configuration")


class Column(NamedTuple):
    """An array with one row a token: a column of the token file, and a field of `RoutingChunk`."""

    name: str
    attribute: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Numbers a token."""
        return int(np.prod(self.shape, dtype=np.int64))


def token_columns(header: TraceHeader) -> list[Column]:
    """The columns of a trace's token file."""
    ids = np.dtype(np.uint8 if header.num_experts <= 1 << 8 else np.uint16)
    chosen = (header.num_layers, header.num_experts_per_tok)
    columns = [
        (True, Column("expert_ids", "expert_ids_NLK", ids, chosen)),
        (True, Column("token_ids", "token_ids_N", np.dtype(np.int32), ())),
        (header.has_weights, Column("weights", "weights_NLK", np.dtype(np.float32), chosen)),
        (
            header.has_logits,
            Column("logits", "logits_NLE", np.dtype(np.float32), (header.num_layers, header.num_experts)),
        ),
        (header.has_predicted_ids, Column("predicted_ids", "predicted_ids_N", np.dtype(np.int32), ())),
    ]
    return [column for is_there, column in columns if is_there]


def tokens_schema(header: TraceHeader) -> pa.Schema:
    """Arrow schema of the token file: no nulls, a list of fixed size for what has more than one number a token."""
    types = {column: pa.from_numpy_dtype(column.dtype) for column in token_columns(header)}
    return pa.schema(
        pa.field(
            column.name,
            pa.list_(pa.field("item", number, nullable=False), column.size) if column.shape else number,
            nullable=False,
        )
        for column, number in types.items()
    )


SEQUENCES_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True)
class TraceIndex:
    """All of trace.json: the header, and the sizes that the two Arrow files must have."""

    header: TraceHeader
    num_tokens: int
    num_sequences: int
    tokens_per_batch: int
    """Tokens of each record batch of the token file, but for the last, which holds the rest."""
    tokens_bytes: int
    sequences_bytes: int

    def to_json(self) -> str:
        """The text of trace.json.

        Raises ValueError where `header.provenance` holds what JSON can't write.
        """
        sizes = {name: getattr(self, name) for name in _SIZES}
        header = asdict(self.header)
        try:
            return json.dumps({"format_version": FORMAT_VERSION, **sizes, **header}, indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"provenance ({error}) must be what JSON can write; use text and finite numbers"
            ) from error


_SIZES = [item.name for item in fields(TraceIndex) if item.name != "header"]


def read_index(folder: Path) -> TraceIndex:
    """Read a folder's trace.json.

    Raises:
        ValueError: it is not there, no JSON, of another version, or breaks a rule.
    """
    file = folder / INDEX_FILE
    if not file.is_file():
        raise ValueError(f"{folder} (no {INDEX_FILE}) must be the folder of a trace; record one, or check the path")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} ({error}) must be whole JSON; it was cut short or changed, copy it again") from error
    version = values.pop("format_version", None) if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{file}: format_version ({version}) must be {FORMAT_VERSION}; read it with the release that wrote it, "
            "or record it again"
        )
    try:
        _check_keys(values)
        sizes = {name: values.pop(name) for name in _SIZES}
        values |= {name: tuple(values[name]) for name in ("layer_names", "router_of_layer")}
        return TraceIndex(header=TraceHeader(**values), **sizes)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


_KINDS: dict[str, type] = {
    **dict.fromkeys(["num_layers", "num_experts", "num_experts_per_tok", "vocab_size", *_SIZES], int),
    **dict.fromkeys(["model", "tokenizer", "data"], str),
    **dict.fromkeys(["has_weights", "has_logits", "has_predicted_ids", "is_sorted_by_weight"], bool),
    **dict.fromkeys(["layer_names", "router_of_layer"], list),
    "provenance": dict,
}
_KIND_OF_ENTRIES: dict[str, type] = {"layer_names": str, "router_of_layer": int}


def _check_keys(values: dict[str, Any]) -> None:
    for key in sorted(_KINDS.keys() ^ values.keys()):
        raise ValueError(
            f"{key} ({'missing' if key in _KINDS else 'unknown'}) must be as it was written; copy it again"
        )
    for key, kind in _KINDS.items():
        entries = values[key] if key in _KIND_OF_ENTRIES and isinstance(values[key], list) else []
        if type(values[key]) is not kind or any(type(entry) is not _KIND_OF_ENTRIES[key] for entry in entries):
            raise ValueError(f"{key} ({values[key]!r:.60}) must be of the type that was written; copy it again")
        if key in _SIZES and values[key] < 1:
            raise ValueError(f"{key} ({values[key]}) must be at least 1; copy it again")
