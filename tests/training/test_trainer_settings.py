"""Ranks and what they hold, from a trainer's settings."""

from collections.abc import Iterator
from typing import Any

import pytest

from pathmoe.training.layout import Layout
from pathmoe.training.trainer_settings import layout_of, strategy_name, world_size_of

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
    assert layout_of(settings("ddp", 4)) == Layout(world_size=4)
    assert (layout_of(settings("ddp", 4)).shards, layout_of(settings("ddp", 4)).expert_shards) == (1, 1)
    by_class = {"class_path": "lightning.pytorch.strategies.DDPStrategy"}
    for place in ("init_args", "dict_kwargs"):
        given_views = by_class | {place: {"gradient_as_bucket_view": True}}
        assert layout_of(settings(given_views, 4)) == Layout(world_size=4, gradients_are_views=True)


def test_shards() -> None:
    assert layout_of(settings(sharded())) == Layout(world_size=8, is_sharded=True)
    given = layout_of(settings(sharded(num_replicas=2, expert_parallel_size=4), 4, num_nodes=2))
    assert given == Layout(world_size=8, is_sharded=True, num_replicas=2, expert_parallel_size=4)
    assert layout_of(settings({"class_path": SHARDED, "init_args": None})) == Layout(world_size=8, is_sharded=True)
    with pytest.raises(ValueError, match=r"num_replicas \(3\) must divide the 8 ranks"):
        layout_of(settings(sharded(num_replicas=3)))


def test_names() -> None:
    assert [strategy_name(settings(strategy)) for strategy in ("ddp", sharded())] == ["ddp", "ShardedStrategy"]
