"""What a run logs, read back from what the loggers wrote."""

import csv
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from pathmoe.config import PathMoEConfig
from pathmoe.counts import flops_per_token
from pathmoe.data import TokenDataModule
from pathmoe.training.module import PathMoEModule
from pathmoe.training.optim import OptimizerConfig
from pathmoe.training.schedule import ScheduleConfig, lr_factor
from pathmoe.training.speed import SpeedMonitor

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "loggers"
STEPS, ACCUMULATE, LAYERS = 6, 2, 4
ADAMW = OptimizerConfig(lr=0.01)
LOSSES = {
    "model": {
        "config": {"router_aux_loss_coef": 0.01, "router_z_loss_coef": 0.01, "router_bias_update_rate": 0.01},
    },
    "trainer": {
        "max_steps": STEPS,
        "accumulate_grad_batches": ACCUMULATE,
        "val_check_interval": 6,
        "limit_val_batches": 1.0,
    },
}
LOAD_NAMES = ("max_over_mean", "dead_experts", "entropy_bits")
TRAIN_KEYS = {
    *("lr", "muon_lr"),
    *(f"train/{name}" for name in ("loss", "perplexity", "bits_per_byte", "grad_norm", "balance_loss", "z_loss")),
    *(f"train/{name}" for name in ("tokens", "tokens_per_second", "step_seconds", "peak_memory_gib")),
    *(f"speed/{name}" for name in ("data_wait_share", "host_memory_gib")),
    *(f"load/{name}" for name in LOAD_NAMES),
    *(f"load/layer_{layer:02d}/{name}" for layer in range(LAYERS) for name in LOAD_NAMES),
}
VALIDATION_KEYS = {
    *(f"val/{name}" for name in ("loss", "perplexity", "bits_per_byte", "path_entropy_bits")),
    *(f"val/{name}" for name in ("path_entropy_ceiling_bits", "adjacent_agreement", "adjacent_agreement_null")),
    "val/adjacent_mutual_information_bits",
}

PATH_KEYS = {
    *(f"paths/{name}" for name in ("tokens", "entropy_bits", "effective_paths", "distinct", "entropy_ceiling_bits")),
    *(f"paths/{name}" for name in ("load_entropy", "max_over_mean_load", "dead_experts", "router_entropy_bits")),
    *(f"paths/adjacent_{name}" for name in ("agreement", "agreement_null", "mutual_information_bits")),
    "paths/cost_share",
}

Rows = list[dict[str, float]]
Fit = Callable[..., Any]


def rows(file: Path) -> tuple[Rows, Rows]:
    """Training's and validation's rows of a metrics file, without empty cells."""
    with file.open() as lines:
        cells = [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(lines)]
    return [row for row in cells if "train/loss" in row], [row for row in cells if "val/loss" in row]


@pytest.fixture
def losses(tmp_path: Path) -> Path:
    file = tmp_path / "losses.yaml"
    file.write_text(yaml.safe_dump(LOSSES))
    return file


def run(fit: Fit, folder: Path, *arguments: Any) -> Path:
    ended = fit(*arguments, "--run_dir", folder / "run")
    assert ended.status == 0, ended.err
    return folder / "run"


@pytest.mark.parametrize("logger", [[], ["--config", "csv"]])
def test_a_csv_file_has_every_figure_of_every_step(fit: Fit, losses: Path, tmp_path: Path, logger: list[str]) -> None:
    folder = run(fit, tmp_path, "--config", losses, *logger)
    train, validation = rows(folder / "csv" / "version_0" / "metrics.csv")
    assert [row["step"] for row in train] == list(range(STEPS))
    assert [row["step"] for row in validation] == [2, 5]
    assert {frozenset(row) for row in train} == {frozenset(TRAIN_KEYS | {"epoch", "step"})}
    assert {frozenset(row) for row in validation} == {frozenset(VALIDATION_KEYS | {"epoch", "step"})}

    (part,) = yaml.safe_load((folder / "provenance.json").read_text())["parts"]
    bytes_per_target = part["data"]["train"]["bytes_per_target"]
    for number, row in enumerate(train):
        assert row["train/perplexity"] == pytest.approx(math.exp(row["train/loss"]), rel=1e-9)
        bits = row["train/loss"] / math.log(2)
        assert row["train/bits_per_byte"] == pytest.approx(bits / bytes_per_target, rel=1e-9)
        assert row["train/tokens"] == (number + 1) * ACCUMULATE * 2 * 32
        for layer in range(LAYERS):
            assert 1 <= row[f"load/layer_{layer:02d}/max_over_mean"] <= 4
            assert 0 <= row[f"load/layer_{layer:02d}/entropy_bits"] <= 2
        assert row["train/tokens_per_second"] > 0
        assert row["train/step_seconds"] > 0
        assert 0 < row["speed/data_wait_share"] < 1
        assert row["speed/host_memory_gib"] > 0.05
        assert row["train/peak_memory_gib"] > 0.05


