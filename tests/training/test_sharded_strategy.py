"""Processes under FSDP2, hybrid sharding and DDP train as one does: same losses, figures, biases and weights."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import pathmoe  # noqa: F401  # makes our models known to transformers
from pathmoe.training.checkpoint_io import read_checkpoint, saved_step
from pathmoe.training.sharded_strategy import ShardedStrategy

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3
SHAPE = {
    "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "moe_intermediate_size": 8,
    "num_experts": 6, "num_experts_per_tok": 2, "initializer_range": 0.2, "router_aux_loss_coef": 0.3,
    "router_aux_loss_scope": "global_batch", "router_z_loss_coef": 0.2, "router_bias_update_rate": 0.1,
}  # fmt: skip
ROUTERS: dict[str, dict[str, Any]] = {
    "path_b2": {"layers_per_router": 2},
    "recurrent": {"router_type": "recurrent", "router_dim": 8},
    "mono": {"layers_per_router": 3, "layers_per_decision": 3, "tie_word_embeddings": True},
    "low_rank": {"layers_per_router": None, "router_rank": 2, "n_shared_experts": 1},
}

# Six experts do not divide by four ranks, so that shards are uneven.
TRAIN = f"""
import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from torch.distributed.tensor import DTensor

from pathmoe.config import PathMoEConfig
from pathmoe.data import TokenDataModule
from pathmoe.training.checkpoint_io import AtomicCheckpointIO
from pathmoe.training.last_checkpoint import LastCheckpoint
from pathmoe.training.module import PathMoEModule
from pathmoe.training.optim import OptimizerConfig
from pathmoe.training.schedule import ScheduleConfig
import pathmoe  # noqa: F401  # makes our models known to transformers
from pathmoe.training.sharded_strategy import ShardedStrategy

FOLDER, SOURCE, OPTIONS = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
STRATEGY, DEVICES, STEPS = OPTIONS["strategy"], OPTIONS["devices"], OPTIONS["steps"]


class Record(Callback):
    def __init__(self):
        self.figures = []

    def on_train_start(self, trainer, pl_module):
        sharded = [isinstance(parameter, DTensor) for parameter in pl_module.parameters()]
        assert all(sharded) if isinstance(trainer.strategy, ShardedStrategy) else not any(sharded)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.figures.append({{name: float(value) for name, value in trainer.callback_metrics.items()}})


if __name__ == "__main__":
    strategies = {{
        "auto": lambda: "auto", "ddp": lambda: "ddp", "fsdp2": ShardedStrategy,
        "hybrid": lambda: ShardedStrategy(num_replicas=2), "ep_alone": lambda: ShardedStrategy(DEVICES, DEVICES),
        "ep_fsdp2": lambda: ShardedStrategy(expert_parallel_size=2), "ep_hybrid": lambda: ShardedStrategy(2, 2),
    }}
    for name, fields in OPTIONS["routers"].items():
        record = Record()
        trainer = Trainer(
            accelerator="cpu", devices=DEVICES, strategy=strategies[STRATEGY](), precision=OPTIONS["precision"],
            accumulate_grad_batches=OPTIONS["accumulate"],
            callbacks=[record, LastCheckpoint(FOLDER / name / "last.ckpt", 100)], max_steps=STEPS,
            limit_val_batches=0, gradient_clip_val=0.5, log_every_n_steps=1, logger=False, enable_progress_bar=False,
            enable_model_summary=False, plugins=[AtomicCheckpointIO()],
        )
        config, schedule = PathMoEConfig(**{SHAPE}, **fields), ScheduleConfig(name="constant")
        # With AdamW's usual epsilon the updates of gradients near zero are as large as their rounding is wide.
        optimizer = OptimizerConfig(lr=0.01, eps=1e-5)
        module = PathMoEModule(
            config, optimizer, schedule, activation_checkpointing=name == "mono", compile=OPTIONS["compile"]
        )
        blocks = 8 // DEVICES // OPTIONS["accumulate"]
        data = TokenDataModule(source=SOURCE, vocab_size=300, sequence_length=32, micro_batch_size=blocks)
        trainer.fit(module, datamodule=data, ckpt_path=OPTIONS["ckpt_path"])
        if trainer.is_global_zero:
            (FOLDER / name / "figures.json").write_text(json.dumps(record.figures))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="starts processes that talk over gloo"),
]


