"""Heartbeats of real runs: where a rank is, while it gets on, hangs and ends."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from pathmoe.config import PathMoEConfig
from pathmoe.data import TokenDataModule
from pathmoe.training.checkpoint_io import AtomicCheckpointIO
from pathmoe.training.heart import Heart
from pathmoe.training.heartbeat import Heartbeat, heartbeat_file, late_ranks, read_heartbeats, write_heartbeat
from pathmoe.training.last_checkpoint import LastCheckpoint
from pathmoe.training.module import PathMoEModule
from pathmoe.training.schedule import ScheduleConfig

ROOT = Path(__file__).resolve().parents[2]


class Phases(Callback):
    """What the heart has noted at each hook that follows it."""

    def __init__(self, heart: Heart) -> None:
        self.heart = heart
        self.seen: list[tuple[str, int]] = []

    def _look(self, *_: Any) -> None:
        heartbeat = self.heart._heartbeat
        assert heartbeat is not None
        self.seen.append((heartbeat.phase, heartbeat.step))

    on_train_start = on_train_batch_start = on_train_batch_end = on_save_checkpoint = _look
    on_before_backward = on_before_optimizer_step = _look
    on_validation_start = on_validation_end = on_validation_batch_start = _look


def fit(heart: Heart, *callbacks: Callback, source: Path, **options: Any) -> None:
    shape: dict[str, Any] = {
        "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2,
    }  # fmt: skip
    trainer = Trainer(
        **{"accelerator": "cpu", "devices": 1, "max_steps": 2, "limit_val_batches": 0} | options,
        callbacks=[heart, *callbacks],
        plugins=[AtomicCheckpointIO()],
        num_sanity_val_steps=0,
        enable_checkpointing=any(isinstance(callback, LastCheckpoint) for callback in callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = TokenDataModule(source=str(source), vocab_size=300, sequence_length=32, micro_batch_size=2)
    trainer.fit(PathMoEModule(PathMoEConfig(**shape), schedule=ScheduleConfig(name="constant")), data)


def test_phases_are_those_of_the_run(tmp_path: Path, short_documents: Path) -> None:
    heart = Heart(tmp_path)
    phases = Phases(heart)
    every_second = {"val_check_interval": 4, "check_val_every_n_epoch": None, "limit_val_batches": 1}
    last = LastCheckpoint(tmp_path / "last.ckpt", 1)
    fit(heart, phases, last, source=short_documents, accumulate_grad_batches=2, **every_second)
    assert phases.seen == [
        ("data", 0),
        *[("forward", 0), ("backward", 0), ("data", 0), ("forward", 0), ("backward", 0), ("update", 0), ("data", 1)],
        ("checkpoint", 1),
        *[("forward", 1), ("backward", 1), ("data", 1), ("forward", 1), ("backward", 1), ("update", 1), ("data", 2)],
        *[("validation", 2), ("validation", 2), ("data", 2), ("checkpoint", 2)],
    ]
    (left,) = read_heartbeats(tmp_path)
    assert (left.phase, left.step, left.rank, left.world_size) == ("ended", 2, 0, 1)
    assert (left.host, left.pid) == (socket.gethostname(), os.getpid())
    assert left.step_seconds is not None and 0 < left.step_seconds < 60
    assert abs(left.unix_time - time.time()) < 60


def old_heartbeat(rank: int) -> Heartbeat:
    return Heartbeat(rank, 4, "gone", 1, 9, "forward", 10**6, time.time() - 900, time.time() - 900, None)


def test_another_start_of_the_run_leaves_nothing_behind(tmp_path: Path, short_documents: Path) -> None:
    (tmp_path / "heartbeat").mkdir()
    for rank in range(4):
        write_heartbeat(tmp_path, old_heartbeat(rank))
        os.utime(heartbeat_file(tmp_path, rank), (time.time() - 900,) * 2)
    fit(Heart(tmp_path), source=short_documents)
    assert [(heartbeat.rank, heartbeat.step) for heartbeat in read_heartbeats(tmp_path)] == [(0, 2)]


class RemoveFolder(Callback):
    """A disk that can no longer be written to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(self, *_: Any) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def test_a_folder_that_cannot_be_written_to_does_not_end_the_run(tmp_path: Path, short_documents: Path) -> None:
    heart = Heart(tmp_path)
    fit(heart, RemoveFolder(tmp_path / "heartbeat"), source=short_documents)
    assert heart._heartbeat is not None and heart._heartbeat.step == 2
    assert not (tmp_path / "heartbeat").exists()


class Fail(Callback):
    def on_train_batch_start(self, *_: Any) -> None:
        raise KeyError("here")


def test_a_run_that_fails_leaves_word_of_it(tmp_path: Path, short_documents: Path) -> None:
    with pytest.raises(KeyError, match="here"):
        fit(Heart(tmp_path), Fail(), source=short_documents)
    (left,) = read_heartbeats(tmp_path)
    assert (left.phase, left.step) == ("ended", 0)
    assert late_ranks(tmp_path, seconds=0)[0].startswith(
        f"rank 0 on {socket.gethostname()} (pid {os.getpid()}): step 0, ended for 0 s"
    )


TWO_RANKS = """
import sys
import time
from pathlib import Path

from lightning.pytorch import Callback

from tests.training.test_heart import fit
from pathmoe.training.heart import Heart

FOLDER, SOURCE = map(Path, sys.argv[1:])


class Hang(Callback):
    # The second rank never comes to the end of its third forward.
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step == 2:
            pl_module.model.register_forward_pre_hook(lambda *_: time.sleep(1000))


fit(Heart(FOLDER), Hang(), source=SOURCE, max_steps=5, devices=2, strategy="ddp")
"""


@pytest.fixture
def two_ranks(tmp_path: Path, short_documents: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = tmp_path / "two_ranks.py"
    script.write_text(TWO_RANKS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, str(script), str(tmp_path), str(short_documents)],
            env=environment, stdout=log, stderr=log, cwd=tmp_path,
        )  # fmt: skip
        yield process
        # The launcher gives workers half a minute to end by themselves, which one that hangs does not.
        for heartbeat in read_heartbeats(tmp_path):
            os.kill(heartbeat.pid, signal.SIGKILL)
        process.terminate()
        process.wait()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="of processes on a CPU")
def test_of_two_ranks_the_one_that_hangs_is_named(two_ranks: subprocess.Popen[bytes], tmp_path: Path) -> None:
    waited = time.monotonic()
    while not (len(found := read_heartbeats(tmp_path)) == 2 and all(heartbeat.step == 2 for heartbeat in found)):
        assert two_ranks.poll() is None and time.monotonic() - waited < 120, (tmp_path / "log").read_text()
        time.sleep(0.1)
    time.sleep(2)  # in which nobody gets on
    before = read_heartbeats(tmp_path)
    time.sleep(2)
    after = read_heartbeats(tmp_path)
    assert [heartbeat.beat for heartbeat in before] == [heartbeat.beat for heartbeat in after]
    for old, new in zip(before, after, strict=True):
        assert new.unix_time == old.unix_time
        assert new.alive_unix_time > old.alive_unix_time, "the thread goes on where its rank hangs"
    assert [heartbeat.phase for heartbeat in after] == ["backward", "forward"]
    (line,) = late_ranks(tmp_path)
    assert line.startswith(f"rank 1 on {socket.gethostname()} (pid {after[1].pid}): step 2, forward for ")
