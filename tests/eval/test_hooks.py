"""Looks at the paths while training: when, of which blocks, at what cost; training goes on as without them."""

# Shapes: B blocks.

import json
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader

from pathmoe import PathMoEConfig, PathMoEForCausalLM
from pathmoe.data import TokenDataModule, train_bpe
from pathmoe.training.checkpoint_io import AtomicCheckpointIO
from pathmoe.training.errors import OnAllRanksError
from pathmoe.training.last_checkpoint import LastCheckpoint
from pathmoe.training.module import PathMoEModule
from pathmoe.training.optim import OptimizerConfig
from pathmoe.training.schedule import ScheduleConfig
from pathmoe.training.speed import SpeedMonitor
from pathmoe_eval.hooks import PathMonitor, evenly_spaced
from pathmoe_eval.monitor import monitor

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "moe_intermediate_size": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "initializer_range": 0.2,
}
# What could be disturbed: noise, balance state, and a loss that has them.
DISTURBABLE = {"router_noise_std": 0.5, "router_bias_update_rate": 0.1, "router_aux_loss_coef": 0.1}
OF_TIME = {"train/tokens_per_second", "train/step_seconds", "train/peak_memory_gib", "paths/cost_share"}


class Memory(Logger):
    """Keeps what it is given."""

    name, version = "memory", 0

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.rows.append((step, dict(metrics)))

    def named(self, *prefixes: str) -> list[tuple[int, dict[str, float]]]:
        chosen = [(step, {k: v for k, v in row.items() if k.startswith(prefixes)}) for step, row in self.rows]
        return [(step, {k: v for k, v in row.items() if k not in OF_TIME}) for step, row in chosen if row]


def data(micro_batch_size: int = 2, **options: Any) -> TokenDataModule:
    options = {"source": "c-functions", "num_documents": 120, "validation_fraction": 0.2, "vocab_size": 300} | options
    return TokenDataModule(sequence_length=32, micro_batch_size=micro_batch_size, **options)


def fit(
    *callbacks: Callback,
    fields: dict[str, Any] | None = None,
    blocks: TokenDataModule | None = None,
    lr: float = 0.05,
    compiled: bool = False,
    ckpt_path: Path | None = None,
    **options: Any,
) -> Memory:
    memory = Memory()
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[*callbacks, *([] if any(isinstance(c, SpeedMonitor) for c in callbacks) else [SpeedMonitor()])],
        plugins=[AtomicCheckpointIO()],
        logger=memory,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, LastCheckpoint) for callback in callbacks),
        **{"devices": 1, "max_steps": 6, "limit_val_batches": 0, "log_every_n_steps": 1} | options,
    )
    module = PathMoEModule(
        PathMoEConfig(**SHAPE | (fields or {})),
        OptimizerConfig(lr=lr),
        ScheduleConfig(name="constant"),
        compile=compiled,
    )
    trainer.fit(module, datamodule=blocks or data(), ckpt_path=ckpt_path, weights_only=True)
    return memory