def train(folder: Path, source: Path, strategy: str, devices: int, **options: Any) -> Path:
    folder.mkdir()
    (folder / "train.py").write_text(TRAIN)
    options = {
        "strategy": strategy, "devices": devices, "precision": "32-true", "steps": STEPS, "ckpt_path": None,
        "routers": ROUTERS, "compile": False, "accumulate": 1, **options,
    }  # fmt: skip
    command = [sys.executable, "train.py", str(folder), str(source), json.dumps(options)]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, short_documents: Path) -> Path:
    """What one process makes of each router."""
    return train(tmp_path_factory.mktemp("one") / "runs", short_documents, "auto", 1)


def figures(folder: Path, router: str) -> list[dict[str, float]]:
    return json.loads((folder / router / "figures.json").read_text())


def weights(folder: Path, router: str) -> dict[str, torch.Tensor]:
    content = read_checkpoint(folder / router / "last.ckpt")
    assert content["optimizer_states"][0]["state"]
    return content["state_dict"]


def assert_same_training(found: Path, expected: Path, router: str, steps: int = STEPS) -> float:
    """The last figures, and all weights, up to the rounding of sums over ranks; the largest difference of a weight."""
    of_steps = zip(figures(found, router)[-steps:], figures(expected, router)[-steps:], strict=True)
    for ours, theirs in of_steps:
        assert ours == pytest.approx(theirs, rel=2e-5, abs=1e-7), router
    ours, theirs = weights(found, router), weights(expected, router)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].shape == value.shape
        torch.testing.assert_close(ours[name], value, rtol=0, atol=5e-6 * max(1.0, float(value.abs().max())))
    assert any("selection_bias" in name and value.any() for name, value in ours.items())
    return max(float((ours[name] - value).abs().max()) for name, value in theirs.items())


@pytest.mark.parametrize(
    ("strategy", "devices"),
    [
        ("ddp", 2), ("ddp", 4), ("fsdp2", 2), ("fsdp2", 4), ("hybrid", 4), ("ep_alone", 2), ("ep_fsdp2", 2),
        ("ep_fsdp2", 4), ("ep_hybrid", 4),
    ],
)  # fmt: skip
def test_ranks_train_as_one_process(
    one: Path, tmp_path: Path, short_documents: Path, strategy: str, devices: int
) -> None:
    found = train(tmp_path / "ranks", short_documents, strategy, devices)
    for router in ROUTERS:
        print(f"{strategy} on {devices}, {router}: {assert_same_training(found, one, router):.1e}")


@pytest.mark.parametrize(
    ("start", "ends"),
    [
        (("fsdp2", 4), [("ep_fsdp2", 2), ("ddp", 1)]), (("ep_fsdp2", 4), [("fsdp2", 2), ("auto", 1)]),
        (("auto", 1), [("ep_fsdp2", 2)]),
    ],
)  # fmt: skip
def test_a_run_goes_on_on_other_numbers_of_ranks_and_with_other_strategies(
    one: Path, tmp_path: Path, short_documents: Path, start: tuple[str, int], ends: list[tuple[str, int]]
) -> None:
    router = {"path_b2": ROUTERS["path_b2"]}
    first = train(tmp_path / "first", short_documents, *start, steps=2, routers=router)
    ckpt_path = str(first / "path_b2" / "last.ckpt")
    for strategy, devices in ends:
        more = train(tmp_path / strategy, short_documents, strategy, devices, ckpt_path=ckpt_path, routers=router)
        assert_same_training(more, one, "path_b2", steps=STEPS - 2)


@pytest.mark.parametrize(("strategy", "router"), [("fsdp2", "path_b2"), ("ep_fsdp2", "low_rank")])
def test_ranks_accumulate_as_one_process_does(
    tmp_path: Path, short_documents: Path, strategy: str, router: str
) -> None:
    options = {"accumulate": 2, "routers": {router: ROUTERS[router]}}
    alone = train(tmp_path / "one", short_documents, "auto", 1, **options)
    found = train(tmp_path / "two", short_documents, strategy, 2, **options)
    assert_same_training(found, alone, router)


