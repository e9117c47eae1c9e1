"""The end of a run: figures against the exported model, a table that fits, and the same table again."""

# Shapes: T tokens, L MoE layers.

import json
import math
import sys
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from pathmoe import PathMoEConfig
from pathmoe.data import TokenDataModule
from pathmoe.training.checkpoint_io import AtomicCheckpointIO
from pathmoe.training.last_checkpoint import LastCheckpoint
from pathmoe.training.module import PathMoEModule
from pathmoe.training.optim import OptimizerConfig
from pathmoe.training.schedule import ScheduleConfig
from pathmoe.training.speed import SpeedMonitor
from pathmoe_eval import adjacent_agreement, path_entropy
from pathmoe_eval.closing import EXPORT_FOLDER, SUMMARY_FILE, ClosingReport, closing_table

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "moe_intermediate_size": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "initializer_range": 0.2,
}


def data() -> TokenDataModule:
    return TokenDataModule(source="c-functions", num_documents=120, vocab_size=300, sequence_length=32)


def fit(
    folder: Path,
    fields: dict[str, Any] | None = None,
    lr: float = 0.01,
    before: tuple[Callback, ...] = (),
    **options: Any,
) -> Trainer:
    settings = {"max_steps": 4, "val_check_interval": 2, "check_val_every_n_epoch": None, "limit_val_batches": 3}
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[*before, SpeedMonitor(), ClosingReport(sample_tokens=20), LastCheckpoint(folder / "last.ckpt", 100)],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"devices": 1, "num_sanity_val_steps": 0} | settings | options,
    )
    config, schedule = PathMoEConfig(**SHAPE | (fields or {})), ScheduleConfig(name="constant")
    module = PathMoEModule(config, OptimizerConfig(lr=lr), schedule)
    ckpt_path = folder / "last.ckpt"
    trainer.fit(module, datamodule=data(), ckpt_path=ckpt_path if ckpt_path.exists() else None, weights_only=True)
    return trainer


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / SUMMARY_FILE).read_text())
    return content


def information_bits(path_ids_TL: NDArray[np.integer]) -> float:
    """Mean over adjacent layers of H(a) + H(b) - H(a, b), each entropy with the Miller-Madow correction."""

    def entropy(outcomes: list[Any]) -> float:
        counts, n = Counter(outcomes), len(outcomes)
        plug_in = -math.fsum(count / n * math.log2(count / n) for count in counts.values())
        return plug_in + (len(counts) - 1) / (2 * n * math.log(2))

    pairs = [(a, b, list(zip(a, b, strict=True))) for a, b in pairwise(path_ids_TL.T.tolist())]
    return sum(entropy(a) + entropy(b) - entropy(both) for a, b, both in pairs) / len(pairs)


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {}),
        ({"first_k_dense_replace": 1}, {}),
        ({"layers_per_decision": [2, 1], "layers_per_router": None}, {}),
        # Lightning's interval does not meet the last step, or is longer than the run, or is its default.
        ({}, {"max_steps": 5}),
        ({}, {"max_steps": 5, "accumulate_grad_batches": 2, "val_check_interval": 4}),
        ({}, {"val_check_interval": 100}),
        ({}, {"val_check_interval": 1.0, "check_val_every_n_epoch": 1}),
        ({}, {"limit_val_batches": 1.0}),
    ],
    ids=str,
)
def test_figures_are_those_of_the_exported_model(
    tmp_path: Path, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    fit(tmp_path, fields, **options)
    blocks = data()
    blocks.prepare_data()
    blocks.setup("validate")
    batches = None if "limit_val_batches" in options else 3
    number = sum(len(batch["input_ids"]) for batch in islice(blocks.val_dataloader(), batches))
    batch = blocks.validation_blocks.batch(np.arange(number))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / EXPORT_FOLDER)
    with torch.no_grad():
        output = model(batch["input_ids"], position_ids=batch["position_ids"])
    path_ids_TL = torch.stack([routing.expert_ids_TK[:, 0] for routing in output.routings], dim=-1).numpy()
    paths, adjacent = path_entropy(path_ids_TL), adjacent_agreement(path_ids_TL)
    labels_T = batch["shift_labels"].flatten()
    nats = F.cross_entropy(output.logits.double().flatten(0, 1), labels_T, reduction="sum").item()
    targets = labels_T[labels_T >= 0].tolist()
    figures = summary(tmp_path)
    assert figures["val/tokens"] == paths.num_tokens == number * 32
    assert figures["val/paths"] == paths.num_paths
    assert figures["val/path_entropy_bits"] == pytest.approx(paths.entropy_bits, rel=1e-12)
    assert figures["val/adjacent_agreement"] == pytest.approx(adjacent.mean_agreement, rel=1e-12)
    assert figures["val/adjacent_agreement_null"] == pytest.approx(adjacent.mean_agreement_null, rel=1e-12)
    assert figures["val/adjacent_mutual_information_bits"] == pytest.approx(information_bits(path_ids_TL), rel=1e-9)
    assert figures["val/loss"] == pytest.approx(nats / len(targets), rel=1e-6)
    # Its programs are ASCII, so that each token is text of its own.
    num_bytes = sum(len(blocks.tokenizer.decode([target], skip_special_tokens=True)) for target in targets)
    bits = pytest.approx(nats / math.log(2) / num_bytes, rel=1e-6)
    assert figures.get("val/bits_per_byte") == (bits if batches is None else None)
    steps, accumulate = options.get("max_steps", 4), options.get("accumulate_grad_batches", 1)
    assert (figures["steps"], figures["tokens"]) == (steps, steps * accumulate * 8 * 32)
    assert 0 < figures["seconds"] < figures["wall_seconds"]