class KeepModel(Callback):
    """The model's weights after each optimizer step."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: PathMoEModule, *_: Any) -> None:
        state = pl_module.model.state_dict()
        self.weights[trainer.global_step] = {name: tensor.clone() for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {}),
        (DISTURBABLE, {"accumulate_grad_batches": 2}),
        ({"layers_per_router": 3, "layers_per_decision": 3}, {"precision": "bf16-mixed"}),
        ({"num_hidden_layers": 2, "first_k_dense_replace": 1}, {"precision": "bf16-true"}),
        (DISTURBABLE, {"limit_val_batches": 2, "val_check_interval": 2, "check_val_every_n_epoch": None}),
    ],
    ids=str,
)
def test_training_is_the_same_to_the_bit(fields: dict[str, Any], options: dict[str, Any]) -> None:
    kept, undisturbed = KeepModel(), KeepModel()
    watched = fit(PathMonitor(every_n_steps=2), kept, fields=fields, **options)
    plain = fit(undisturbed, fields=fields, **options)
    rest = ("train/", "load/", "lr", "val/")
    assert watched.named(*rest) == plain.named(*rest) != []
    for name, weight in undisturbed.weights[6].items():
        assert torch.equal(kept.weights[6][name], weight), name
    assert [step for step, _ in watched.named("paths/")] == [1, 3, 5], "Lightning counts the steps of a log from 0"
    has_pairs = "first_k_dense_replace" not in fields
    assert all(("paths/adjacent_agreement" in row) == has_pairs for _, row in watched.named("paths/"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_training_too() -> None:
    torch._dynamo.reset()
    plain = fit(compiled=True)
    torch._dynamo.reset()
    watched = fit(PathMonitor(every_n_steps=2), compiled=True)
    assert watched.named("train/") == plain.named("train/")
    assert len(watched.named("paths/")) == 3


@pytest.mark.parametrize("num_blocks", [None, 5, 10**6])
def test_figures_are_those_of_the_slice_at_that_step(num_blocks: int | None) -> None:
    kept, blocks = KeepModel(), data()
    memory = fit(PathMonitor(3, num_blocks, per_layer=True), kept, blocks=blocks, accumulate_grad_batches=2)
    all_blocks = blocks.validation_blocks
    # Two global batches of two micro-batches of two blocks, where nothing else is asked for.
    chosen = min(8 if num_blocks is None else num_blocks, len(all_blocks))
    indices_B = np.array([number * len(all_blocks) // chosen for number in range(chosen)])
    assert [step for step, _ in memory.named("paths/")] == [2, 5]
    for step, row in memory.named("paths/"):
        model = PathMoEForCausalLM(PathMoEConfig(**SHAPE))
        model.load_state_dict(kept.weights[step + 1])
        figures = monitor(model, [all_blocks.batch(indices_B)], per_layer=True)
        assert row == pytest.approx({f"paths/{name}": value for name, value in figures.items()}, rel=1e-5)
        assert row["paths/tokens"] == chosen * 32


@given(st.integers(1, 200), st.integers(1, 50))
def test_the_slice_lies_evenly_over_the_split(num_blocks: int, num_chosen: int) -> None:
    indices = evenly_spaced(num_blocks, num_chosen).tolist()
    assert len(set(indices)) == len(indices) == min(num_blocks, num_chosen)
    assert indices[0] == 0
    gaps = {after - before for before, after in zip(indices, [*indices[1:], num_blocks], strict=True)}
    assert gaps <= {num_blocks // len(indices), math.ceil(num_blocks / len(indices))}


def test_the_slice_is_bounded_where_the_global_batch_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathmoe_eval.hooks._MOST_TOKENS", 100)
    assert {row["paths/tokens"] for _, row in fit(PathMonitor(6)).named("paths/")} == {3 * 32}
    monkeypatch.setattr("pathmoe_eval.hooks._MOST_TOKENS", 1)
    assert {row["paths/tokens"] for _, row in fit(PathMonitor(6)).named("paths/")} == {32}


def test_geometry_is_logged_where_it_is_asked_for() -> None:
    undisturbed, kept = KeepModel(), KeepModel()
    fit(undisturbed)
    memory = fit(PathMonitor(3, geometry=True), kept)
    assert [step for step, row in memory.named("paths/") if "paths/shared_logit_energy" in row] == [2, 5]
    for name, weight in undisturbed.weights[6].items():
        assert torch.equal(kept.weights[6][name], weight), name


def test_geometry_of_a_sharded_model_is_refused() -> None:
    sharded = object.__new__(type("Sharded", (FSDPModule, torch.nn.Module), {}))
    trainer: Any = SimpleNamespace(callbacks=[SpeedMonitor()])
    module: Any = SimpleNamespace(modules=lambda: [sharded])
    with pytest.raises(OnAllRanksError, match=r"^geometry \(true\) of PathMonitor must not be set with"):
        PathMonitor(geometry=True).on_train_start(trainer, module)


def test_a_resumed_run_looks_at_the_same_steps(tmp_path: Path) -> None:
    whole = fit(PathMonitor(3), max_steps=9)
    first, second = PathMonitor(3), PathMonitor(3)
    earlier = fit(first, LastCheckpoint(tmp_path / "last.ckpt", 100), max_steps=5)
    later = fit(second, LastCheckpoint(tmp_path / "last.ckpt", 100), max_steps=9, ckpt_path=tmp_path / "last.ckpt")
    assert earlier.named("paths/") + later.named("paths/") == whole.named("paths/")
    assert second._seconds > first._seconds > 0, "the cost is that of the whole run"


class Clock(Callback):
    """Time that passes in forwards alone: 10 seconds in training, 3 in a look; it moves nothing else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def on_train_start(self, trainer: Trainer, pl_module: PathMoEModule) -> None:
        pl_module.model.register_forward_pre_hook(self._pass)

    def _pass(self, model: PathMoEForCausalLM, _: Any) -> None:
        self.now += 10.0 if model.training else 3.0


