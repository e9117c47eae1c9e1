"""Ranks and shards from a trainer's settings."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe.training.layout import Layout, layout_of, world_size_of

SHARDED = "pathmoe.training.sharded_strategy.ShardedStrategy"


def settings(strategy: Any = "auto", devices: Any = 8, num_nodes: int = 1) -> dict[str, Any]:
    return {"strategy": strategy, "devices": devices, "num_nodes": num_nodes}


def sharded(**init_args: int) -> dict[str, Any]:
    return {"class_path": SHARDED, "init_args": init_args}


@pytest.fixture(autouse=True, scope="module")
def _no_launcher() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WORLD_SIZE", raising=False)
        yield


@pytest.mark.parametrize(("devices", "ranks"), [("auto", 3), (-1, 3), (5, 15), ("5", 15), ([0, 3], 6)], ids=str)
def test_ranks(devices: Any, ranks: int) -> None:
    assert world_size_of(settings(devices=devices, num_nodes=3)) == ranks


def test_a_launcher_knows_the_ranks_that_the_settings_leave_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "24")
    assert world_size_of(settings(devices="auto", num_nodes=3)) == 24
    assert world_size_of(settings(devices=2, num_nodes=3)) == 6


def test_copies() -> None:
    assert layout_of(settings("ddp", 4), 8) == Layout(world_size=4)
    assert (layout_of(settings("ddp", 4), 8).shards, layout_of(settings("ddp", 4), 8).expert_shards) == (1, 1)
    by_class = {"class_path": "lightning.pytorch.strategies.DDPStrategy"}
    for place in ("init_args", "dict_kwargs"):
        given_views = by_class | {place: {"gradient_as_bucket_view": True}}
        assert layout_of(settings(given_views, 4), 8) == Layout(world_size=4, gradients_are_views=True)


@given(data=st.data(), ranks=st.integers(1, 64), experts=st.integers(1, 64))
def test_every_rank_is_a_replica_or_a_shard(data: st.DataObject, ranks: int, experts: int) -> None:
    divisors = [number for number in range(1, 65) if ranks % number == 0]
    replicas = data.draw(st.sampled_from(divisors))
    expert_parallel = data.draw(st.sampled_from([number for number in divisors if experts % number == 0]))
    strategy = sharded(num_replicas=replicas, expert_parallel_size=expert_parallel)
    layout = layout_of(settings(strategy, ranks), experts)
    assert layout.shards * replicas == ranks
    expert_replicas = min(replicas, ranks // expert_parallel)
    assert layout.expert_shards == ranks // expert_parallel // expert_replicas


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


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (
            sharded(num_replicas=3),
            r"^trainer\.strategy\.init_args\.num_replicas \(3\) must divide the 8 ranks; set 1, ",
        ),
        (
            sharded(num_replicas=0),
            r"^trainer\.strategy\.init_args\.num_replicas \(0\) must divide the 8 ranks; set 1, ",
        ),
        (
            sharded(expert_parallel_size=3),
            r"^trainer\..*\.expert_parallel_size \(3\) must divide the 8 ranks and the 6 ",
        ),
        (sharded(expert_parallel_size=4), r"^trainer\..*\.expert_parallel_size \(4\) must divide .* 6 experts; change"),
        (sharded(expert_parallel_size=0), r"^trainer\..*\.expert_parallel_size \(0\) must divide .* 6 experts; change"),
    ],
    ids=str,
)
def test_what_does_not_divide(strategy: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout_of(settings(strategy), 6)
