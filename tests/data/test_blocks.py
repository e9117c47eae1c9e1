# Shapes: B blocks, T tokens of a block.

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pathmoe.data.blocks import Blocks, block_features, to_table
from pathmoe.data.packing import block_to_batch


def random_rows(num_blocks: int, length: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 1000, (num_blocks, length + 1)).astype(dtype), rng.random((num_blocks, length + 1)) < 0.2


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("length", [1, 7, 8, 64])
def test_blocks_on_disk_give_what_was_written(tmp_path: Path, length: int, dtype: type) -> None:
    tokens_BT, starts_BT = random_rows(11, length, dtype)
    path = tmp_path / "blocks.arrow"
    schema = block_features(length, dtype).arrow_schema
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for rows in (slice(0, 4), slice(4, 4), slice(4, 11)):  # several record batches, one of them empty
            writer.write_table(to_table(tokens_BT[rows], starts_BT[rows]))
    blocks = Blocks.open(path)
    assert len(blocks) == 11
    assert blocks.dataset.features["tokens"].feature.dtype == np.dtype(dtype).name
    indices = np.array([10, 0, 3, 4, 0])
    expected = block_to_batch(tokens_BT[indices], np.packbits(starts_BT[indices], axis=1))
    for made in (blocks, pickle.loads(pickle.dumps(blocks))):
        batch = made.batch(indices)
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[key], expected[key]) for key in batch)
    assert np.array_equal(blocks.num_targets(indices), (batch["shift_labels"] != -100).sum(1).numpy())


def test_pickled_blocks_do_not_carry_the_tokens(tmp_path: Path) -> None:
    tokens_BT, starts_BT = random_rows(100, 1024, np.uint16)
    path = tmp_path / "blocks.arrow"
    table = to_table(tokens_BT, starts_BT)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert len(pickle.dumps(Blocks.open(path))) < tokens_BT.nbytes / 10


def test_blocks_in_memory_equal_those_on_disk() -> None:
    tokens_BT, starts_BT = random_rows(6, 16, np.uint16)
    blocks = Blocks.in_memory([to_table(tokens_BT[:2], starts_BT[:2]), to_table(tokens_BT[2:], starts_BT[2:])])
    batch = blocks.batch(np.arange(6))
    assert batch["input_ids"].tolist() == tokens_BT[:, :-1].tolist()
