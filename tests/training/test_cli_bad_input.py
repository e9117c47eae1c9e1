"""Bad input, end to end: exit status 2, one line that names the key or file and the value, and nothing written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

CommandLine = Callable[..., Any]


def assert_refused(ended: Any, line: str) -> None:
    assert ended.status == 2, ended.out
    assert ended.err.startswith(f"error: {line}"), ended.err
    assert ended.err.count("\n") == 1
    assert ended.out == ""


FLAGS = [
    # unknown keys
    (["--nope", "1"], "--nope (1) is not a known option; see --help"),
    (
        ["--model.config.num_expert=8"],
        "--model.config.num_expert (8) is not a known option; did you mean model.config.n",
    ),
    (["--trainer.max_step", "9"], "--trainer.max_step (9) is not a known option; did you mean trainer.max_steps?"),
    (["tiny"], "tiny is not a known option; see --help"),
    # wrong types
    (["--model.config.num_experts", "four"], "model.config.num_experts (four) must be of type int; change it"),
    (["--model.config.num_experts", "4.5"], "model.config.num_experts (4.5) must be of type int; change it"),
    (["--model.config.router_type", "mlp"], "model.config.router_type (mlp) must be one of 'linear', 'cosine', 'rec"),
    (
        ["--model.config.layers_per_router", "x"],
        "model.config.layers_per_router (x) must be of type int or list[int] o",
    ),
    (["--model.config.dtype", "float3"], "model.config.dtype (float3) must be one of float32, bfloat16, float16, "),
    (
        ["--model.experts_implementation", "megablocks"],
        "model.experts_implementation (megablocks) must be one of 'pathmoe', 'grouped_mm', 'batched_mm', 'eager'; ch",
    ),
    (["--model.attn_implementation", "flash"], "model.attn_implementation (flash) must be one of 'sdpa', 'eager', 'fl"),
    (["--model.optimizer.lr", "fast"], "model.optimizer.lr (fast) must be of type float; change it"),
    (["--data.sequence_length", "long"], "data.sequence_length (long) must be of type int; change it"),
    (["--trainer.precision", "7"], "trainer.precision (7) must be one of 64, 32, 16, 'transformer-engine'"),
    (["--model.config.num_experts"], "--model.config.num_experts must be followed by a value; add it"),
    (["--config"], "--config must be followed by a value; add it"),
    (["--ckpt_path"], "--ckpt_path must be followed by a value; add it"),
    # values and combinations
    (["--model.config.num_experts_per_tok", "9"], "model.config.num_experts_per_tok (9) must be at most model.config."),
    (["--model.config.layers_per_router", "[2, 1]"], "model.config.layers_per_router ([2, 1]) must be block lengths"),
    (
        ["--model.config.layers_per_router", "1", "--model.config.layers_per_decision", "4"],
        "model.config.layers_per_router (1) gives router 1 to MoE layers [1], none of which decides under ",
    ),
    (["--model.config.num_experts_per_tok", "1"], "model.config.norm_topk_prob (true) must be false with model.config"),
    (
        ["--model.attn_implementation", "flex_attention"],
        "model.attn_implementation (flex_attention) must be sdpa or eager to train on a CPU, where flex attention has",
    ),
    (["--model.optimizer.lr", "-1"], "model.optimizer.lr (-1.0) must be above 0 and finite"),
    (
        ["--model.schedule.warmup_steps", "99"],
        "model.schedule.warmup_steps (99) and the 2 steps of model.schedule.deca",
    ),
    (["--validate_every_n_steps", "0"], "validate_every_n_steps (0) must be at least 1; raise it"),
    (
        ["--validate_every_n_steps", "2"],
        "validate_every_n_steps (2) must be null where trainer.val_check_interval (2) ",
    ),
    (["--plan.gpu", "h100"], "--plan must come with --dry_run, which is what reads it; add that"),
    (["--dry_run", "--plan.gpu", "h1"], "plan.gpu (h1) must be one of a100-40, a100-80, h100, "),
    (["--dry_run", "--plan.mfu", "40"], "plan.mfu (40.0) must be above 0 and at most 1; set a share such as 0.4"),
    (["--checkpoint_every_n_steps", "0"], "--checkpoint_every_n_steps (0) must be at least 1; raise it"),
    (["--peak_tflops", "0"], "--peak_tflops (0.0) must be above 0; give the data sheet's, without sparsity"),
    (["--trainer.accumulate_grad_batches", "0"], "trainer.accumulate_grad_batches (0) must be at least 1; raise it"),
    (["--trainer.strategy", "nope"], "trainer: You selected an invalid strategy name: `strategy='nope'`"),
    (["--trainer.devices", "0"], "trainer: `Trainer(devices="),
    (["--data.global_batch_size", "3"], "data.global_batch_size (3) must equal data.micro_batch_size (2) x trainer.a"),
    (
        ["--data.vocab_size", "400"],
        "--data.vocab_size (400) must not be given, since it follows model.config.vocab_siz",
    ),
    # configs
    (["--config", "nope"], "--config (nope) must be a file or one shipped config; choose among: data/c_functions, "),
    (["--config", "configs/nope.yaml"], "--config (configs/nope.yaml) must be a file or one shipped config; choose a"),
    # checkpoints
    (
        ["--ckpt_path", "nope.ckpt"],
        "--ckpt_path (nope.ckpt) must be an existing checkpoint, a file or a sharded folder;",
    ),
    (["--ckpt_path", "best"], "--ckpt_path (runs/tiny-path_b4-mini/best.ckpt) must be an existing checkpoint"),
]


@pytest.mark.parametrize(("flags", "line"), FLAGS, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_flags(flags: list[str], line: str, fit: CommandLine, tmp_path: Path) -> None:
    assert_refused(fit(*flags), line)
    assert [path for path in tmp_path.rglob("*") if path != tmp_path / "runs"] == []


@pytest.mark.skipif(torch.cuda.is_available() or torch.mps.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["cuda", "gpu", "mps", "tpu", "abacus"])
def test_an_accelerator_that_is_not_there(name: str, fit: CommandLine, tmp_path: Path) -> None:
    line = f"trainer.accelerator ({name}) must be one of auto, cpu on this machine; change it"
    assert_refused(fit("--trainer.accelerator", name), line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", [[], ["--dry_run"], ["--model.optimizer.lr", "0.1"]], ids=str)
def test_training_of_nothing(more: list[str], command_line: CommandLine, tmp_path: Path) -> None:
    line = "--config (null) must name what to train; give it, e.g. --config tiny --config path_b4"
    assert_refused(command_line("fit", *more), line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["fit"], ["validate"], ["export", "--out", "out"]], ids=" ".join)
def test_a_file_of_another_kind_in_place_of_a_checkpoint(
    command: list[str], command_line: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text("# Read me")
    line = "--ckpt_path (README.md) must be a checkpoint, but is a file of another kind; give the last.ckpt of a run"
    assert_refused(command_line(*command, "--ckpt_path", "README.md"), line)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="flash attention may be there")
def test_flash_attention_that_is_not_installed(fit: CommandLine, tmp_path: Path) -> None:
    flags = ["--model.attn_implementation", "flash_attention_2", "--trainer.precision", "bf16-mixed"]
    assert_refused(fit(*flags), "model.attn_implementation (flash_attention_2) can't be used here (")
    assert list(tmp_path.iterdir()) == []


FILES = [
    (
        "modl: {config: {hidden_size: 4}}",
        "modl.config.hidden_size is not a known key; did you mean model.config.hidden_",
    ),
    (
        "model: {config: {num_expert: 4}}",
        "model.config.num_expert is not a known key; did you mean model.config.num_exp",
    ),
    ("model: {optimizer: {learning_rate: 4}}", "model.optimizer.learning_rate is not a known key; see --help"),
    ("data: {sorce: x}", "data.sorce is not a known key; did you mean data.source?"),
    ("model: {config: {num_experts: four}}", "model.config.num_experts (four) must be of type int; change it"),
    (
        "model: {config: {rope_parameters: {rope_type: default, thet: 1}}}",
        "model.config.rope_parameters.thet (1) is not",
    ),
    (
        "trainer: {callbacks: [{class_path: nope.Report}]}",
        "trainer.callbacks: class_path (nope.Report) can't be used (",
    ),
    (
        "trainer: {callbacks: [{class_path: pathmoe_eval.closing.ClosingReport, init_args: {promt: x}}]}",
        "promt is not a known argument of the class that it is given to",
    ),
    ("data:", "data (None) in bad.yaml must hold keys with their values; fill or remove it"),
    (
        "model: {config: [1, 2",
        "bad.yaml must be YAML, but can't be read (while parsing a flow sequence at line 1, colum",
    ),
    ("", "bad.yaml must hold keys with their values, not None; see configs/tiny.yaml"),
]


@pytest.mark.parametrize(("content", "line"), FILES, ids=lambda value: value[:40])
def test_configuration_files(content: str, line: str, fit: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    assert_refused(fit("--config", "bad.yaml"), line)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({}, "data.source (texts.txt) names no file that is there; give a .txt, .jsonl"),
        ({"texts.txt": b""}, "data.source: texts.txt is empty; remove it from the source or fill it"),
        (
            {"texts.txt": b"abc \xff" * 99},
            "data.source: texts.txt is not UTF-8 at byte 4 (invalid start byte); convert",
        ),
        ({"texts/a.txt": b"a b", "texts/b.txt": b"c d"}, "data.source (texts): its train split has "),
    ],
    ids=["missing", "empty", "not UTF-8", "smaller than a block"],
)
def test_data(files: dict[str, bytes], line: str, fit: CommandLine, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    source = "texts" if (tmp_path / "texts").is_dir() else "texts.txt"
    assert_refused(fit("--data.source", source, "--data.cache_dir", tmp_path / "cache"), line)
    assert not (tmp_path / "runs").exists()
    assert not any((tmp_path / "cache").rglob("prepared/*")), "half of the prepared data is there"


def test_a_tokenizer_that_is_too_large(finished_run: Any, fit: CommandLine, tmp_path: Path) -> None:
    tokenizer = finished_run.folder / "tokenizer"
    ended = fit("--data.tokenizer", tokenizer, "--model.config.vocab_size", "299")
    assert_refused(ended, f"data.tokenizer ({tokenizer}) has 300 tokens, more than model.config.vocab_size (299); set ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_folder_that_holds_another_run(name: str, fit: CommandLine, run_copy: Path) -> None:
    (run_copy / {"last.ckpt": "best.ckpt", "best.ckpt": "last.ckpt"}[name]).unlink()
    before = contents(run_copy)
    assert_refused(
        fit("--run_dir", run_copy),
        f"--run_dir ({run_copy}) must not hold another run; go on with it by --ckpt_path last, or choose another --run",
    )
    assert contents(run_copy) == before


@pytest.mark.parametrize("place", ["mini.yaml", "mini.yaml/below"])
def test_a_folder_that_can_not_be_made(place: str, fit: CommandLine, mini: Path, tmp_path: Path) -> None:
    assert_refused(fit("--run_dir", mini.parent / place), f"{mini}")
    assert list(tmp_path.iterdir()) == []


def test_another_runs_checkpoint_into_a_folder_that_holds_a_run(
    command_line: CommandLine, finished_run: Any, run_copy: Path
) -> None:
    ended = command_line("fit", "--ckpt_path", finished_run.folder, "--run_dir", run_copy)
    assert_refused(ended, f"--run_dir ({run_copy}) must not hold another run")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", ["fit", "validate", "export"])
@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (
            lambda content: content[: len(content) // 2],
            "--ckpt_path ({}) must be a whole checkpoint, but it ",
        ),
        (
            lambda content: b"",
            "--ckpt_path ({}) must be a whole checkpoint, but it ",
        ),
        (lambda content: b"text", "--ckpt_path ({}) must be a checkpoint, but is a file of another kind; give the la"),
    ],
    ids=["truncated", "empty", "text"],
)
def test_a_checkpoint_that_is_none(
    command: str, damage: Callable[[bytes], bytes], line: str, command_line: CommandLine, run_copy: Path
) -> None:
    checkpoint = run_copy / "last.ckpt"
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    before = contents(run_copy)
    out = ["--out", "out"] if command == "export" else []
    assert_refused(command_line(command, "--ckpt_path", checkpoint, *out), line.format(checkpoint))
    assert contents(run_copy) == before
    assert not (run_copy.parent / "out").exists()


CHANGES = [
    (
        ["--model.config.num_experts", "8"],
        "model.config.num_experts (8) must be the checkpoint's (4), since it changes t",
    ),
    (
        ["--model.config.layers_per_router", "2"],
        "model.config.layers_per_router (2) must be the checkpoint's (4), since",
    ),
    (
        ["--config", "omni"],
        "model.config.layers_per_router (null) must be the checkpoint's (4), since it changes the a",
    ),
    (
        ["--data.micro_batch_size", "4"],
        "data.global_batch_size (4) must equal the checkpoint's (2); set it back or sta",
    ),
    (
        ["--trainer.accumulate_grad_batches", "2"],
        "data.global_batch_size (4) must equal the checkpoint's (2); set it ba",
    ),
    (
        ["--data.sequence_length", "16"],
        "data.sequence_length (16) must equal the checkpoint's (32); set it back or sta",
    ),
    (["--seed_everything", "1"], "data.seed (1) must equal the checkpoint's (0); set it back or start a new run"),
    (
        ["--model.optimizer.name", "adamw"],
        "model.optimizer.name and model.config.router_frozen must be the checkpoint'",
    ),
]


@pytest.mark.parametrize(
    ("flags", "line"), CHANGES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_what_may_not_change_when_a_run_goes_on(
    flags: list[str], line: str, command_line: CommandLine, run_copy: Path
) -> None:
    before = contents(run_copy)
    folders = sorted(path for path in run_copy.rglob("*") if path.is_dir())
    assert_refused(command_line("fit", "--ckpt_path", run_copy, "--trainer.max_steps", "6", *flags), line)
    assert contents(run_copy) == before
    assert sorted(path for path in run_copy.rglob("*") if path.is_dir()) == folders


def test_the_checkpoint_of_another_architecture(command_line: CommandLine, run_copy: Path) -> None:
    # What a user does who has mixed up two runs' files.
    settings = yaml.safe_load((run_copy / "config.yaml").read_text())
    settings["model"]["config"]["hidden_size"] = 32
    (run_copy / "config.yaml").write_text(yaml.safe_dump(settings))
    for command in ("fit", "validate"):
        ended = command_line(command, "--ckpt_path", run_copy)
        assert_refused(
            ended, "model.config.hidden_size (32) must be the checkpoint's (16), since it changes the archit"
        )


def test_validation_of_nothing(command_line: CommandLine, tmp_path: Path) -> None:
    assert_refused(command_line("validate"), "--ckpt_path (null) must name what to validate: a checkpoint, a run fol")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["fitt"], ["fitt", "--config", "tiny"], ["--config", "tiny", "fit"], ["test"], ["predict"]]
)
def test_an_unknown_subcommand(arguments: list[str], command_line: CommandLine, tmp_path: Path) -> None:
    ended = command_line(*arguments)
    assert_refused(ended, f"the subcommand ({arguments[0]}) must be one of fit, validate, export; give it first")
    assert list(tmp_path.iterdir()) == []


def test_a_logger_that_is_not_installed(fit: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning.fabric.loggers.tensorboard.{name}", False)
    assert_refused(
        fit("--config", "tensorboard"),
        "class_path (lightning.pytorch.loggers.TensorBoardLogger) can't be used (Neither `tensorboard` nor "
        "`tensorboardX` is available. Try `pip install`ing either.); install what it needs, or change it",
    )
    assert list(tmp_path.iterdir()) == []
