"""What the tests of the benchmarks share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from pathmoe import PathMoEConfig
from pathmoe.bench.tiny import TinyRun
from pathmoe.data import TokenDataModule
from pathmoe.training.optim import OptimizerConfig
from pathmoe.training.schedule import ScheduleConfig


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **kwargs or {})


def _operators_of(call: Callable[[], object]) -> list[str]:
    with _Operators() as operators:
        call()
    return operators.names


@pytest.fixture(scope="session")
def operators_of() -> Callable[[Callable[[], object]], list[str]]:
    """Runs a call and gives the names of the operators that ran, in order."""
    return _operators_of


def shape(**changes: object) -> PathMoEConfig:
    """A tiny model, with changes."""
    fields = {
        "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2, "layers_per_router": 2,
    }  # fmt: skip
    return PathMoEConfig(**fields | changes)


@pytest.fixture
def run(tmp_path: Path) -> TinyRun:
    """A run of two layers that share a router."""
    data = TokenDataModule(
        source="c-functions", num_documents=60, vocab_size=300, sequence_length=16, micro_batch_size=2,
        cache_dir=str(tmp_path),
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    return TinyRun(
        config=shape(), optimizer=OptimizerConfig(name="muon", lr=1e-2), schedule=ScheduleConfig(), max_steps=10,
        gradient_clip_val=1.0, data=data,
    )  # fmt: skip
