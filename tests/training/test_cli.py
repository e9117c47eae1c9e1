"""The command line as it is meant to be used: help, names of configs and runs, dry run, end of a run, loggers."""

import csv
import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from transformers import AutoModelForCausalLM, AutoTokenizer

from pathmoe.config import PathMoEConfig
from pathmoe.training.cli import SUBCOMMANDS
from pathmoe.training.config_files import find_config
from pathmoe.training.export import load_model
from pathmoe.training.module import PathMoEModule

CommandLine = Callable[..., Any]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_help_names_every_subcommand(command_line: CommandLine) -> None:
    ended = command_line("--help")
    assert (ended.status, ended.err) == (0, "")
    assert command_line("-h").out == ended.out
    assert ended.out.startswith("usage: train.py {fit,validate,export} [options]\n")
    assert max(len(line) for line in ended.out.splitlines()) <= 80
    for name in SUBCOMMANDS:
        assert re.search(rf"^  {name} +\w", ended.out, re.MULTILINE)


def test_the_version(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command_line("--version") == (0, f"pathmoe {version('pathmoe')}\n", "")
    monkeypatch.setattr("pathmoe.training.cli.installed_version", lambda _: None)
    assert command_line("--version") == (0, "pathmoe of a folder that is not installed\n", "")


def test_nothing_at_all_gets_help_and_an_error(command_line: CommandLine) -> None:
    ended = command_line()
    assert ended.status == 2
    assert ended.out == command_line("--help").out
    assert ended.err == "error: a subcommand must be given: one of fit, validate, export\n"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "fit",
            ["--config", "--run_dir", "--ckpt_path", "--dry_run", "--model.config.layers_per_router", "--data.source"],
        ),
        ("validate", ["--ckpt_path", "--run_dir", "--trainer.limit_val_batches"]),
        ("export", ["--ckpt_path", "--out", "--format {pathmoe,olmoe}"]),
    ],
)
def test_help_of_a_subcommand(name: str, options: list[str], command_line: CommandLine) -> None:
    ended = command_line(name, "--help")
    assert (ended.status, ended.err) == (0, "")
    assert all(option in ended.out for option in options)
    assert "weights_only" not in ended.out, "checkpoints are never trusted with code"


def test_a_run_leaves_what_is_needed_to_go_on_and_to_judge(finished_run: Any, mini: Path) -> None:
    folder, out = finished_run
    assert {path.name for path in folder.iterdir()} == {
        *["best.ckpt", "last.ckpt", "previous.ckpt", "config.yaml", "provenance.json", "tokenizer", "csv", "export"],
        *["summary.json", "heartbeat"],
    }
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    given = yaml.safe_load(mini.read_text())
    assert settings["model"]["config"].items() >= given["model"]["config"].items()
    assert settings["model"]["config"]["layers_per_router"] == 4, "of routers/path_b4.yaml"
    assert [callback["class_path"] for callback in settings["trainer"]["callbacks"]] == [
        "pathmoe_eval.closing.ClosingReport"
    ], "of tiny.yaml"
    assert not settings.keys() & {"config", "run_dir", "ckpt_path", "dry_run"}
    (part,) = json.loads((folder / "provenance.json").read_text())["parts"]
    assert {"torch", "git_commit", "data"} <= part.keys()
    rows = csv.DictReader((folder / "csv" / "version_0" / "metrics.csv").read_text().splitlines())
    assert [row["step"] for row in rows if row["train/loss"]] == ["0", "1", "2", "3"]
    assert "validation perplexity" in out
    assert str(Path("runs") / folder.name / "last.ckpt") in out


def test_a_run_exports_its_last_model(finished_run: Any) -> None:
    exported = AutoModelForCausalLM.from_pretrained(finished_run.folder / "export").eval()
    last = load_model(finished_run.folder / "last.ckpt")
    assert all(torch.equal(last.state_dict()[name], tensor) for name, tensor in exported.state_dict().items())
    assert AutoTokenizer.from_pretrained(finished_run.folder / "export").eos_token_id is not None


def test_saved_settings_are_a_configuration(finished_run: Any, command_line: CommandLine, tmp_path: Path) -> None:
    printed = command_line("fit", "--config", finished_run.folder / "config.yaml", "--dry_run").out
    settings = yaml.safe_load(printed.partition("\n\n")[0])
    assert settings == yaml.safe_load((finished_run.folder / "config.yaml").read_text())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "names",
    [
        ["tiny", "path_b4"],
        ["tiny.yaml", "routers/path_b4"],
        ["configs/tiny.yaml", "configs/routers/path_b4.yaml"],
    ],
)
def test_shipped_configs_are_found_from_anywhere(names: list[str], command_line: CommandLine) -> None:
    ended = command_line("fit", *[word for name in names for word in ("--config", name)], "--print_config")
    assert (ended.status, ended.err) == (0, "")
    settings = yaml.safe_load(ended.out)
    assert settings["model"]["config"]["layers_per_router"] == 4
    tiny = yaml.safe_load(Path(find_config("tiny")).read_text())
    assert settings["model"]["config"]["num_hidden_layers"] == tiny["model"]["config"]["num_hidden_layers"]
    assert settings["run_dir"] == "runs/tiny-path_b4"


