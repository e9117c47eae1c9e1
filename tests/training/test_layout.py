"""Ranks, replicas and shards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe.training.layout import Layout


@given(data=st.data(), ranks=st.integers(1, 64))
def test_every_rank_is_a_replica_or_a_shard(data: st.DataObject, ranks: int) -> None:
    divisors = [number for number in range(1, 65) if ranks % number == 0]
    replicas, sharing = (data.draw(st.sampled_from(divisors)) for _ in range(2))
    layout = Layout(world_size=ranks, is_sharded=True, num_replicas=replicas, expert_parallel_size=sharing)
    assert layout.shards * replicas == ranks
    assert layout.expert_shards * layout.expert_replicas * sharing == ranks
    # As many replicas as those of the rest, where ranks that share experts are of one of these; fewer otherwise.
    assert replicas % layout.expert_replicas == 0
    assert (layout.expert_replicas == replicas) == (ranks // sharing % replicas == 0)
    assert Layout(world_size=ranks, num_replicas=replicas).shards == 1


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(), "one device"),
        (Layout(world_size=8), "a copy of the model on each (DDP)"),
        (Layout(world_size=8, is_sharded=True), "shards over 8 (FSDP2)"),
        (Layout(world_size=8, is_sharded=True, num_replicas=2), "shards over 4 (FSDP2), 2 replicas"),
        (
            Layout(world_size=8, is_sharded=True, expert_parallel_size=4),
            "shards over 8 (FSDP2), experts shared by 4",
        ),
    ],
    ids=str,
)
def test_in_words(layout: Layout, words: str) -> None:
    assert str(layout) == words


@pytest.mark.parametrize("key", ["num_replicas", "expert_parallel_size"])
@pytest.mark.parametrize("value", [-1, 0, 3, 16])
def test_what_does_not_divide(key: str, value: int) -> None:
    message = rf"^trainer\.strategy\.init_args\.{key} \({value}\) must divide the 8 ranks; set 1, or the number of "
    with pytest.raises(ValueError, match=message):
        Layout(world_size=8, is_sharded=True, **{key: value})
