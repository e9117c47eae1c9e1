# Shapes: B blocks, T tokens of a block.

from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathmoe.data.blocks import Blocks, to_table
from pathmoe.data.loader import Batch, MicroBatches, TrainLoader, ValidationLoader
from pathmoe.data.order import BatchGeometry, block_indices


def numbered_blocks(num_blocks: int, length: int = 4) -> Blocks:
    """Blocks whose first token is their index, with some document starts."""
    tokens_BT = np.arange(num_blocks, dtype=np.uint16)[:, None] + np.zeros((1, length + 1), np.uint16)
    starts_BT = np.random.default_rng(0).random((num_blocks, length + 1)) < 0.3
    return Blocks.in_memory([to_table(tokens_BT, starts_BT)])


BLOCKS = numbered_blocks(37)


def indices(batch: Batch) -> list[int]:
    return batch["input_ids"][:, 0].tolist()


def loader(geometry: BatchGeometry, step: int = 0, num_workers: int = 0) -> TrainLoader:
    return TrainLoader(
        MicroBatches(BLOCKS, geometry, partial(block_indices, num_blocks=len(BLOCKS), seed=3)),
        lambda: step,
        num_workers,
    )


def equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])) for key in a)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_that_starts_later_continues_the_sequence(num_workers: int) -> None:
    geometry = BatchGeometry(micro_batch_size=2, accumulate_grad_batches=3)
    whole = list(islice(loader(geometry), 30))
    assert [(batch["step"], batch["micro_batch"]) for batch in whole] == [divmod(number, 3) for number in range(30)]
    assert equal(list(islice(loader(geometry, step=4, num_workers=num_workers), 18)), whole[12:])


def test_each_epoch_sees_every_block_once() -> None:
    seen = [index for batch in islice(loader(BatchGeometry(micro_batch_size=1)), 2 * 37) for index in indices(batch)]
    assert sorted(seen[:37]) == sorted(seen[37:]) == list(range(37))
    assert seen[:37] != seen[37:]


@pytest.mark.parametrize(
    ("micro_batch_size", "accumulate", "world_size"), [(12, 1, 1), (2, 3, 2), (1, 4, 3), (3, 1, 4)]
)
def test_the_global_batch_and_its_targets_do_not_depend_on_the_cut(
    micro_batch_size: int, accumulate: int, world_size: int
) -> None:
    whole = list(islice(loader(BatchGeometry(micro_batch_size=12)), 5))
    pieces = []
    for rank in range(world_size):
        geometry = BatchGeometry(
            micro_batch_size=micro_batch_size, accumulate_grad_batches=accumulate, rank=rank, world_size=world_size
        )
        pieces += list(islice(loader(geometry), 5 * accumulate))
    for step, expected in enumerate(whole):
        parts = [batch for batch in pieces if batch["step"] == step]
        assert sorted(index for batch in parts for index in indices(batch)) == sorted(indices(expected))
        num_targets = sum(int((batch["shift_labels"] != -100).sum()) for batch in parts)
        assert {batch["num_items"] for batch in parts} == {num_targets} == {expected["num_items"]}


def test_a_global_batch_larger_than_the_split_goes_on_into_the_next_epoch() -> None:
    batch = next(iter(loader(BatchGeometry(micro_batch_size=50))))
    assert sorted(indices(batch)[:37]) == list(range(37))
    assert batch["num_items"] == int((batch["shift_labels"] != -100).sum())


@given(
    num_blocks=st.integers(1, 60),
    micro_batch_size=st.integers(1, 7),
    world_size=st.integers(1, 6),
)
def test_validation_reads_every_block_once_in_equally_many_batches(
    num_blocks: int, micro_batch_size: int, world_size: int
) -> None:
    blocks = numbered_blocks(num_blocks, length=1)
    if num_blocks < world_size:
        with pytest.raises(ValueError, match=r"fewer than there are ranks"):
            ValidationLoader(blocks, micro_batch_size, 0, world_size)
        return
    loaders = [ValidationLoader(blocks, micro_batch_size, rank, world_size) for rank in range(world_size)]
    batches = [[indices(batch) for batch in loader] for loader in loaders]
    assert {len(loader) for loader in loaders} == {len(own) for own in batches} == {len(batches[0])}
    in_order = [index for together in zip(*batches, strict=True) for batch in together for index in batch]
    assert in_order == list(range(num_blocks))
    sizes = {len(batch) for own in batches for batch in own}
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(2, micro_batch_size) and min(sizes) >= 1
    assert list(next(iter(loaders[0]))) == ["input_ids", "shift_labels", "position_ids"]


@given(sizes=st.lists(st.integers(3, 20), min_size=1, max_size=4), world_size=st.integers(1, 3))
def test_validation_on_a_mixture_reads_each_source_in_turns(sizes: list[int], world_size: int) -> None:
    blocks = numbered_blocks(sum(sizes), length=1)
    source_of = np.repeat(np.arange(len(sizes)), sizes)
    loaders = [ValidationLoader(blocks, 2, rank, world_size, sizes) for rank in range(world_size)]
    batches = [[(batch["source"], indices(batch)) for batch in loader] for loader in loaders]
    for together in zip(*batches, strict=True):
        assert len({source for source, _ in together}) == 1, "all ranks are at the same source"
    read = [(source, index) for own in batches for source, ids in own for index in ids]
    assert sorted(index for _, index in read) == list(range(sum(sizes)))
    assert all(source_of[index] == source for source, index in read)
    # Half of the batches are half of each source's, within one.
    order = [source for source, _ in batches[0]]
    for source in range(len(sizes)):
        number = order.count(source)
        assert abs(order[: len(order) // 2].count(source) - number / 2) <= 1
