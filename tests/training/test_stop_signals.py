"""What signals do outside of training; test_last_checkpoint.py and test_train.py have what they do within."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pathmoe.training.errors import with_one_line_errors
from pathmoe.training.stop_signals import Stopped, StopSignals, stopping_at_once

CommandLine = Callable[..., Any]
SIGNALS = pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])


@pytest.fixture(autouse=True)
def _in_a_terminal() -> Iterator[None]:
    """Under nohup, tests would have SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@SIGNALS
def test_outside_of_training_a_signal_ends_the_program_with_one_line(
    signum: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(SystemExit) as end:
        with_one_line_errors(lambda: signal.raise_signal(signum))
    assert end.value.code == 128 + signum
    assert capsys.readouterr() == ("", "stopped\n")
    assert signal.getsignal(signum) == before


def test_what_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with_one_line_errors(lambda: signal.raise_signal(signal.SIGHUP))


@SIGNALS
@pytest.mark.parametrize("command", ["fit", "validate", "export"])
def test_every_command_can_be_stopped(
    command: str, signum: int, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, finished_run: Any
) -> None:
    for place in ("pathmoe.data.TokenDataModule.prepare_data", "pathmoe.training.export.load_model"):
        monkeypatch.setattr(place, lambda *_: signal.raise_signal(signum))
    options = {"fit": ["--run_dir", "new"], "export": ["--out", "out"]}.get(command, [])
    ended = command_line(command, "--ckpt_path", finished_run.folder, *options)
    assert (ended.status, ended.err) == (128 + signum, "stopped\n")


@SIGNALS
def test_a_signal_is_kept_until_it_is_asked_for_and_a_second_is_not(signum: int) -> None:
    before = signal.getsignal(signum)
    signals, trainer = StopSignals(), SimpleNamespace(world_size=1)
    signals.listen()
    assert signals.received(trainer) is None
    signal.raise_signal(signum)
    assert signals.received(trainer) == signum
    with pytest.raises(Stopped) as stopped:
        signal.raise_signal(signum)
    assert stopped.value.code == 128 + signum
    signals.leave()
    assert signal.getsignal(signum) == before


@pytest.mark.parametrize(("anywhere", "signum"), [(False, None), (True, signal.SIGINT)])
def test_the_ranks_stop_together(anywhere: bool, signum: int | None) -> None:
    strategy = SimpleNamespace(reduce_boolean_decision=lambda here, all: here or anywhere)
    assert StopSignals().received(SimpleNamespace(world_size=2, strategy=strategy)) == signum


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_worker_leaves_what_all_get_to_its_parent_and_ends_by_sigterm(signum: int) -> None:
    def work(ready: Any) -> None:
        os.kill(os.getpid(), signum)
        ready.set()
        while True:  # of signal.pause, a signal that comes just before it would never wake it
            time.sleep(0.01)

    context = multiprocessing.get_context("fork")
    ready = context.Event()
    with stopping_at_once():
        worker = context.Process(target=work, args=(ready,), daemon=True)
        worker.start()
        assert ready.wait(60)
        worker.terminate()
        worker.join(60)
    assert worker.exitcode == -signal.SIGTERM
