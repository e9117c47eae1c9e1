"""Callback: path statistics of each validation, and at the end of a run a short table, an export and a text sample."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from pathmoe.training.export import export_model
from pathmoe.training.run_folder import LAST_CHECKPOINT, write_text_atomically
from pathmoe.training.speed import SpeedMonitor, peak_memory_bytes
from pathmoe_eval.agreement import AdjacentCounts
from pathmoe_eval.paths import PathCounts
from pathmoe_eval.sample import sample_text

SUMMARY_FILE = "summary.json"
EXPORT_FOLDER = "export"


class ClosingReport(Callback):
    """Logs `val/path_entropy_bits` and `val/adjacent_agreement`, and closes a fit with what came of it.

    Path statistics are of the validation tokens of this rank.

    Args:
        prompt: what the text sample goes on from.
        sample_tokens: new tokens of the sample.
    """

    def __init__(self, prompt: str = "def ", sample_tokens: int = 80) -> None:
        self.prompt = prompt
        self.sample_tokens = sample_tokens
        self._summary: dict[str, float | int | str] = {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting paths."""
        config = pl_module.config
        self._paths = PathCounts(num_layers=config.num_moe_layers, num_experts=config.num_experts)
        self._adjacent = (
            AdjacentCounts(num_layers=config.num_moe_layers, num_experts=config.num_experts)
            if config.num_moe_layers > 1
            else None
        )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batch's paths."""
        path_ids_NL = outputs["path_ids"].cpu().numpy()
        self._paths.update(path_ids_NL)
        if self._adjacent is not None:
            self._adjacent.update(path_ids_NL)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the statistics, and keep them for the table."""
        paths = self._paths.result()
        metrics = {"val/path_entropy_bits": paths.entropy_bits, "val/path_entropy_ceiling_bits": paths.ceiling_bits}
        if self._adjacent is not None:
            adjacent = self._adjacent.result()
            metrics |= {
                "val/adjacent_agreement": adjacent.mean_agreement,
                "val/adjacent_agreement_by_chance": adjacent.mean_agreement_null,
                "val/adjacent_mutual_information_bits": adjacent.mean_mutual_information_corrected_bits,
            }
        pl_module.log_dict({name: torch.tensor(value, dtype=torch.float32) for name, value in metrics.items()})
        self._summary |= metrics | {"val/tokens": paths.num_tokens, "val/paths": paths.num_paths}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the summary with what the trainer has measured."""
        speed = next(callback for callback in trainer.callbacks if isinstance(callback, SpeedMonitor))
        for name in ("val/loss", "val/perplexity", "val/bits_per_byte"):
            if name in trainer.callback_metrics:
                self._summary[name] = float(trainer.callback_metrics[name])
        self._summary |= {
            "steps": trainer.global_step,
            "tokens": speed.tokens,
            "seconds": speed.seconds,
            "tokens_per_second": speed.tokens / max(speed.seconds, 1e-9),
            "peak_memory_gib": peak_memory_bytes(pl_module.device) / 2**30,
        }

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export, sample, write the summary and print; a run that was complete already prints what it wrote."""
        if not trainer.is_global_zero:
            return
        run_folder = Path(trainer.default_root_dir)
        if not self._summary:
            self._summary = json.loads((run_folder / SUMMARY_FILE).read_text())
        else:
            tokenizer = trainer.datamodule.tokenizer
            export_model(pl_module.model, tokenizer, run_folder / EXPORT_FOLDER)
            self._summary["sample"] = sample_text(pl_module.model, tokenizer, self.prompt, self.sample_tokens)
            write_text_atomically(run_folder / SUMMARY_FILE, json.dumps(self._summary, indent=2) + "\n")
        print(closing_table(self._summary, run_folder))


def closing_table(summary: dict[str, Any], run_folder: Path) -> str:
    """The end of a run in at most 80 columns, for people."""
    rows = [
        ("validation perplexity", _figure(summary, "val/perplexity", "{:.2f}")),
        ("bits per byte", _figure(summary, "val/bits_per_byte", "{:.3f}")),
        ("path entropy", _path_entropy(summary)),
        ("adjacent-layer agreement", _agreement(summary)),
        (
            "tokens per second",
            f"{summary['tokens_per_second']:,.0f} ({summary['tokens']:,} in {summary['seconds']:.0f} s)",
        ),
        ("peak memory", f"{summary['peak_memory_gib']:.2f} GiB"),
        ("checkpoint", str(run_folder / LAST_CHECKPOINT)),
        ("exported model", str(run_folder / EXPORT_FOLDER)),
    ]
    width = max(len(name) for name, _ in rows)
    table = "\n".join(f"  {name:<{width}}  {value}" for name, value in rows if value)
    return f"\n{table}\n\n  a sample:\n\n{_indented(str(summary['sample']))}\n"


def _figure(summary: dict[str, Any], name: str, form: str) -> str:
    return form.format(summary[name]) if name in summary else ""


def _path_entropy(summary: dict[str, Any]) -> str:
    if "val/path_entropy_bits" not in summary:
        return ""
    ceiling = math.log2(summary["val/tokens"])
    return f"{summary['val/path_entropy_bits']:.2f} bits of {ceiling:.2f} that {summary['val/tokens']:,} tokens allow"


def _agreement(summary: dict[str, Any]) -> str:
    if "val/adjacent_agreement" not in summary:
        return ""
    chance = summary["val/adjacent_agreement_by_chance"]
    return f"{summary['val/adjacent_agreement']:.1%} (by chance {chance:.1%})"


def _indented(text: str, width: int = 76) -> str:
    lines = [line[start : start + width] for line in text.splitlines() for start in range(0, max(len(line), 1), width)]
    return "\n".join(f"    {line}" for line in lines)
