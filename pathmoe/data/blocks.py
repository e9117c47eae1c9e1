"""Blocks of one split as a table: memory-mapped Arrow on disk, or the same table in memory (streaming validation)."""

# Shapes: B blocks, S sequence, T = S + 1 tokens of a block, P = ceil(T / 8) bytes.

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets

from pathmoe.data.packing import block_to_batch, is_target


def block_features(sequence_length: int, dtype: npt.DTypeLike) -> Features:
    """Columns of a block table; document starts are kept as bits, 1/16 of the size of 16-bit tokens."""
    num_tokens = sequence_length + 1
    return Features(
        {
            "tokens": List(Value(np.dtype(dtype).name), length=num_tokens),
            "document_starts": List(Value("uint8"), length=(num_tokens + 7) // 8),
            "num_targets": Value("int32"),
            "crc32": Value("uint32"),
        }
    )


def to_table(tokens_BT: npt.NDArray[np.integer], starts_BT: npt.NDArray[np.bool_]) -> pa.Table:
    """Arrow table of blocks, with the columns of `block_features`."""
    packed_BP = np.packbits(starts_BT, axis=1)
    num_targets_B = is_target(starts_BT).sum(axis=1, dtype=np.int32)
    columns = {
        "tokens": pa.FixedSizeListArray.from_arrays(pa.array(tokens_BT.reshape(-1)), tokens_BT.shape[1]),
        "document_starts": pa.FixedSizeListArray.from_arrays(pa.array(packed_BP.reshape(-1)), packed_BP.shape[1]),
        "num_targets": pa.array(num_targets_B),
        "crc32": pa.array(_checksums(tokens_BT, packed_BP, num_targets_B)),
    }
    schema = block_features(tokens_BT.shape[1] - 1, tokens_BT.dtype).arrow_schema
    return pa.Table.from_arrays(list(columns.values()), schema=schema)


REMEDY = "remove the file and run `python -m pathmoe.data prepare` with the run's configuration, which makes it again"
"""What to do about a file that is not what was prepared."""


class Blocks:
    """Random access to the blocks of a split. Pickles as paths, so workers share the mapped files."""

    def __init__(self, dataset: Dataset, files: Sequence[Path] = (), blocks_of_files: Sequence[int] = ()) -> None:
        self.dataset = dataset.with_format("arrow")
        self.files = list(files)
        self._edges = np.cumsum(blocks_of_files)
        # Looked up where it is mapped, since the loss of each step is divided by the targets of its global batch.
        self._num_targets = dataset.select_columns("num_targets").with_format("arrow")

    @classmethod
    def open(cls, *files: Path) -> "Blocks":
        """Map Arrow stream files written from `to_table` batches, as one split; nothing of their blocks is read.

        Raises ValueError naming the file that is not one.
        """
        parts = [_map_file(file) for file in files]
        return cls(concatenate_datasets(parts), files, [len(part) for part in parts])

    @classmethod
    def in_memory(cls, tables: list[pa.Table]) -> "Blocks":
        """Blocks of `to_table` tables, not on disk."""
        return cls(Dataset(pa.concat_tables(tables)))

    @classmethod
    def concatenated(cls, parts: Sequence["Blocks"]) -> "Blocks":
        """Several splits on disk, one after the other."""
        files = [file for part in parts for file in part.files]
        sizes = [int(size) for part in parts for size in np.diff(part._edges, prepend=0)]
        return cls(concatenate_datasets([part.dataset for part in parts]), files, sizes)

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.dataset)

    def num_targets(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Targets of each of the blocks at `indices`."""
        return self._num_targets[indices]["num_targets"].to_numpy()

    def batch(self, indices: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Model inputs of the blocks at `indices`; see `block_to_batch`.

        Raises ValueError naming the file of a block that is not what was written.
        """
        rows: pa.Table = self.dataset[indices]
        tokens_BT, packed_BP = _fixed_rows(rows["tokens"]), _fixed_rows(rows["document_starts"])
        is_altered_B = rows["crc32"].to_numpy() != _checksums(tokens_BT, packed_BP, rows["num_targets"].to_numpy())
        if is_altered_B.any():
            self._refuse(int(indices[is_altered_B.argmax()]))
        return block_to_batch(tokens_BT, packed_BP)

    def _refuse(self, index: int) -> None:
        number = int(np.searchsorted(self._edges, index, side="right"))
        raise ValueError(
            f"{self.files[number] if self.files else 'the data'} was altered after it was prepared (block {index} is "
            f"not what its checksum says); {REMEDY}"
        )


def _map_file(file: Path) -> Dataset:
    try:
        return Dataset.from_file(str(file))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} is no file of prepared data ({str(error).splitlines()[0]}); {REMEDY}") from error


def _checksums(
    tokens_BT: npt.NDArray[np.integer], packed_BP: npt.NDArray[np.uint8], num_targets_B: npt.NDArray[np.int32]
) -> npt.NDArray[np.uint32]:
    """CRC-32 of all that a block holds, uint32 [B]."""
    rows = zip(np.ascontiguousarray(tokens_BT), np.ascontiguousarray(packed_BP), num_targets_B.tolist(), strict=True)
    return np.array([zlib.crc32(starts, zlib.crc32(tokens, count)) for tokens, starts, count in rows], np.uint32)


def _fixed_rows(column: Any) -> npt.NDArray[Any]:
    """A fixed-size list column as a 2-D array, without copying."""
    array = column.combine_chunks()
    return array.flatten().to_numpy().reshape(len(array), -1)
