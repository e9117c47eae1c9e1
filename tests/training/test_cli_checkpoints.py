"""Going on with a run and measuring one: what is taken from beside the checkpoint, and what flags may change."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

CommandLine = Callable[..., Any]


def column(folder: Path, name: str) -> list[float]:
    """What was logged under a name, step by step, over all parts of a run."""
    files = sorted(folder.glob("csv/version_*/metrics.csv"))
    rows = [row for file in files for row in csv.DictReader(file.read_text().splitlines())]
    return list({row["step"]: float(row[name]) for row in rows if row.get(name)}.values())


def printed(out: str, name: str) -> float:
    """A figure of the table that `validate` prints."""
    (line,) = [line for line in out.splitlines() if line.startswith(f"  {name} ")]
    return float(line.removeprefix(f"  {name} "))


def step(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"]


def rates(checkpoint: Path) -> list[float]:
    content = torch.load(checkpoint, weights_only=True)
    return [group["initial_lr"] for group in content["optimizer_states"][0]["param_groups"]]


@pytest.mark.parametrize("ckpt_path", ["{run}/last.ckpt", "{run}", "last", "best"])
def test_a_checkpoint_alone_is_enough_to_validate(
    ckpt_path: str, finished_run: Any, command_line: CommandLine, tmp_path: Path
) -> None:
    # `last` and `best` are those of the newest run below the current folder.
    (tmp_path / "runs").symlink_to(finished_run.folder.parent)
    ended = command_line("validate", "--ckpt_path", ckpt_path.format(run=finished_run.folder))
    assert (ended.status, ended.err) == (0, "")
    losses = column(finished_run.folder, "val/loss")
    expected = min(losses) if ckpt_path == "best" else losses[-1]
    assert printed(ended.out, "validation perplexity") == round(math.exp(expected), 2)
    file = "best.ckpt" if ckpt_path == "best" else "last.ckpt"
    folder = finished_run.folder if "{run}" in ckpt_path else Path("runs", finished_run.folder.name)
    assert f"validated {folder / file} (step {step(finished_run.folder / file)})\n" in ended.out


def test_the_last_validation_prints_what_the_end_of_the_run_did(finished_run: Any, command_line: CommandLine) -> None:
    ended = command_line("validate", "--ckpt_path", finished_run.folder)
    rows = [line for line in ended.out.splitlines() if line.startswith("  ")]
    assert rows[0].startswith("  validation perplexity")
    assert rows[-1].startswith("  adjacent-layer agreement")
    assert "\n".join(rows) in finished_run.out
    assert "val/" not in ended.out


def test_validation_writes_nothing(run_copy: Path, command_line: CommandLine) -> None:
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    folders = {path for path in run_copy.rglob("*") if path.is_dir()}
    for flags in ([], ["--config", "loggers/csv"]):
        assert command_line("validate", "--ckpt_path", run_copy, *flags).status == 0
    assert {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()} == before
    assert {path for path in run_copy.rglob("*") if path.is_dir()} == folders


def test_validation_takes_other_settings(finished_run: Any, command_line: CommandLine) -> None:
    losses = [
        printed(command_line("validate", "--ckpt_path", finished_run.folder, *flags).out, "validation perplexity")
        for flags in (["--trainer.limit_val_batches", "1"], ["--config", finished_run.folder / "config.yaml"])
    ]
    assert losses[0] != losses[1]


def test_last_starts_anew_where_nothing_is_and_goes_on_where_something_is(fit: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "tiny-path_b4-mini-schedule.name=constant"
    goes_on = ["--ckpt_path", "last", "--trainer.callbacks", "null"]
    ended = fit(*goes_on, "--trainer.max_steps", "2", "--model.schedule.name", "constant")
    assert ended.status == 0
    assert f"\nrun: {folder.relative_to(tmp_path)}, new\n" in ended.out
    assert step(folder / "last.ckpt") == 2
    first = column(folder, "train/loss")
    # The first part was given its number of steps by a flag, which the same files do not take back.
    ended = fit(*goes_on, "--trainer.max_steps", "4", "--model.schedule.name", "constant")
    assert (ended.status, ended.err) == (0, "")
    assert f"{folder.name}, goes on from runs/{folder.name}/last.ckpt\n" in ended.out
    assert step(folder / "last.ckpt") == 4
    assert len(first) == 2
    assert column(folder, "train/loss")[:2] == first
    assert column(folder, "step")[-1] == 3
    assert len(column(folder, "train/loss")) == 4


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(fit: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "tiny-path_b4-mini"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("of the killed run")
    (folder / ".last.ckpt.partial").write_text("half of it")
    quick = ["--trainer.callbacks", "null", "--trainer.max_steps", "2"]
    ended = fit("--ckpt_path", "last", *quick)
    assert (ended.status, ended.err) == (0, "")
    assert step(folder / "last.ckpt") == 2
    assert not (folder / ".last.ckpt.partial").exists()
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_steps"] == 2


def test_a_damaged_checkpoint_is_refused_and_the_one_before_taken(command_line: CommandLine, run_copy: Path) -> None:
    last = run_copy / "last.ckpt"
    content = last.read_bytes()
    last.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    for arguments in (["fit"], ["validate"], ["export", "--out", "exported"]):
        ended = command_line(*arguments, "--ckpt_path", run_copy)
        assert ended.status == 2 and "Traceback" not in ended.err
        message = f"error: --ckpt_path ({last}) must be a whole checkpoint, but it was altered (CRC-32 "
        assert [line[: len(message)] for line in ended.err.splitlines() if line.startswith("error")] == [message]
        assert "--ckpt_path previous" in ended.err
    ended = command_line("fit", "--run_dir", run_copy, "--ckpt_path", "previous")
    assert (ended.status, ended.err) == (0, "")
    assert f"goes on from {run_copy / 'previous.ckpt'}" in ended.out
    (run_copy / "as_it_was.ckpt").write_bytes(content)
    before, after = (torch.load(run_copy / n, weights_only=True) for n in ("as_it_was.ckpt", "last.ckpt"))
    assert all(torch.equal(after["state_dict"][name], value) for name, value in before["state_dict"].items())
    assert step(run_copy / "previous.ckpt") == 2


def test_checkpoints_are_kept_for_good_and_written_beside_training(
    fit: CommandLine, finished_run: Any, tmp_path: Path
) -> None:
    flags = ["--checkpoint_async", "true", "--checkpoint_keep_every_n_steps", "3"]
    ended = fit("--run_dir", "run", *flags, "--trainer.callbacks", "null")
    assert (ended.status, ended.err) == (0, "")
    steps = {path.name: step(path) for path in (tmp_path / "run").glob("*.ckpt")}
    assert steps | {"best.ckpt": 0} == {"last.ckpt": 4, "previous.ckpt": 3, "step=3.ckpt": 3, "best.ckpt": 0}
    ours, theirs = (torch.load(run / "last.ckpt", weights_only=True) for run in (tmp_path / "run", finished_run.folder))
    assert all(torch.equal(ours["state_dict"][name], value) for name, value in theirs["state_dict"].items())
    best = torch.load(finished_run.folder / "best.ckpt", weights_only=True)
    assert step(tmp_path / "run" / "best.ckpt") == best["global_step"]


def test_flags_win_over_saved_settings_when_a_run_goes_on(command_line: CommandLine, run_copy: Path) -> None:
    before = yaml.safe_load((run_copy / "config.yaml").read_text())
    flags = ["--trainer.max_steps", "6", "--model.optimizer.lr", "0.007", "--checkpoint_every_n_steps", "5"]
    ended = command_line("fit", "--ckpt_path", run_copy, *flags)
    assert (ended.status, ended.err) == (0, "")
    assert step(run_copy / "last.ckpt") == 6
    assert set(rates(run_copy / "last.ckpt")) == {0.007, 0.004}, "that of Muon is its own"
    after = yaml.safe_load((run_copy / "config.yaml").read_text())
    assert after["model"]["optimizer"]["lr"] == 0.007
    assert after["trainer"]["max_steps"] == 6
    assert after["checkpoint_every_n_steps"] == 5
    for settings in (before, after):
        del settings["model"]["optimizer"]["lr"], settings["trainer"]["max_steps"], settings["checkpoint_every_n_steps"]
    assert after == before, "all else is as it was"


def test_a_run_goes_on_with_its_own_settings(command_line: CommandLine, run_copy: Path) -> None:
    before = (run_copy / "config.yaml").read_text().replace("max_steps: 4", "max_steps: 5")
    (run_copy / "config.yaml").write_text(before)
    assert command_line("fit", "--ckpt_path", run_copy / "last.ckpt").status == 0
    assert (run_copy / "config.yaml").read_text() == before
    assert step(run_copy / "last.ckpt") == 5
    assert set(rates(run_copy / "last.ckpt")) == {0.003, 0.004}


def test_a_run_can_go_on_in_another_folder(command_line: CommandLine, finished_run: Any, tmp_path: Path) -> None:
    flags = ["--run_dir", "elsewhere", "--trainer.max_steps", "6"]
    assert command_line("fit", "--ckpt_path", finished_run.folder, *flags).status == 0
    assert step(tmp_path / "elsewhere" / "last.ckpt") == 6
    assert step(finished_run.folder / "last.ckpt") == 4
    assert {"config.yaml", "best.ckpt", "tokenizer", "provenance.json"} <= {
        path.name for path in (tmp_path / "elsewhere").iterdir()
    }


def test_training_losses_may_change_when_a_run_goes_on(command_line: CommandLine, run_copy: Path) -> None:
    flags = ["--trainer.max_steps", "5", "--model.config.router_aux_loss_coef", "0.5", "--trainer.callbacks", "null"]
    ended = command_line("fit", "--ckpt_path", run_copy, *flags)
    assert (ended.status, ended.err) == (0, "")
    assert len(column(run_copy, "train/balance_loss")) == 1


def test_flags_of_the_start_outlive_the_files_that_they_were_given_with(
    fit: CommandLine, mini: Path, tmp_path: Path
) -> None:
    def goes_on(steps: int, *more: str | Path) -> Any:
        ended = fit(*run, "--ckpt_path", "last", "--trainer.max_steps", str(steps), *more)
        assert (ended.status, ended.err) == (0, "")
        return rates(tmp_path / "run" / "last.ckpt"), [line for line in ended.out.splitlines() if "changed" in line]

    run = ["--run_dir", "run", "--trainer.callbacks", "null"]
    assert fit(*run, "--trainer.max_steps", "2", "--model.optimizer.lr", "0.008").status == 0
    steps = "changed since run/config.yaml was written: trainer.max_steps"
    assert goes_on(3) == ([0.008, 0.008, 0.004, 0.004, 0.004], [f"{steps} (2 -> 3)"])
    # A file that is new wins, as a flag does.
    (tmp_path / "new.yaml").write_text("model: {optimizer: {muon_lr: 0.005}}")
    lr, (line,) = goes_on(4, "--config", "new.yaml")
    assert lr == [0.008, 0.008, 0.005, 0.005, 0.005]
    assert line == f"{steps} (3 -> 4), model.optimizer.muon_lr (0.004 -> 0.005)"
    assert goes_on(5)[0] == goes_on(6, "--config", "new.yaml")[0] == lr, "from here on it is in the run"
    # So does one that was edited.
    (tmp_path / "new.yaml").write_text("model: {optimizer: {muon_lr: 0.006}}")
    lr, (line,) = goes_on(7, "--config", "new.yaml")
    assert lr == [0.008, 0.008, 0.006, 0.006, 0.006]
    assert "model.optimizer.muon_lr (0.005 -> 0.006)" in line


@pytest.mark.parametrize("logger", ["csv", "tensorboard", "wandb"])
def test_a_run_that_is_over_is_left_as_it_is(logger: str, command_line: CommandLine, run_copy: Path) -> None:
    def content() -> dict[Path, bytes | None]:
        return {path: path.read_bytes() if path.is_file() else None for path in run_copy.rglob("*")}

    before = content()
    ended = command_line("fit", "--ckpt_path", run_copy, "--config", f"loggers/{logger}")
    assert (ended.status, ended.err) == (0, "")
    assert content() == before