def test_the_table_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, limit_val_batches=1.0)
    shown = capsys.readouterr().out
    figures = summary(tmp_path)
    assert f"validation perplexity     {figures['val/perplexity']:.2f}\n" in shown
    assert f"bits per byte             {figures['val/bits_per_byte']:.3f}\n" in shown
    tokens = figures["val/tokens"]
    entropy = f"{figures['val/path_entropy_bits']:.2f} bits of {math.log2(tokens):.2f} that {tokens:,} tokens allow"
    assert f"path entropy              {entropy}\n" in shown
    agreement = f"{figures['val/adjacent_agreement']:.1%} (by chance {figures['val/adjacent_agreement_null']:.1%})"
    shared = figures["val/adjacent_mutual_information_bits"]
    assert f"adjacent-layer agreement  {agreement}, {shared:z.2f} bits shared\n" in shown
    assert f"({figures['tokens']:,} in {figures['seconds']:,.0f} s)\n" in shown
    assert f"wall time                 {figures['wall_seconds']:,.0f} s with validations and checkpoints\n" in shown
    assert str(tmp_path / "last.ckpt") in shown
    assert str(tmp_path / EXPORT_FOLDER) in shown
    assert "    def " in shown


def test_one_moe_layer_has_no_adjacent_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, {"num_hidden_layers": 2, "first_k_dense_replace": 1})
    shown = capsys.readouterr().out
    assert "path entropy" in shown
    assert "agreement" not in shown


def test_without_validation_there_are_no_figures_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, limit_val_batches=0)
    shown = capsys.readouterr().out
    assert not [name for name in ("perplexity", "bits per byte", "entropy", "agreement") if name in shown]
    assert "tokens per second" in shown


def test_a_validation_of_other_weights_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path)
    # Lightning does not validate before so many epochs, and the checkpoint's validation is of step 4.
    fit(tmp_path, max_steps=5, val_check_interval=100, min_epochs=2)
    assert summary(tmp_path)["steps"] == 5
    assert not [name for name in summary(tmp_path) if name.startswith("val/")]
    assert capsys.readouterr().out.count("perplexity") == 1


def test_the_sanity_check_is_no_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = fit(tmp_path, num_sanity_val_steps=2, val_check_interval=100, min_epochs=2)
    assert "perplexity" not in capsys.readouterr().out
    assert not [name for name in trainer.callback_metrics if name.startswith("val/path")]


def test_a_finished_run_prints_its_table_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path)
    first, written = capsys.readouterr().out, (tmp_path / SUMMARY_FILE).read_text()
    exported = (tmp_path / EXPORT_FOLDER / "model.safetensors").stat().st_mtime_ns
    fit(tmp_path)
    assert capsys.readouterr().out == first
    assert (tmp_path / SUMMARY_FILE).read_text() == written
    assert (tmp_path / EXPORT_FOLDER / "model.safetensors").stat().st_mtime_ns == exported


def test_a_finished_run_without_a_summary_closes_with_its_last_validation(tmp_path: Path) -> None:
    # Killed between its last checkpoint and its close.
    fit(tmp_path)
    before = summary(tmp_path)
    (tmp_path / SUMMARY_FILE).unlink()
    fit(tmp_path)
    after = summary(tmp_path)
    for name in ("peak_memory_gib", "wall_seconds"):  # of this process; up to the last checkpoint
        assert before.pop(name) > 0
        assert after.pop(name) > 0
    assert after == before