@pytest.mark.parametrize("speed_is_first", [False, True])
def test_the_cost_is_logged_and_is_no_training(monkeypatch: pytest.MonkeyPatch, speed_is_first: bool) -> None:
    first = [SpeedMonitor()] if speed_is_first else []
    memory = fit(*first, PathMonitor(2, num_blocks=8), Clock(monkeypatch))
    costs = [row["paths/cost_share"] for _, row in memory.rows if "paths/cost_share" in row]
    # Each look takes 8 / 2 forwards, and each step one.
    assert costs == pytest.approx([12 / 20, 24 / 40, 36 / 60])
    speeds = [row["train/tokens_per_second"] for _, row in memory.rows if "train/tokens_per_second" in row]
    assert speeds == pytest.approx([2 * 32 / 10] * 6)


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="forks, which CUDA does not survive")
def test_two_ranks_are_as_one(tmp_path: Path) -> None:
    class Write(Callback):
        def on_fit_end(self, trainer: Trainer, pl_module: PathMoEModule) -> None:
            if trainer.is_global_zero:
                torch.save(trainer.logger.named("paths/"), tmp_path / "rows.pt")

    # Hardly any training, since two ranks would round it otherwise than one; the same batches, since they share them.
    options: dict[str, Any] = {"lr": 1e-12, "max_steps": 2, "fields": DISTURBABLE | {"router_noise_std": 0.0}}
    one = fit(PathMonitor(1, 9, per_layer=True), blocks=data(2), **options, accumulate_grad_batches=2).named("paths/")
    two_ranks = {"devices": 2, "strategy": "ddp_fork"}
    fit(PathMonitor(1, 9, per_layer=True), Write(), blocks=data(2), **options, **two_ranks)
    two = torch.load(tmp_path / "rows.pt")
    assert [step for step, _ in two] == [step for step, _ in one] == [0, 1]
    for (_, found), (_, expected) in zip(two, one, strict=True):
        assert found == pytest.approx(expected, rel=1e-6)
        names = ("tokens", "distinct", "entropy_bits", "adjacent_agreement", "load_entropy", "dead_experts")
        assert {name: found[f"paths/{name}"] for name in names} == {name: expected[f"paths/{name}"] for name in names}


def test_streamed_data_has_a_slice_too(tmp_path: Path) -> None:
    texts = [" ".join(f"{number * place % 97}" for place in range(number % 11)) for number in range(1, 600)]
    train_bpe(texts, 300).save_pretrained(str(tmp_path / "tokenizer"))
    source = {"source": str(tmp_path / "texts.jsonl"), "streaming": True, "tokenizer": str(tmp_path / "tokenizer")}
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    stream = data(**source, num_documents=None, validation_documents=100)
    memory = fit(PathMonitor(3), blocks=stream)
    assert [row["paths/tokens"] for _, row in memory.named("paths/")] == [4 * 32, 4 * 32]


@pytest.mark.parametrize("key", ["every_n_steps", "num_blocks"])
def test_numbers_below_one_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=rf"^{key} \(0\) of PathMonitor must be at least 1; raise it$"):
        PathMonitor(**{key: 0})


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="forks, which CUDA does not survive")
def test_a_slice_that_leaves_a_rank_without_a_block_is_refused() -> None:
    with pytest.raises(Exception, match=r"num_blocks \(1\) of PathMonitor must be at least the number of ranks \(2\)"):
        fit(PathMonitor(1, num_blocks=1), devices=2, strategy="ddp_fork")


def test_what_it_needs_of_the_trainer_is_asked_for() -> None:
    module = PathMoEModule(PathMoEConfig(**SHAPE), schedule=ScheduleConfig(name="constant"))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    options = {"accelerator": "cpu", "devices": 1, "max_steps": 1, "enable_model_summary": False, **quiet}
    with pytest.raises(ValueError, match=r"trainer\.callbacks \(no SpeedMonitor\) must hold one beside PathMonitor"):
        Trainer(callbacks=[PathMonitor()], **options).fit(module, datamodule=data())
    loader: DataLoader[Any] = DataLoader([{}], num_workers=0)
    with pytest.raises(ValueError, match=r"data \(NoneType\) must be a TokenDataModule for PathMonitor; pass one"):
        Trainer(callbacks=[PathMonitor(), SpeedMonitor()], **options).fit(module, loader, loader)
