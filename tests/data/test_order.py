import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pathmoe.data.order import BatchGeometry, block_indices, permute

SEEDS = st.integers(0, 2**64 - 1)


@given(num_blocks=st.integers(1, 3000), seed=SEEDS, epoch=st.integers(0, 10**6))
def test_permute_is_a_bijection(num_blocks: int, seed: int, epoch: int) -> None:
    indices = permute(np.arange(num_blocks), num_blocks, seed, epoch)
    assert np.array_equal(np.sort(indices), np.arange(num_blocks))


@given(num_blocks=st.integers(2**40, 2**62), seed=SEEDS, data=st.data())
def test_permute_is_injective_and_bounded_on_huge_ranges(num_blocks: int, seed: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, num_blocks - 1), min_size=2, max_size=50, unique=True))
    indices = permute(np.array(positions), num_blocks, seed, epoch=0)
    assert len(np.unique(indices)) == len(positions)
    assert indices.min() >= 0 and indices.max() < num_blocks


@given(seed=SEEDS, epoch=st.integers(0, 10**6), other=SEEDS)
def test_permutation_depends_on_seed_and_epoch(seed: int, epoch: int, other: int) -> None:
    positions = np.arange(1000)
    order = permute(positions, 1000, seed, epoch)
    assert not np.array_equal(order, permute(positions, 1000, seed, epoch + 1))
    if other != seed:
        assert not np.array_equal(order, permute(positions, 1000, other, epoch))


def test_permutation_looks_uniform() -> None:
    # Over many keys each position must visit each index equally often: chi-square with (n-1)^2 degrees of freedom.
    n, num_keys = 24, 1500
    counts = np.zeros((n, n))
    for epoch in range(num_keys):
        counts[np.arange(n), permute(np.arange(n), n, seed=7, epoch=epoch)] += 1
    expected = num_keys / n
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (n - 1) ** 2
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_permutation_is_the_same_on_every_platform() -> None:
    # A stored order: a change here means that a resumed run would read other batches.
    assert permute(np.arange(10), 10, seed=0, epoch=0).tolist() == [0, 8, 6, 4, 9, 3, 1, 2, 5, 7]


def test_one_position_at_a_time_equals_all_at_once() -> None:
    together = permute(np.arange(100), 100, 3, 4)
    apart = [int(permute(np.array([p]), 100, 3, 4)[0]) for p in range(100)]
    assert together.tolist() == apart


@given(num_blocks=st.integers(1, 200), seed=SEEDS, first_epoch=st.integers(0, 50))
def test_each_epoch_reads_every_block_once(num_blocks: int, seed: int, first_epoch: int) -> None:
    positions = np.arange(first_epoch * num_blocks, (first_epoch + 3) * num_blocks)
    for epoch_indices in block_indices(positions, num_blocks, seed).reshape(3, num_blocks):
        assert np.array_equal(np.sort(epoch_indices), np.arange(num_blocks))


@given(
    micro_batch_size=st.integers(1, 4),
    accumulate=st.integers(1, 4),
    world_size=st.integers(1, 5),
    step=st.integers(0, 10**6),
)
def test_micro_batches_of_all_ranks_are_the_global_batch(
    micro_batch_size: int, accumulate: int, world_size: int, step: int
) -> None:
    pieces = []
    for rank in range(world_size):
        cut = BatchGeometry(
            micro_batch_size=micro_batch_size, accumulate_grad_batches=accumulate, rank=rank, world_size=world_size
        )
        pieces += [cut.micro_batch_positions(step, micro_batch) for micro_batch in range(accumulate)]
    # the same global batch cut for one rank without accumulation
    whole = BatchGeometry(micro_batch_size=micro_batch_size * accumulate * world_size)
    expected = whole.micro_batch_positions(step, 0)
    assert np.array_equal(np.sort(np.concatenate(pieces)), expected)
    assert np.array_equal(cut.step_positions(step), expected)
