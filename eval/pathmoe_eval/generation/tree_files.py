"""A generation tree on disk: one Arrow file, a row a node, and in its metadata what the tree was made from."""

# Shapes: N nodes, L MoE layers, K experts per token.

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from pathmoe_eval.generation.tree import GenerationTree

FORMAT = 1
TREE_FILE = "tree.arrow"
_HEADER = b"pathmoe"
_SHAPE = ("num_layers", "num_experts", "num_experts_per_tok", "vocab_size", "prompt_length")
_COLUMNS = {
    "parent": "parent_N",
    "token_id": "token_ids_N",
    "log_probability": "log_probability_N",
    "has_routing": "has_routing_N",
    "end": "end_N",
    "fork_mass": "fork_mass_N",
}


class StoredTree(NamedTuple):
    """A tree as it was read."""

    tree: GenerationTree
    made_from: dict[str, Any]
    """What `write_tree` was told: model, tokenizer, prompt, search, versions."""


def write_tree(folder: Path, tree: GenerationTree, made_from: Mapping[str, Any]) -> None:
    """Write `tree.arrow` into a folder, whole or not at all.

    Args:
        folder: made if it is not there.
        tree: to write.
        made_from: what JSON can write.
    """
    header = {"format": FORMAT, "made_from": dict(made_from), **{name: getattr(tree, name) for name in _SHAPE}}
    size = tree.num_layers * tree.num_experts_per_tok
    routing = pa.FixedSizeListArray.from_arrays(pa.array(tree.expert_ids_NLK.reshape(-1)), size)
    arrays = {name: pa.array(getattr(tree, attribute)) for name, attribute in _COLUMNS.items()}
    table = pa.table({**arrays, "expert_ids": routing}, metadata={_HEADER: json.dumps(header, allow_nan=False)})
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{TREE_FILE}-{os.getpid()}"
    try:
        with pa.OSFile(str(beside), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        beside.replace(folder / TREE_FILE)
    finally:
        beside.unlink(missing_ok=True)


def read_tree(folder: Path) -> StoredTree:
    """Read the tree of a folder.

    Raises:
        ValueError: no tree is there, or one that was cut short, of another format, or that contradicts itself.
    """
    path = folder / TREE_FILE
    if not path.is_file():
        raise ValueError(f"{folder} (no {TREE_FILE}) must be the folder of a tree; search one, or check the path")
    try:
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        header = json.loads((table.schema.metadata or {})[_HEADER])
        found = header.get("format")
    except (pa.ArrowInvalid, OSError, KeyError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{path} ({reason}) must be a whole tree; it was cut short or changed, copy it again"
        ) from error
    if found != FORMAT:
        raise ValueError(f"{path} (format {found}) must be of format {FORMAT}; search the tree again")
    try:
        return StoredTree(_tree(table, {name: int(header[name]) for name in _SHAPE}), dict(header["made_from"]))
    except (KeyError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def _tree(table: pa.Table, shape: dict[str, Any]) -> GenerationTree:
    columns = {name: table[name].combine_chunks() for name in (*_COLUMNS, "expert_ids")}
    nodes: dict[str, Any] = {
        attribute: columns[name].to_numpy(zero_copy_only=False) for name, attribute in _COLUMNS.items()
    }
    routing = columns["expert_ids"].flatten().to_numpy()
    expert_ids_NLK = routing.reshape(-1, shape["num_layers"], shape["num_experts_per_tok"])
    return GenerationTree(**shape, **nodes, expert_ids_NLK=expert_ids_NLK)
