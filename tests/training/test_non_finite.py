"""A loss or gradient that is not finite stops the run before it reaches the weights, and says where to go on."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer

from pathmoe.config import PathMoEConfig
from pathmoe.data import TokenDataModule, block_indices, train_bpe
from pathmoe.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from pathmoe.training.cli import main
from pathmoe.training.last_checkpoint import LastCheckpoint
from pathmoe.training.module import PathMoEModule
from pathmoe.training.schedule import ScheduleConfig

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "moe_intermediate_size": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
ROOT = Path(__file__).resolve().parents[2]
TRAINER = {
    "accelerator": "cpu",
    "max_steps": 9,
    "limit_val_batches": 0,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
DATA = {"source": "c-functions", "num_documents": 120, "sequence_length": 32, "micro_batch_size": 2}


class Poison(Callback):
    """NaN in a weight before a micro-batch of a rank; infinity into a gradient after it, or into all from then on."""

    def __init__(self, step: int, micro_batch: int, what: str, rank: int = 0) -> None:
        self.at = (step, micro_batch, rank)
        self.what = what
        self.now = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: PathMoEModule, batch: Any, batch_idx: int) -> None:
        self.now = (trainer.global_step, batch["micro_batch"], trainer.global_rank) == self.at
        if self.now and self.what == "weight":
            with torch.no_grad():
                pl_module.model.model.norm.weight[0] = math.nan

    def on_after_backward(self, trainer: Trainer, pl_module: PathMoEModule) -> None:
        if (self.now and self.what == "gradient") or (self.what == "gradients" and trainer.global_step >= self.at[0]):
            next(pl_module.parameters()).grad[0, 0] = math.inf


class KeepWeights(Callback):
    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: PathMoEModule, *_: Any) -> None:
        if trainer.global_step > len(self.weights):
            self.weights.append({name: value.clone() for name, value in pl_module.state_dict().items()})


def fit(
    poison: Poison, folder: Path, keep: KeepWeights | None = None, non_finite: Any = "stop", **data: Any
) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=16,
        accumulate_grad_batches=2,
        callbacks=[poison, keep or KeepWeights(), LastCheckpoint(folder / "last.ckpt", every_n_steps=2)],
        plugins=[AtomicCheckpointIO()],
        limit_val_batches=0,
        log_every_n_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    config = PathMoEConfig(**SHAPE, scoring_func="sigmoid", router_bias_update_rate=0.1)
    module = PathMoEModule(config, schedule=ScheduleConfig(name="constant"), non_finite=non_finite)
    trainer.fit(module, datamodule=TokenDataModule(**DATA | data, vocab_size=300))
    return trainer


def blocks_of(step: int, micro_batch: int) -> list[int]:
    data = TokenDataModule(**DATA, vocab_size=300)
    data.prepare_data()
    data.setup("validate")
    positions = torch.arange(2).numpy() + 2 * (2 * step + micro_batch)
    return [int(index) for index in block_indices(positions, len(data.train_blocks), seed=0)]


@pytest.mark.parametrize("micro_batch", [0, 1])
def test_a_loss_that_is_not_finite_names_step_blocks_and_checkpoint(tmp_path: Path, micro_batch: int) -> None:
    keep = KeepWeights()
    with pytest.raises(ValueError, match="must be finite") as caught:
        fit(Poison(5, micro_batch, "weight"), tmp_path, keep)
    message = str(caught.value)
    suspects = "; ".join(f"rank 0, micro-batch {part}, blocks {blocks_of(5, part)}" for part in range(micro_batch, 2))
    assert message == (
        f"train/loss (nan) must be finite, but is not at optimizer step 5 ({suspects}); lower "
        "model.optimizer.lr or set trainer.gradient_clip_val, and go on from the last good checkpoint with "
        f"--ckpt_path {tmp_path / 'last.ckpt'}"
    )
    assert len(keep.weights) == 5, "the step was not taken"
    saved = read_checkpoint(tmp_path / "last.ckpt")
    assert saved["global_step"] == 4
    assert all(torch.equal(value, keep.weights[3][name]) for name, value in saved["state_dict"].items())
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_a_gradient_that_is_not_finite_stops_too(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^train/grad_norm \((inf|nan)\) must be finite, .* step 2 \(rank 0, mic"
    ) as caught:
        fit(Poison(2, 1, "gradient"), tmp_path)
    assert all(str(block) in str(caught.value) for part in range(2) for block in blocks_of(2, part))
    assert all(value.isfinite().all() for value in read_checkpoint(tmp_path / "last.ckpt")["state_dict"].values())


def test_a_step_that_is_skipped_changes_nothing_and_is_counted(tmp_path: Path) -> None:
    keep = KeepWeights()
    with pytest.warns(UserWarning, match=r"^train/grad_norm .* step 2 \(rank 0, .*\); the step is left out$") as warned:
        trainer = fit(Poison(2, 1, "gradient"), tmp_path, keep, non_finite="skip")
    assert len([one for one in warned if "left out" in str(one.message)]) == 1
    assert trainer.global_step == len(keep.weights) == 16
    assert all(torch.equal(value, keep.weights[1][name]) for name, value in keep.weights[2].items())
    assert any(not torch.equal(value, keep.weights[2][name]) for name, value in keep.weights[3].items())
    assert all(value.isfinite().all() for value in keep.weights[-1].values())
    assert trainer.callback_metrics["train/skipped_steps"] == 1
    assert read_checkpoint(tmp_path / "last.ckpt")["pathmoe"]["skipped_steps"] == 1


def test_steps_are_not_skipped_forever(tmp_path: Path) -> None:
    keep = KeepWeights()
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match=r"at optimizer step 12 \(.*\), as it was not in the 10 steps before; lower"),
    ):
        fit(Poison(2, 0, "gradients"), tmp_path, keep, non_finite="skip")
    assert all(torch.equal(value, keep.weights[1][name]) for name, value in keep.weights[-1].items())


def test_a_long_list_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathmoe.training.non_finite._MOST_NAMED", 1)
    with pytest.raises(
        ValueError, match=rf"\(rank 0, micro-batch 0, blocks {re.escape(str(blocks_of(1, 0)))}; and 1 more\)"
    ):
        fit(Poison(1, 0, "weight"), tmp_path)


def test_of_a_stream_the_place_is_named(tmp_path: Path) -> None:
    texts = [f"document {number}: " + "word " * (number * 7 % 40) for number in range(100)]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    train_bpe(texts, 280).save_pretrained(str(tmp_path / "tokenizer"))
    stream = {"streaming": True, "tokenizer": str(tmp_path / "tokenizer"), "validation_documents": 20}
    source = {"source": str(tmp_path / "texts.jsonl"), "num_documents": None}
    # Five steps of two micro-batches of two blocks, and a micro-batch, come before.
    with pytest.raises(ValueError, match=r"step 5 \(rank 0, micro-batch 1, blocks \[22, 23\] of its stream\); lower"):
        fit(Poison(5, 1, "weight"), tmp_path, **stream, **source)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="starts processes that talk over gloo")
def test_of_several_ranks_the_first_names_the_one_at_fault(tmp_path: Path) -> None:
    poison = {"class_path": "poison.Poison", "init_args": {"step": 1, "micro_batch": 1, "what": "weight", "rank": 1}}
    shutil.copy(__file__, tmp_path / "poison.py")
    ranks = {"devices": 2, "strategy": "ddp", "accumulate_grad_batches": 2}
    trainer = TRAINER | ranks | {"callbacks": [poison]}
    config = {"model": {"config": SHAPE, "schedule": {"name": "constant"}}, "data": DATA, "trainer": trainer}
    (tmp_path / "poisoned.yaml").write_text(yaml.safe_dump(config))
    ended = subprocess.run(
        [sys.executable, ROOT / "train.py", "fit", "--config", "poisoned.yaml"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in ended.stderr
    assert re.search(r"step 1 \(rank 1, micro-batch 1, blocks \[\d+, \d+\]\); lower", line)


def test_before_the_first_checkpoint_there_is_none_to_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"step 1 .* and start again, as there is no checkpoint yet$"):
        fit(Poison(1, 0, "weight"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_on_the_command_line_it_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison = {"class_path": f"{Poison.__module__}.Poison"}
    monkeypatch.setitem(sys.modules, Poison.__module__, sys.modules[__name__])
    settings = {
        "model": {"config": SHAPE, "schedule": {"name": "constant"}},
        "data": DATA,
        "trainer": TRAINER | {"callbacks": [poison | {"init_args": {"step": 3, "micro_batch": 0, "what": "weight"}}]},
        "checkpoint_every_n_steps": 2,
    }
    config = tmp_path / "poisoned.yaml"
    config.write_text(yaml.safe_dump(settings))
    run_dir = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", str(config), "--run_dir", str(run_dir)])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: train/loss (nan) must be finite, but is not at optimizer step 3 (rank 0, micro-batch 0, b"
    )
    assert line.endswith(f"--ckpt_path {run_dir / 'last.ckpt'}")
    assert read_checkpoint(run_dir / "last.ckpt")["global_step"] == 2
