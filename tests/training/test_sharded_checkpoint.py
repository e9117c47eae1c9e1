"""A folder that two processes wrote under FSDP, validated, exported and gone on with on one device."""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.distributed.checkpoint import save
from transformers import AutoModelForCausalLM

import pathmoe
from pathmoe.config import PathMoEConfig
from pathmoe.data import TokenDataModule
from pathmoe.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint, saved_step
from pathmoe.training.last_checkpoint import LastCheckpoint
from pathmoe.training.module import PathMoEModule
from pathmoe.training.optim import OptimizerConfig
from pathmoe.training.schedule import ScheduleConfig

MODEL = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "moe_intermediate_size": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "layers_per_router": 2,
}
DATA = {"source": "c-functions", "num_documents": 40, "sequence_length": 32}
STEPS = 3

# Two ranks of one micro-batch of two blocks. What the module does not do under FSDP yet is left out of it.
TRAIN_SHARDED = f"""
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.fsdp import fully_shard

from pathmoe.config import PathMoEConfig
from pathmoe.data import TokenDataModule
from pathmoe.training.module import PathMoEModule
from pathmoe.training.optim import OptimizerConfig
from pathmoe.training.save_run import SaveRun
from pathmoe.training.schedule import ScheduleConfig

FOLDER, MODEL, DATA = Path(sys.argv[1]), {MODEL}, {DATA} | {{"micro_batch_size": 2}}


class Sharded(PathMoEModule):
    def setup(self, stage):
        pass

    def configure_model(self):
        if not hasattr(self, "model"):
            super().configure_model()
            fully_shard(self.model, mesh=self.device_mesh["data_parallel"])

    def on_before_optimizer_step(self, optimizer):
        pass

    def configure_gradient_clipping(self, *_, **__):
        pass


class Gather(Callback):
    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(FOLDER / "run" / "last.ckpt")
        optimizer = trainer.optimizers[0]
        weights, state = get_state_dict(pl_module, optimizer, options=StateDictOptions(full_state_dict=True))
        if trainer.is_global_zero:
            torch.save((weights, state), FOLDER / "gathered.pt")


if __name__ == "__main__":
    resolved = {{"model": {{"config": MODEL}}, "data": DATA, "trainer": {{"max_steps": {STEPS}}}, "seed_everything": 0}}
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        callbacks=[SaveRun(FOLDER / "run", resolved), Gather()], max_steps={STEPS}, enable_checkpointing=False,
        limit_val_batches=0, logger=False, enable_progress_bar=False, enable_model_summary=False,
    )
    config, schedule = PathMoEConfig(**MODEL), ScheduleConfig(name="constant")
    trainer.fit(Sharded(config, OptimizerConfig(lr=0.01), schedule), TokenDataModule(**DATA, vocab_size=300))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="starts processes that talk over gloo"),
]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose last checkpoint is one, with all weights and optimizer states beside it."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "train.py").write_text(TRAIN_SHARDED)
    ended = subprocess.run([sys.executable, "train.py", folder], cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    names = {path.name for path in (folder / "run" / "last.ckpt").iterdir()}
    assert names == {".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt"}
    return folder


@pytest.fixture
def run(sharded: Path, tmp_path: Path) -> Path:
    """A copy of the run that the test may write to."""
    return Path(shutil.copytree(sharded / "run", tmp_path / "run"))


def assert_same_tensors(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_it_is_read_as_what_the_ranks_had(sharded: Path) -> None:
    weights, optimizer = torch.load(sharded / "gathered.pt", weights_only=True)
    content = read_checkpoint(sharded / "run" / "last.ckpt")
    assert_same_tensors(content["state_dict"], weights)
    (state,) = content["optimizer_states"]
    model = PathMoEModule(PathMoEConfig(**MODEL))
    model.configure_model()
    names = [f"model.{name}" for name, _ in model.model.named_parameters()]
    numbered = [name for group in optimizer["param_groups"] for name in group["params"]]
    assert sorted(numbered) == sorted(names)
    for number, name in enumerate(numbered):
        assert_same_tensors(state["state"][number], optimizer["state"][name])
    assert content["global_step"] == saved_step(sharded / "run" / "last.ckpt") == STEPS


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
def test_the_older_fsdp_calls_the_weights_otherwise(sharded: Path, tmp_path: Path) -> None:
    weights, optimizer = torch.load(sharded / "gathered.pt", weights_only=True)
    save({"model": weights, "optimizer_0": optimizer}, checkpoint_id=tmp_path / "last.ckpt", no_dist=True)
    shutil.copy(sharded / "run" / "last.ckpt" / "meta.pt", tmp_path / "last.ckpt")
    older, newer = (read_checkpoint(folder / "last.ckpt") for folder in (tmp_path, sharded / "run"))
    assert older.keys() == newer.keys()
    assert_same_tensors(older["state_dict"], newer["state_dict"])
    (state,), (expected,) = older["optimizer_states"], newer["optimizer_states"]
    assert state["param_groups"] == expected["param_groups"]
    for number, values in expected["state"].items():
        assert_same_tensors(state["state"][number], values)


def test_it_is_validated_and_exported_alone(run: Path, command_line: Callable[..., Any], sharded: Path) -> None:
    one_file = Path(shutil.copytree(run, run.with_name("one_file"), ignore=shutil.ignore_patterns("last.ckpt")))
    AtomicCheckpointIO().save_checkpoint(read_checkpoint(run / "last.ckpt"), one_file / "last.ckpt")
    tables = []
    for ckpt_path in (run, run / "last.ckpt", one_file):
        ended = command_line("validate", "--ckpt_path", ckpt_path)
        assert (ended.status, ended.err) == (0, "")
        assert "validated " in ended.out
        tables.append(ended.out[ended.out.index("  validation perplexity") :])
    assert tables[0] == tables[1] == tables[2]
    ended = command_line("export", "--ckpt_path", run / "last.ckpt", "--out", "exported")
    assert (ended.status, ended.err) == (0, "")
    weights, _ = torch.load(sharded / "gathered.pt", weights_only=True)
    exported = AutoModelForCausalLM.from_pretrained(run.parent / "exported")
    assert isinstance(exported, pathmoe.PathMoEForCausalLM)
    assert_same_tensors(exported.state_dict(), {name.removeprefix("model."): w for name, w in weights.items()})


class Losses(Callback):
    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.losses[trainer.global_step] = float(trainer.callback_metrics["train/loss"])


def fit(max_steps: int, last: Path) -> dict[int, float]:
    """Losses on one device, from the checkpoint on where there is one."""
    losses = Losses()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=max_steps,
        callbacks=[losses, LastCheckpoint(last, 100)],
        plugins=[AtomicCheckpointIO()],
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = PathMoEModule(PathMoEConfig(**MODEL), OptimizerConfig(lr=0.01), ScheduleConfig(name="constant"))
    data = TokenDataModule(**DATA, vocab_size=300, micro_batch_size=4)
    trainer.fit(module, datamodule=data, ckpt_path=last if last.exists() else None, weights_only=True)
    return losses.losses


def test_one_device_goes_on_with_it_as_if_it_had_trained_alone(run: Path, tmp_path: Path) -> None:
    alone = fit(STEPS + 3, tmp_path / "alone.ckpt")
    resumed = fit(STEPS + 3, run / "last.ckpt")
    expected = {step: loss for step, loss in alone.items() if step > STEPS}
    assert len(expected) == 3
    assert resumed == pytest.approx(expected, rel=1e-5)
    assert (run / "last.ckpt").is_file(), "one device writes one file, in the place of the folder"
    assert saved_step(run / "last.ckpt") == STEPS + 3
    assert saved_step(run / "previous.ckpt") == STEPS, "which is kept as it was"
    names = {"config.yaml", "last.ckpt", "previous.ckpt", ".last.ckpt.1", "provenance.json", "tokenizer"}
    assert {path.name for path in run.iterdir()} == names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".metadata", "must be an existing checkpoint, a file or a sharded folder"),
        ("meta.pt", "must be an existing checkpoint, a file or a sharded folder"),
        ("__1_0.distcp", r"must be a whole checkpoint, but it can't be read \(FileNotFoundError"),
    ],
)
def test_what_was_cut_short_is_refused(run: Path, name: str, message: str) -> None:
    part = run / "last.ckpt" / name
    content = part.read_bytes()
    part.unlink()
    with pytest.raises(ValueError, match=rf"^--ckpt_path \(.*/last\.ckpt\) {message}"):
        read_checkpoint(run / "last.ckpt")
    part.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"^--ckpt_path \(.*/last\.ckpt\) must be a whole checkpoint, but"):
        read_checkpoint(run / "last.ckpt")


class Dangerous:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("echo run",)


def test_code_in_the_index_is_not_run(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (run / "last.ckpt" / ".metadata").write_bytes(pickle.dumps(Dangerous()))
    with pytest.raises(ValueError, match=r"must be a whole checkpoint, .* \w+\.system is no part of an"):
        read_checkpoint(run / "last.ckpt")
    assert capfd.readouterr().out == ""


def test_code_in_a_value_is_not_run(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (run / "last.ckpt" / ".metadata").open("rb") as file:
        index = pickle.load(file)
    key = next(key for key in index.storage_data if key.fqn == "optimizer_0.param_groups.0.name")
    place = index.storage_data[key]
    dangerous = BytesIO()
    torch.save(Dangerous(), dangerous)
    shard = run / "last.ckpt" / place.relative_path
    place.offset, place.length = shard.stat().st_size, len(dangerous.getvalue())
    shard.write_bytes(shard.read_bytes() + dangerous.getvalue())
    (run / "last.ckpt" / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(ValueError, match=r"must be a whole checkpoint, but it can't be read \(\w*Unpickling"):
        read_checkpoint(run / "last.ckpt")
    assert capfd.readouterr().out == ""
