"""train.py as a process of its own: what a terminal sees of each kind of failure, of a run and of a stop."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]

SETTINGS = {
    "model": {
        "config": {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 4, "num_experts": 16},
        "schedule": {"name": "constant", "warmup_steps": 1},
    },
    "data": {"source": "texts", "validation_fraction": 0.3, "sequence_length": 32, "micro_batch_size": 2},
    "trainer": {"max_steps": 2, "limit_val_batches": 0},
}
FIT = ["fit", "--config", "tiny", "--config", "path_b4", "--config", "mini.yaml", "--run_dir", "run"]

Start = Callable[..., subprocess.Popen[str]]

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a configuration of the user's and texts to train on."""
    (tmp_path / "texts").mkdir()
    for number in range(6):
        (tmp_path / "texts" / f"{number}.txt").write_text(" ".join(str(number * i % 97) for i in range(500)))
    (tmp_path / "mini.yaml").write_text(yaml.safe_dump(SETTINGS))
    (tmp_path / "bad.txt").write_bytes(b"\xff" * 1000)
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts train.py in the folder; ends what is left at the end."""
    processes: list[subprocess.Popen[str]] = []

    def popen(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True, process_group=0)
        processes.append(process)
        return processes[-1]

    yield popen
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    waited = time.monotonic()
    while not file.exists():
        assert process.poll() is None and time.monotonic() - waited < 120
        time.sleep(0.05)


def test_a_terminal_sees_one_line_of_each_kind_of_failure(start: Start, folder: Path) -> None:
    flags_and_lines = [
        (
            ["--model.config.num_expert", "8"],
            "--model.config.num_expert (8) is not a known option; did you mean model.config.num_experts?",
        ),
        (
            ["--model.config.num_experts_per_tok", "99"],
            "model.config.num_experts_per_tok (99) must be at most model.config.num_experts (16); "
            "lower the first or raise the second",
        ),
        (
            ["--data.source", "bad.txt"],
            "data.source: bad.txt is not UTF-8 at byte 0 (invalid start byte); convert it to UTF-8",
        ),
    ]
    processes = [start(*FIT, *flags) for flags, _ in flags_and_lines]
    for process, (_, line) in zip(processes, flags_and_lines, strict=True):
        out, err = process.communicate()
        assert (out, err) == ("", f"error: {line}\n")
        assert process.returncode == 2
    assert not (folder / "run").exists()


def test_a_run_belongs_to_one_process_until_it_is_killed(
    start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pathmoe.training.cli import main

    first = start(*FIT, "--trainer.max_steps", "1000000", "--checkpoint_every_n_steps", "1000000")
    wait_for(folder / "run" / "provenance.json", first)  # what a run lays down last as it starts
    files = sorted(os.listdir(folder / "run"))

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as end:
        main(FIT)
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error: --run_dir (run) must not be in use by another process; wait for it, or choose another\n"
    )
    assert sorted(os.listdir(folder / "run")) == files

    first.send_signal(signal.SIGKILL)
    first.communicate()
    after = start(*FIT, "--ckpt_path", "last")
    out, err = after.communicate()
    assert (after.returncode, err) == (0, "")
    assert out.startswith("data: texts, ")
    assert "tokens per second" in out
    assert (folder / "run" / "last.ckpt").exists()


@pytest.mark.parametrize(("signum", "status", "num_workers"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 0)])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    signum: int, status: int, num_workers: int, start: Start, folder: Path
) -> None:
    flags = ["--trainer.accumulate_grad_batches", "2", "--data.num_workers", str(num_workers)]
    first = start(*FIT, *flags, "--trainer.max_steps", "1000000", "--checkpoint_every_n_steps", "2")
    wait_for(folder / "run" / "last.ckpt", first)
    # A terminal's Ctrl-C goes to all processes of the run; who ends a job sends SIGTERM to the first.
    (os.killpg if signum == signal.SIGINT else os.kill)(first.pid, signum)
    _, err = first.communicate()
    step = torch.load(folder / "run" / "last.ckpt", weights_only=True)["global_step"]
    assert (first.returncode, err) == (
        status, f"stopped at step {step}; go on with the same command and --ckpt_path last\n"
    )  # fmt: skip

    flags += ["--trainer.max_steps", str(step + 3), "--checkpoint_every_n_steps", "1000000"]
    weights = []
    for run_dir, more in (("run", ["--ckpt_path", "last"]), ("whole", [])):
        process = start(*FIT, *flags, "--run_dir", run_dir, *more)
        out, err = process.communicate()
        assert (process.returncode, err) == (0, "")
        assert ("goes on from run/last.ckpt" in out) == bool(more)
        weights.append(torch.load(folder / run_dir / "last.ckpt", weights_only=True)["state_dict"])
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