class Die(Callback):
    """Stands for a kill once a step is done or, without a step, once training has ended and all is saved."""

    def __init__(self, after_step: int | None = None) -> None:
        self.after_step = after_step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.after_step:
            raise KilledError

    def on_fit_end(self, *_: Any) -> None:
        raise KilledError


class KilledError(Exception):
    pass


def test_an_extended_run_that_was_killed_before_its_close_closes_with_what_it_became(tmp_path: Path) -> None:
    fit(tmp_path)
    with pytest.raises(KilledError):
        fit(tmp_path, max_steps=8, before=(Die(),))
    fit(tmp_path, max_steps=8)
    (tmp_path / "whole").mkdir()
    fit(tmp_path / "whole", max_steps=8)
    figures, expected = summary(tmp_path), summary(tmp_path / "whole")
    assert (figures["steps"], figures["tokens"]) == (8, 8 * 8 * 32)
    of_model = [name for name in expected if name.startswith("val/") or name == "sample"]
    assert {name: figures[name] for name in of_model} == {name: expected[name] for name in of_model}
    exported = [folder / EXPORT_FOLDER / "model.safetensors" for folder in (tmp_path, tmp_path / "whole")]
    assert exported[0].read_bytes() == exported[1].read_bytes()


def test_a_run_that_goes_on_has_no_summary_until_it_closes_again(tmp_path: Path) -> None:
    fit(tmp_path)
    with pytest.raises(KilledError):
        fit(tmp_path, max_steps=8, before=(Die(after_step=6),))
    assert not (tmp_path / SUMMARY_FILE).exists()


def test_what_the_export_would_not_replace_is_refused_before_training(tmp_path: Path) -> None:
    fit(tmp_path)
    (tmp_path / EXPORT_FOLDER / "notes.txt").write_text("mine")
    before = summary(tmp_path)
    with pytest.raises(ValueError, match=rf"/{EXPORT_FOLDER} must be new, or hold an .* but holds notes\.txt; move"):
        fit(tmp_path, max_steps=8)
    assert summary(tmp_path) == before
    fit(tmp_path)  # which has nothing to train or export


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="forks, which CUDA does not survive")
def test_paths_are_counted_over_all_ranks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Every block, and no training to speak of: two ranks would train on other batches than one.
    options = {"lr": 1e-12, "max_steps": 1, "limit_val_batches": 1.0, "val_check_interval": 1}
    for name, ranks in (("one", {}), ("two", {"devices": 2, "strategy": "ddp_fork"})):
        (tmp_path / name).mkdir()
        fit(tmp_path / name, **options | ranks)
    one, two = summary(tmp_path / "one"), summary(tmp_path / "two")
    names = [name for name in one if name.startswith("val/")]
    assert {name: two[name] for name in names} == pytest.approx({name: one[name] for name in names}, rel=1e-6)
    assert two["val/path_entropy_bits"] == one["val/path_entropy_bits"]
    assert capfd.readouterr().out.count("a sample:") == 2, "one table a run"


def test_every_line_fits() -> None:
    figures = {
        "val/perplexity": 123456.789,
        "val/bits_per_byte": 12.3456,
        "val/path_entropy_bits": 22.345,
        "val/path_entropy_ceiling_bits": math.log2(123456789012),
        "val/adjacent_agreement": 1.0,
        "val/adjacent_agreement_null": 1.0,
        "val/adjacent_mutual_information_bits": -0.001,
        "tokens_per_second": 1234567890.1,
        "tokens": 123456789012345,
        "seconds": 12345678.9,
        "wall_seconds": 12345678.9,
        "peak_memory_gib": 1234.567,
        "sample": "x" * 200 + "\n\n\t" + "\x1b[31mred\x00" + "\ty" * 50 + "\rz\x0c\u2028" + "é" * 90,
    }
    table = closing_table(figures, Path("/a/folder/whose/name") / ("is" * 20))
    assert all(len(line) <= 80 for line in table.split("\n"))
    assert all(character.isprintable() or character == "\n" for character in table), "no control sequence gets out"
    assert "bits of 36.85 that 123,456,789,012 tokens allow\n" in table
    assert "  adjacent-layer agreement  100.0% (by chance 100.0%), 0.00 bits shared\n" in table
    short = closing_table(figures, Path("runs/tiny"))
    assert "  checkpoint                runs/tiny/last.ckpt\n" in short
