"""The end of a run: figures against the exported model, a table that fits, and the same table again."""

# Shapes: T tokens, L MoE layers.

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from transformers import AutoModelForCausalLM

from pathmoe import PathMoEConfig
from pathmoe.data import TokenDataModule
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


def fit(folder: Path, fields: dict[str, Any] | None = None, lr: float = 0.01, **options: Any) -> Trainer:
    settings = {"max_steps": 4, "val_check_interval": 2, "limit_val_batches": 3, "num_sanity_val_steps": 0}
    trainer = Trainer(
        accelerator="cpu",
        check_val_every_n_epoch=None,
        callbacks=[SpeedMonitor(), ClosingReport(sample_tokens=20), LastCheckpoint(folder / "last.ckpt", 100)],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"devices": 1} | settings | options,
    )
    config, schedule = PathMoEConfig(**SHAPE | (fields or {})), ScheduleConfig(name="constant")
    module = PathMoEModule(config, OptimizerConfig(lr=lr), schedule)
    ckpt_path = folder / "last.ckpt"
    trainer.fit(module, datamodule=data(), ckpt_path=ckpt_path if ckpt_path.exists() else None, weights_only=True)
    return trainer


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / SUMMARY_FILE).read_text())
    return content


@pytest.mark.parametrize(
    "fields", [{}, {"first_k_dense_replace": 1}, {"layers_per_decision": [2, 1], "layers_per_router": None}]
)
def test_figures_are_those_of_the_exported_model(tmp_path: Path, fields: dict[str, Any]) -> None:
    fit(tmp_path, fields)
    blocks = data()
    blocks.prepare_data()
    blocks.setup("validate")
    number = sum(len(batch["input_ids"]) for batch, _ in zip(blocks.val_dataloader(), range(3), strict=False))
    batch = blocks.validation_blocks.batch(np.arange(number))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / EXPORT_FOLDER)
    with torch.no_grad():
        output = model(batch["input_ids"], position_ids=batch["position_ids"])
    path_ids_TL = torch.stack([routing.expert_ids_TK[:, 0] for routing in output.routings], dim=-1).numpy()
    paths, adjacent = path_entropy(path_ids_TL), adjacent_agreement(path_ids_TL)
    nats = F.cross_entropy(output.logits.double().flatten(0, 1), batch["shift_labels"].flatten()).item()
    figures = summary(tmp_path)
    assert figures["val/tokens"] == paths.num_tokens == number * 32
    assert figures["val/paths"] == paths.num_paths
    assert figures["val/path_entropy_bits"] == pytest.approx(paths.entropy_bits, rel=1e-12)
    assert figures["val/adjacent_agreement"] == pytest.approx(adjacent.mean_agreement, rel=1e-12)
    assert figures["val/adjacent_agreement_by_chance"] == pytest.approx(adjacent.mean_agreement_null, rel=1e-12)
    assert figures["val/loss"] == pytest.approx(nats, rel=1e-6)
    bits = nats / math.log(2) / blocks.bytes_per_target
    assert figures["val/bits_per_byte"] == pytest.approx(bits, rel=1e-6)
    assert (figures["steps"], figures["tokens"]) == (4, 4 * 8 * 32)


def test_the_table_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path)
    shown = capsys.readouterr().out
    figures = summary(tmp_path)
    assert f"validation perplexity     {figures['val/perplexity']:.2f}\n" in shown
    assert f"bits per byte             {figures['val/bits_per_byte']:.3f}\n" in shown
    tokens = figures["val/tokens"]
    entropy = f"{figures['val/path_entropy_bits']:.2f} bits of {math.log2(tokens):.2f} that {tokens} tokens allow"
    assert f"path entropy              {entropy}\n" in shown
    assert f"{figures['val/adjacent_agreement']:.1%} (by chance" in shown
    assert f"({figures['tokens']:,} in " in shown
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


def test_the_sanity_check_is_no_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = fit(tmp_path, num_sanity_val_steps=2, val_check_interval=100)
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
    assert before.pop("peak_memory_gib") > 0
    assert after.pop("peak_memory_gib") > 0
    assert after == before


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
        "val/tokens": 123456789012,
        "val/adjacent_agreement": 1.0,
        "val/adjacent_agreement_by_chance": 1.0,
        "tokens_per_second": 1234567890.1,
        "tokens": 123456789012345,
        "seconds": 12345678.9,
        "peak_memory_gib": 1234.567,
        "sample": "x" * 200 + "\n\n\t" + "\x1b[31mred\x00" + "\ty" * 50 + "\rz\x0c\u2028" + "é" * 90,
    }
    table = closing_table(figures, Path("/a/folder/whose/name") / ("is" * 20))
    assert all(len(line) <= 80 for line in table.split("\n"))
    assert all(character.isprintable() or character == "\n" for character in table), "no control sequence gets out"
    short = closing_table(figures, Path("runs/tiny"))
    assert "  checkpoint                runs/tiny/last.ckpt\n" in short