@pytest.mark.parametrize(("strategy", "router"), [("fsdp2", "mono"), ("ep_fsdp2", "path_b2")])
def test_compiled_layers_train_as_they_do_otherwise(
    one: Path, tmp_path: Path, short_documents: Path, strategy: str, router: str
) -> None:
    found = train(tmp_path / "two", short_documents, strategy, 2, compile=True, routers={router: ROUTERS[router]})
    assert_same_training(found, one, router)


@pytest.mark.parametrize("strategy", ["fsdp2", "ep_fsdp2"])
def test_mixed_precision_stays_near(one: Path, tmp_path: Path, short_documents: Path, strategy: str) -> None:
    two = train(tmp_path / "two", short_documents, strategy, 2, precision="bf16-mixed")
    for router in ROUTERS:
        losses = [[step["train/loss"] for step in figures(folder, router)] for folder in (two, one)]
        assert losses[0] == pytest.approx(losses[1], rel=2e-2)
        assert {value.dtype for value in weights(two, router).values()} == {torch.float32}


@pytest.mark.parametrize("key", ["num_replicas", "expert_parallel_size"])
def test_groups_that_the_ranks_do_not_divide_into_are_refused(key: str) -> None:
    strategy = ShardedStrategy(**{key: 3})
    strategy.parallel_devices = [torch.device("cpu")] * 4
    with pytest.raises(ValueError, match=rf"^trainer\.strategy\.init_args\.{key} \(3\) must divide the 4 ranks"):
        strategy.setup_environment()


def test_the_command_line_trains_goes_on_and_closes_with_experts_shared_out(mini: Path, tmp_path: Path) -> None:
    line = [
        sys.executable, str(ROOT / "train.py"), "fit", "--config", "tiny", "--config", str(mini), "--config", "fsdp2",
        "--trainer.accelerator", "cpu", "--trainer.devices", "2", "--run_dir", str(tmp_path / "run"),
        "--checkpoint_async", "true", "--checkpoint_keep_every_n_steps", "3",
        "--trainer.strategy.init_args.expert_parallel_size", "2",
    ]  # fmt: skip
    ended = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert "validation perplexity" in ended.stdout and "a sample:" in ended.stdout
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export")
    content = read_checkpoint(tmp_path / "run" / "last.ckpt")
    for name, tensor in exported.state_dict().items():
        assert torch.equal(tensor, content["state_dict"][f"model.{name}"]), name
    steps = content["global_step"]
    assert saved_step(tmp_path / "run" / "step=3.ckpt") == saved_step(tmp_path / "run" / "previous.ckpt") == 3
    more = [*line, "--ckpt_path", "last", "--trainer.max_steps", str(steps + 1)]
    ended = subprocess.run(more, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert saved_step(tmp_path / "run" / "last.ckpt") == steps + 1
    assert saved_step(tmp_path / "run" / "previous.ckpt") == steps
    names = {path.name for path in (tmp_path / "run").iterdir() if path.is_symlink()}
    assert names == {"last.ckpt", "previous.ckpt", "best.ckpt", "step=3.ckpt"}
    alone = ["--trainer.strategy", "auto", "--trainer.devices", "1"]
    tables = []
    for how in ([], alone):
        validate = [sys.executable, str(ROOT / "train.py"), "validate", "--ckpt_path", str(tmp_path / "run"), *how]
        whole_split = ["--trainer.limit_val_batches", "1.0"]
        ended = subprocess.run([*validate, *whole_split], cwd=tmp_path, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr[-4000:]
        tables.append(ended.stdout[ended.stdout.index("validated ") :])
    assert tables[0] == tables[1], "on two ranks and on one"
    (tmp_path / "run" / "last.ckpt" / "__1_0.distcp").write_bytes(b"")
    ended = subprocess.run([*line, "--ckpt_path", "last"], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, "Traceback" in ended.stderr) == (2, False)
    assert "must be a whole checkpoint, but __1_0.distcp was cut or altered (0 bytes, " in ended.stderr