@pytest.mark.parametrize("logger", ["csv", "tensorboard"])
def test_every_logger_gets_the_figures_of_a_monitored_slice(
    fit: Fit, losses: Path, tmp_path: Path, logger: str
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # Steps that training's own figures are logged at do not matter.
    flags = ["--trainer.callbacks.every_n_steps", "2", "--trainer.log_every_n_steps", "3"]
    folder = run(fit, tmp_path, "--config", losses, "--config", logger, "--config", "paths", *flags)
    assert len(yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["callbacks"]) == 2
    assert (folder / "summary.json").is_file(), "the report of the smallest size is still there"
    if logger == "csv":
        with (folder / "csv" / "version_0" / "metrics.csv").open() as lines:
            looks = [row for row in csv.DictReader(lines) if row["paths/tokens"]]
        found = {name: [float(row[name]) for row in looks] for name in looks[0] if name.startswith("paths/")}
        steps = [int(row["step"]) for row in looks]
    else:
        events = EventAccumulator(str(folder / "tensorboard" / "version_0"))
        events.Reload()
        names = [name for name in events.Tags()["scalars"] if name.startswith("paths/")]
        found = {name: [event.value for event in events.Scalars(name)] for name in names}
        steps = [event.step for event in events.Scalars("paths/tokens")]
    assert steps == [1, 3, 5]
    assert found.keys() == PATH_KEYS
    # Two global batches of two micro-batches of two blocks of 32 tokens.
    assert found["paths/tokens"] == [256] * 3
    assert all(0 < share < 5 for share in found["paths/cost_share"])


def test_a_monitor_that_two_files_append_is_refused_in_one_line(fit: Fit, tmp_path: Path) -> None:
    ended = fit("--config", "paths", "--config", "paths")
    line = "error: trainer.callbacks (2 of PathMonitor) must hold one; leave out a --config that adds it\n"
    assert (ended.status, ended.err) == (2, line)
    assert list(tmp_path.iterdir()) == []


def test_a_monitor_with_a_wrong_number_is_refused_in_one_line(fit: Fit, tmp_path: Path) -> None:
    ended = fit("--config", "paths", "--trainer.callbacks.every_n_steps", "0")
    line = "error: every_n_steps (0) of PathMonitor must be at least 1; raise it\n"
    assert (ended.status, ended.err) == (2, line)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_holds_what_the_csv_file_holds(fit: Fit, losses: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(fit, tmp_path, "--config", losses, "--config", "tensorboard")
    events = EventAccumulator(str(folder / "tensorboard" / "version_0"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == TRAIN_KEYS | VALIDATION_KEYS | {"epoch"}
    assert [event.step for event in events.Scalars("train/loss")] == list(range(STEPS))
    (tmp_path / "csv").mkdir()
    train, _ = rows(run(fit, tmp_path / "csv", "--config", losses) / "csv" / "version_0" / "metrics.csv")
    logged = [event.value for event in events.Scalars("train/loss")]
    assert logged == pytest.approx([row["train/loss"] for row in train], rel=1e-6)


def wandb_records(file: Path) -> Iterator[bytes]:
    """Records of an offline run: a seven-byte header, then LevelDB's log format (fragments in blocks of 32 KiB)."""
    content, position, record = file.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last fragment
            yield record
            record = b""


@pytest.mark.slow
def test_wandb_writes_a_run_without_account_or_network(
    fit: Fit, losses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.delenv("WANDB_MODE", raising=False)  # the configuration alone keeps it offline
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.finish()  # a run that another test may have left open
    folder = run(fit, tmp_path, "--config", losses, "--config", "wandb")
    wandb.finish()
    wandb.teardown()  # waits for its service, which writes the file on its own time
    (file,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    history: dict[str, list[float]] = {}
    for record in map(Record.FromString, wandb_records(file)):
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            history.setdefault(name, []).append(yaml.safe_load(item.value_json))
    assert history.keys() >= TRAIN_KEYS | VALIDATION_KEYS
    (tmp_path / "csv").mkdir()
    train, _ = rows(run(fit, tmp_path / "csv", "--config", losses) / "csv" / "version_0" / "metrics.csv")
    assert history["train/loss"] == [row["train/loss"] for row in train]


class Norms(Callback):
    """Norm of all gradients before the step, where clipping has not been yet, and after it."""

    def __init__(self) -> None:
        self.before: list[float] = []
        self.after: list[float] = []

    @staticmethod
    def norm(module: PathMoEModule) -> float:
        gradients = [parameter.grad.double().flatten() for parameter in module.parameters()]
        return float(torch.cat(gradients).norm())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: PathMoEModule, optimizer: Any) -> None:
        self.before.append(self.norm(pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: PathMoEModule, *_: Any) -> None:
        self.after.append(self.norm(pl_module))


def fit_here(folder: Path, optimizer: OptimizerConfig = ADAMW, **options: Any) -> tuple[Rows, Norms]:
    norms = Norms()
    config = PathMoEConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, moe_intermediate_size=8,
        num_experts=4, num_experts_per_tok=2, router_noise_std=0.3, router_aux_loss_coef=0.1,
    )  # fmt: skip
    schedule = ScheduleConfig(name="wsd", warmup_steps=2, decay_fraction=0.5)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=STEPS,
        limit_val_batches=0,
        callbacks=[norms, SpeedMonitor(peak_tflops=1.5)],
        logger=CSVLogger(folder, name="csv", version=0),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"log_every_n_steps": 1} | options,
    )
    module = PathMoEModule(config, optimizer, schedule)
    data = TokenDataModule(source="c-functions", num_documents=120, vocab_size=300, sequence_length=32)
    trainer.fit(module, datamodule=data)
    return rows(folder / "csv" / "version_0" / "metrics.csv")[0], norms


@pytest.mark.parametrize(
    ("algorithm", "value"), [(None, None), (None, 0.25), ("norm", 0.25), ("norm", 1e6), ("value", 1e-3)]
)
def test_the_norm_is_that_before_clipping(tmp_path: Path, algorithm: str | None, value: float | None) -> None:
    logged, norms = fit_here(tmp_path, gradient_clip_val=value, gradient_clip_algorithm=algorithm)
    assert [row["train/grad_norm"] for row in logged] == pytest.approx(norms.before, rel=1e-5)
    if value == 0.25:
        assert min(norms.before) > 0.25
        assert norms.after == pytest.approx([0.25] * STEPS, rel=1e-4)
    elif algorithm == "value":
        assert all(after < before for before, after in zip(norms.before, norms.after, strict=True))
    else:
        assert norms.after == norms.before


def test_the_rates_are_those_of_the_step(tmp_path: Path) -> None:
    schedule = ScheduleConfig(name="wsd", warmup_steps=2, decay_fraction=0.5)
    factors = [lr_factor(step, STEPS, schedule) for step in range(STEPS)]
    logged, _ = fit_here(tmp_path / "adamw")
    assert [row["lr"] for row in logged] == [0.01 * factor for factor in factors]
    assert not any("muon_lr" in row for row in logged)
    logged, _ = fit_here(tmp_path / "muon", optimizer=OptimizerConfig(name="muon", lr=0.01, muon_lr=0.03))
    assert [row["lr"] for row in logged] == [0.01 * factor for factor in factors]
    assert [row["muon_lr"] for row in logged] == [0.03 * factor for factor in factors]


def test_utilisation_follows_from_speed(tmp_path: Path) -> None:
    logged, _ = fit_here(tmp_path)
    flops = {row["train/mfu"] / row["train/tokens_per_second"] for row in logged}
    assert max(flops) == pytest.approx(min(flops), rel=1e-9), "FLOPs a token over the peak: one figure for the run"
    config = PathMoEConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, moe_intermediate_size=8,
        num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    assert flops_per_token(config, 32).training / max(flops) == pytest.approx(1.5e12)


def test_a_longer_interval_leaves_out_steps_and_changes_none(tmp_path: Path) -> None:
    every, _ = fit_here(tmp_path / "every")
    third, _ = fit_here(tmp_path / "third", log_every_n_steps=3)
    assert [row["step"] for row in third] == [2, 5]
    timed = {"train/tokens_per_second", "train/step_seconds", "train/mfu", "train/peak_memory_gib"}
    for row in third:
        of_step = every[int(row["step"])]
        assert row.keys() == of_step.keys()
        assert {name: row[name] for name in row.keys() - timed} == {name: of_step[name] for name in row.keys() - timed}
        # Their speed is that of the three steps since the last row.
        assert row["train/tokens_per_second"] > 0


def test_every_shipped_logger_is_tested_here() -> None:
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == {"csv", "tensorboard", "wandb"}
