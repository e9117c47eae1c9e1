"""Processes killed by SIGKILL: what is resumed ends, bit for bit, as if nothing had happened."""

import csv
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from pathmoe.data.tokenizer import train_bpe
from pathmoe.training.checkpoint_io import read_checkpoint
from pathmoe.training.cli import main

ROOT = Path(__file__).resolve().parents[2]
STEPS = 24
CLOSING = {"class_path": "pathmoe_eval.closing.ClosingReport"}
SETTINGS: dict[str, Any] = {
    "model": {
        "config": {
            "vocab_size": 300,
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "moe_intermediate_size": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "layers_per_router": 2,
            "router_bias_update_rate": 0.01,
            "router_noise_std": 0.3,
            "router_aux_loss_coef": 0.01,
            "router_aux_loss_scope": "global_batch",
        },
        "optimizer": {"name": "muon", "lr": 0.01},
        "schedule": {"name": "constant", "warmup_steps": 4},
    },
    "data": {"source": "c-functions", "num_documents": 20, "sequence_length": 32, "micro_batch_size": 2},
    "trainer": {
        "accelerator": "cpu",
        "max_steps": STEPS,
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 1.0,
        "log_every_n_steps": 1,
        "val_check_interval": 16,
        "check_val_every_n_epoch": None,
        "limit_val_batches": 2,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
    "checkpoint_every_n_steps": 4,
}

# Timings, and the memory of a process, are not the run's.
MEASURED = ("tokens_per_second", "data_wait_share", "memory_gib", "seconds")


def not_measured(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if value != "" and not name.endswith(MEASURED)}


class Run:
    """A run in a folder, by processes of its own."""

    def __init__(self, folder: Path, callbacks: tuple[dict[str, Any], ...] = (), **settings: dict[str, Any]) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder / "run"
        self.settings = folder / "settings.yaml"
        merged = {key: value | settings.get(key, {}) for key, value in SETTINGS.items() if isinstance(value, dict)}
        merged["trainer"]["callbacks"] = [*callbacks, CLOSING]
        self.settings.write_text(yaml.safe_dump(SETTINGS | merged))

    def command(self, *more: str, ckpt_path: str = "last") -> list[str]:
        return ["fit", "--config", str(self.settings), "--run_dir", str(self.folder), "--ckpt_path", ckpt_path, *more]

    def start(self) -> "subprocess.Popen[str]":
        """A process of train.py."""
        command = [sys.executable, "train.py", *self.command()]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def fork(self, *more: str, ckpt_path: str = "last") -> int:
        """Exit status of a fork of this process, which has all imports behind it, through the same command line."""

        def child() -> None:
            sys.argv = ["train.py"]
            main(self.command(*more, ckpt_path=ckpt_path))

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(timeout=120)
        assert process.exitcode is not None
        return process.exitcode

    @property
    def last(self) -> Path:
        return self.folder / "last.ckpt"

    def rows(self) -> list[tuple[tuple[int, str], dict[str, str]]]:
        """What all processes have logged, in order, by step and kind."""
        rows = []
        files = self.folder.glob("csv/version_*/metrics.csv")
        for file in sorted(files, key=lambda file: int(file.parent.name.removeprefix("version_"))):
            lines = file.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # the kill may have cut one
            for row in csv.DictReader(whole):
                rows.append(((int(row["step"]), "train" if row["train/loss"] else "val"), not_measured(row)))
        return rows

    def state(self) -> dict[str, Any]:
        saved = read_checkpoint(self.last)
        return {key: saved[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")}

    def summary(self) -> dict[str, Any]:
        return not_measured(json.loads((self.folder / "summary.json").read_text()))


def assert_same_bits(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_bits(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same_bits(left, right)
    else:
        assert one == other


def assert_same_run(run: Run, whole: Run, ended_at: int | None = None) -> None:
    """Every row that any of its processes has logged, the final state and the closing figures are those of `whole`.

    A run that ended at another step before has been validated there too.
    """
    expected = dict(whole.rows())
    rows = [(key, row) for key, row in run.rows() if ended_at is None or key != (ended_at - 1, "val")]
    for key, row in rows:
        assert row == expected[key], key
    assert dict(rows).keys() == expected.keys()
    assert_same_bits(run.state(), whole.state())
    assert run.summary() == whole.summary()


def kill_after(process: "subprocess.Popen[str]", condition: Callable[[], bool], delay: float) -> bool:
    """SIGKILL so many seconds after the condition holds; whether the process was still at it."""
    deadline = time.monotonic() + 200
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            _, errors = process.communicate()
            pytest.fail(f"ended before it could be killed ({process.returncode}): {errors}")
        time.sleep(0.002)
    time.sleep(delay)
    was_running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return was_running


@pytest.mark.slow
def test_a_process_killed_at_random_moments(tmp_path: Path) -> None:
    """PATHMOE_KILL_SEED chooses other moments."""
    seed = int(os.environ.get("PATHMOE_KILL_SEED", "0"))
    rng = random.Random(seed)
    # Three rounds through the training split, at some 0.02 s a step.
    longer: dict[str, Any] = {"trainer": {"max_steps": 80, "val_check_interval": 20}}
    (tmp_path / "whole").mkdir()
    whole, run = Run(tmp_path / "whole", **longer), Run(tmp_path, **longer)
    assert whole.fork() == 0
    killed = []
    for _ in range(2):
        before = run.last.stat().st_mtime_ns if run.last.exists() else None
        process = run.start()
        is_new = lambda before=before: run.last.exists() and run.last.stat().st_mtime_ns != before  # noqa: E731  # short
        if kill_after(process, is_new, delay=rng.uniform(0, 0.5)):
            killed.append((read_checkpoint(run.last)["global_step"], max(step for (step, _), _ in run.rows())))
    print(f"seed {seed}: killed with (last checkpoint, last step in the log) at {killed}")
    assert killed
    assert killed[0][0] < 80
    _, errors = (process := run.start()).communicate()
    assert process.returncode == 0, errors
    assert_same_run(run, whole)


class KillAt(Callback):
    """Kills its own process at a hook, of callbacks or, after them, of the module, once a step is reached."""

    def __init__(self, hook: str, step: int) -> None:
        self.module_hook = hook.removeprefix("module.")
        self.step = step
        if self.module_hook == hook:
            setattr(self, hook, lambda trainer, *_: self.kill(trainer))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.module_hook not in vars(self):
            setattr(pl_module, self.module_hook, lambda *_: self.kill(trainer))

    def kill(self, trainer: Trainer) -> None:
        if trainer.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(autouse=True)
def _importable_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, KillAt.__module__, sys.modules[__name__])


needs_fork = pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(), reason="forks, which CUDA does not survive"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nothing happens to."""
    run = Run(tmp_path_factory.mktemp("whole"))
    assert run.fork() == 0
    assert {key for key, _ in run.rows() if key[1] == "val"} == {(7, "val"), (15, "val"), (23, "val")}
    return run


def killer(hook: str, step: int) -> dict[str, Any]:
    return {"class_path": f"{KillAt.__module__}.KillAt", "init_args": {"hook": hook, "step": step}}


# A validation follows steps 8, 16 and 24. A checkpoint is due at every fourth, and waits for the validation there.
MOMENTS = [
    # hook, step, step of the last checkpoint by then
    ("on_train_batch_start", 4, 4),
    ("on_before_optimizer_step", 6, 4),
    ("on_train_batch_end", 8, 4),
    ("on_validation_start", 16, 12),
    ("on_validation_batch_end", 16, 12),
    ("on_validation_end", 16, 12),
    ("on_train_batch_start", 16, 16),
    ("on_save_checkpoint", 20, 16),
    ("module.on_train_batch_end", 20, 20),  # after the checkpoint and before the log
    ("on_validation_start", 24, 20),
    ("on_train_end", 24, 24),
    ("on_fit_end", 24, 24),
]


@needs_fork
@pytest.mark.slow
def test_a_run_killed_at_every_kind_of_moment(tmp_path: Path, whole: Run) -> None:
    run = Run(tmp_path)
    for hook, step, last in MOMENTS:
        assert run.fork("--trainer.callbacks", json.dumps([killer(hook, step), CLOSING])) == -signal.SIGKILL
        assert read_checkpoint(run.last)["global_step"] == last
    assert not (run.folder / "summary.json").exists()
    assert run.fork("--trainer.callbacks", json.dumps([CLOSING])) == 0
    assert_same_run(run, whole)


@needs_fork
def test_settings_given_again_change_no_bit_and_a_finished_run_goes_on(tmp_path: Path, whole: Run) -> None:
    run = Run(tmp_path)
    assert run.fork("--trainer.max_steps", "10") == 0
    assert run.fork("--trainer.max_steps", str(STEPS), "--model.optimizer.lr", "0.01", "--seed_everything", "0") == 0
    assert_same_run(run, whole, ended_at=10)


@needs_fork
def test_the_best_checkpoint_goes_on_exactly_too(tmp_path: Path, whole: Run) -> None:
    run = Run(tmp_path)
    killed_at_11 = json.dumps([killer("on_train_batch_start", 11), CLOSING])
    assert run.fork("--trainer.callbacks", killed_at_11) == -signal.SIGKILL
    assert read_checkpoint(run.folder / "best.ckpt")["global_step"] == 8
    assert run.fork("--trainer.callbacks", json.dumps([CLOSING]), ckpt_path="best") == 0
    assert_same_run(run, whole)


@needs_fork
def test_a_new_rate_holds_from_the_resumed_step_on(tmp_path: Path, whole: Run) -> None:
    run = Run(tmp_path)
    assert run.fork("--trainer.max_steps", "10") == 0
    assert run.fork("--trainer.max_steps", str(STEPS), "--model.optimizer.lr", "0.02") == 0
    rates = {step: float(row["lr"]) for (step, kind), row in run.rows() if kind == "train"}
    assert rates == {step: min(1, (step + 1) / 5) * (0.01 if step < 10 else 0.02) for step in range(STEPS)}
    losses = {key: row["train/loss"] for key, row in run.rows() if key[1] == "train"}
    expected = {key: row["train/loss"] for key, row in whole.rows() if key[1] == "train"}
    same = [step for (step, _), loss in losses.items() if loss == expected[step, "train"]]
    assert same == list(range(11)), "the first loss that another rate can change is that of the step after the first"


@needs_fork
def test_another_validation_interval_leaves_the_steps_of_the_log(tmp_path: Path, whole: Run) -> None:
    run = Run(tmp_path)
    # The last checkpoint was written after a validation, which now is none of this step.
    assert run.fork("--trainer.max_steps", "8") == 0
    assert run.fork("--trainer.max_steps", str(STEPS), "--trainer.val_check_interval", "12") == 0
    assert {step for (step, kind), _ in run.rows() if kind == "train"} == set(range(STEPS))
    expected = dict(whole.rows())
    assert all(row == expected[key] for key, row in run.rows() if key[1] == "train")
    assert_same_bits(run.state(), whole.state())


@needs_fork
def test_a_stream_goes_on_exactly(tmp_path: Path) -> None:
    texts = [f"document {number}: " + "word " * (number * 7 % 40) for number in range(100)]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    train_bpe(texts, 280).save_pretrained(str(tmp_path / "tokenizer"))
    stream = {"source": str(tmp_path / "texts.jsonl"), "tokenizer": str(tmp_path / "tokenizer"), "streaming": True}
    data = stream | {"validation_documents": 20, "num_documents": None}
    whole, run = Run(tmp_path / "whole", data=data), Run(tmp_path / "resumed", data=data)
    assert whole.fork() == 0
    assert run.fork("--trainer.callbacks", json.dumps([killer("on_before_optimizer_step", 14), CLOSING])) < 0
    assert run.fork("--trainer.callbacks", json.dumps([CLOSING])) == 0
    assert_same_run(run, whole)


@needs_fork
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--model.optimizer.name", "adamw", "model.optimizer.name and model.config.router_frozen must be"),
        ("--model.config.router_frozen", "true", "model.optimizer.name and model.config.router_frozen must be"),
        ("--trainer.accumulate_grad_batches", "4", "data.global_batch_size (8) must equal the checkpoint's (4)"),
        ("--trainer.val_check_interval", "7", "trainer.val_check_interval (7) must be a multiple of"),
    ],
)
def test_what_would_be_another_run_is_refused(
    whole: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    shutil.copytree(whole.folder, tmp_path / "run")
    run = Run(tmp_path)
    assert run.fork(option, value) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