def test_flags_win_over_files_and_later_files_over_earlier(command_line: CommandLine) -> None:
    flags = ["--model.config.layers_per_router", "2", "--trainer.max_steps", "7"]
    ended = command_line("fit", *flags, "--config", "tiny", "--config", "path_b4", "--config", "omni", "--print_config")
    config = yaml.safe_load(ended.out)["model"]["config"]
    assert config["layers_per_router"] is None, "what comes later wins, files and flags alike"
    ended = command_line("fit", "--config", "tiny", "--config", "path_b4", *flags, "--print_config")
    assert yaml.safe_load(ended.out)["model"]["config"]["layers_per_router"] == 2
    assert yaml.safe_load(ended.out)["trainer"]["max_steps"] == 7


@pytest.mark.parametrize("devices", [[], ["--trainer.devices", "3"], ["--trainer.devices", "[0, 1, 2]"]])
def test_a_dry_run_prints_and_writes_nothing(devices: list[str], fit: CommandLine, tmp_path: Path) -> None:
    ended = fit("--dry_run", *devices)
    assert (ended.status, ended.err) == (0, "")
    assert list(tmp_path.iterdir()) == []
    settings, _, table = ended.out.partition("\n\n")
    assert yaml.safe_load(settings)["trainer"]["max_steps"] == 4
    assert max(len(line) for line in table.splitlines()) <= 80
    for name in ("parameters", "active per token", "routers", "trained by AdamW", "trained by ExpertMuon"):
        assert re.search(rf"^{name}  +\d", table, re.MULTILINE)
    for name in (
        "FLOPs per token",
        "tokens per step",
        "bytes of weights",
        "bytes of gradients",
        "bytes of optimizer st",
    ):
        assert re.search(rf"^{name}.*  +\d", table, re.MULTILINE)
    assert f"tokens per step           {(3 if devices else 1) * 2 * 32} (" in table


def test_of_several_ranks_the_first_prints_the_dry_run(fit: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert fit("--dry_run", "--trainer.devices", "2") == (0, "", "")


def test_the_last_of_several_values_and_equals_signs(fit: CommandLine) -> None:
    ended = fit("--trainer.max_steps=5", "--trainer.max_steps=6", "--seed_everything", "3", "--dry_run")
    settings = yaml.safe_load(ended.out.partition("\n\n")[0])
    assert (settings["trainer"]["max_steps"], settings["seed_everything"]) == (6, 3)


def test_one_seed_for_weights_and_data(fit: CommandLine, tmp_path: Path) -> None:
    still = ["--model.optimizer.name", "adamw", "--model.optimizer.lr", "1e-30", "--trainer.callbacks", "null"]
    ended = fit("--seed_everything", "3", "--trainer.max_steps", "2", "--run_dir", "here", *still)
    assert ended.status == 0, ended.err
    checkpoint = torch.load(tmp_path / "here" / "last.ckpt", weights_only=True)
    fresh = PathMoEModule(PathMoEConfig(**checkpoint["pathmoe"]["config"]), seed=3)
    fresh.configure_model()
    torch.testing.assert_close(checkpoint["state_dict"], fresh.state_dict(), rtol=0, atol=0)
    assert checkpoint["TokenDataModule"]["data.seed"] == 3


def test_a_finished_run_repeated_prints_its_table_and_changes_nothing(
    finished_run: Any, run_copy: Path, command_line: CommandLine
) -> None:
    before = contents(run_copy)
    ended = command_line("fit", "--ckpt_path", run_copy)
    assert (ended.status, ended.err) == (0, "")
    assert table(ended.out) == table(finished_run.out)
    assert contents(run_copy) == before


def table(out: str) -> tuple[str, str]:
    """The figures and the sample, without the places between them."""
    return out[out.index("  validation perplexity") : out.index("  checkpoint")], out[out.index("  a sample:") :]


@pytest.mark.parametrize(
    ("logger", "files"),
    [
        ("csv", "csv/version_0/metrics.csv"),
        ("tensorboard", "tensorboard/version_0/events.*"),
        ("wandb", "wandb/offline*"),
    ],
)
def test_loggers_write_into_the_run(
    logger: str, files: str, fit: CommandLine, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if logger == "wandb":
        pytest.importorskip("wandb")
    ended = fit("--config", f"loggers/{logger}", "--trainer.max_steps", "2", "--run_dir", "here")
    assert ended.status == 0, ended.err
    assert list((tmp_path / "here").glob(files))
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert not list((tmp_path / "here").glob("csv")) or logger == "csv"
