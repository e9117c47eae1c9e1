"""Blocks of one split as a table: memory-mapped Arrow on disk, or the same table in memory (streaming validation)."""

# Shapes: B blocks, S sequence, T = S + 1 tokens of a block, P = ceil(T / 8) bytes.

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from datasets import Dataset, Features, List, Value

from pathmoe.data.packing import block_to_batch, is_target


def block_features(sequence_length: int, dtype: npt.DTypeLike) -> Features:
    """Columns of a block table; document starts are kept as bits, 1/16 of the size of 16-bit tokens."""
    num_tokens = sequence_length + 1
    return Features(
        {
            "tokens": List(Value(np.dtype(dtype).name), length=num_tokens),
            "document_starts": List(Value("uint8"), length=(num_tokens + 7) // 8),
            "num_targets": Value("int32"),
        }
    )


def to_table(tokens_BT: npt.NDArray[np.integer], starts_BT: npt.NDArray[np.bool_]) -> pa.Table:
    """Arrow table of blocks, with the columns of `block_features`."""
    packed_BP = np.packbits(starts_BT, axis=1)
    columns = {
        "tokens": pa.FixedSizeListArray.from_arrays(pa.array(tokens_BT.reshape(-1)), tokens_BT.shape[1]),
        "document_starts": pa.FixedSizeListArray.from_arrays(pa.array(packed_BP.reshape(-1)), packed_BP.shape[1]),
        "num_targets": pa.array(is_target(starts_BT).sum(axis=1, dtype=np.int32)),
    }
    schema = block_features(tokens_BT.shape[1] - 1, tokens_BT.dtype).arrow_schema
    return pa.Table.from_arrays(list(columns.values()), schema=schema)


class Blocks:
    """Random access to the blocks of a split. Pickles as a path, so workers share the mapped file."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset.with_format("arrow")
        # Four bytes a block: in memory, since the loss of each step is divided by the targets of its global batch.
        self.num_targets: npt.NDArray[np.int64] = dataset.data.column("num_targets").to_numpy().astype(np.int64)

    @classmethod
    def open(cls, path: Path) -> "Blocks":
        """Map an Arrow stream file written from `to_table` batches."""
        return cls(Dataset.from_file(str(path)))

    @classmethod
    def in_memory(cls, tables: list[pa.Table]) -> "Blocks":
        """Blocks of `to_table` tables, not on disk."""
        return cls(Dataset(pa.concat_tables(tables)))

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.num_targets)

    def batch(self, indices: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Model inputs of the blocks at `indices`; see `block_to_batch`."""
        rows: pa.Table = self.dataset[indices]
        return block_to_batch(_fixed_rows(rows["tokens"]), _fixed_rows(rows["document_starts"]))


def _fixed_rows(column: Any) -> npt.NDArray[Any]:
    """A fixed-size list column as a 2-D array, without copying."""
    array = column.combine_chunks()
    return array.flatten().to_numpy().reshape(len(array), -1)
