"""Callback: path statistics of each validation, and at the end of a run a short table, an export and a text sample."""

# Shapes: N tokens, L MoE layers.

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.distributed.tensor import DTensor

from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.export import check_export_folder, export_model, load_model
from pathmoe.training.run_folder import LAST_CHECKPOINT, write_text_atomically
from pathmoe.training.speed import SpeedMonitor
from pathmoe.training.validation_figures import table, validation_rows
from pathmoe_eval.evaluation.sample import sample_text
from pathmoe_eval.layers.agreement import AdjacentCounts
from pathmoe_eval.paths.paths import PathCounts
from pathmoe_eval.ranks import merged_over_ranks

SUMMARY_FILE = "summary.json"
EXPORT_FOLDER = "export"

_WIDTH = 80


class ClosingReport(Callback):
    """Logs path statistics of every validation, and closes a fit with what came of it.

    `val/path_entropy_bits` and `val/adjacent_agreement` are over the validation tokens of all ranks. The close is an
    export, a text sample, a summary file, and a table on the terminal, all of the last step's weights: a validation
    follows the last step, whatever the interval between validations.

    Args:
        prompt: what the text sample goes on from.
        sample_tokens: new tokens of the sample.
    """

    def __init__(self, prompt: str = "def ", sample_tokens: int = 80) -> None:
        self.prompt = prompt
        self.sample_tokens = sample_tokens
        self._validation: dict[str, float] = {}
        self._has_trained = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse now what the export would refuse at the end."""
        check_export_folder(Path(trainer.default_root_dir) / EXPORT_FOLDER)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remove the summary of an earlier end, which was of other weights; a run that is complete has no batch."""
        if not self._has_trained and trainer.is_global_zero:
            (Path(trainer.default_root_dir) / SUMMARY_FILE).unlink(missing_ok=True)
        self._has_trained = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Forget the validation of the weights before; have one follow the last step."""
        self._validation = {}
        if trainer.global_step == trainer.max_steps:
            # Lightning validates before it stops.
            trainer.should_stop = True

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting paths."""
        config = pl_module.config
        shape = {"num_layers": config.num_moe_layers, "num_experts": config.num_experts}
        self._paths = PathCounts(**shape)
        self._adjacent = AdjacentCounts(**shape) if config.num_moe_layers > 1 else None

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
        if trainer.sanity_checking:
            return
        paths = merged_over_ranks(self._paths).result()
        metrics = {"val/path_entropy_bits": paths.entropy_bits, "val/path_entropy_ceiling_bits": paths.ceiling_bits}
        if self._adjacent is not None:
            adjacent = merged_over_ranks(self._adjacent).result()
            metrics |= {
                "val/adjacent_agreement": adjacent.mean_agreement,
                "val/adjacent_agreement_null": adjacent.mean_agreement_null,
                "val/adjacent_mutual_information_bits": adjacent.mean_mutual_information_corrected_bits,
            }
        values = {name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}
        pl_module.log_dict(values, sync_dist=True)
        self._validation = metrics | {"val/tokens": paths.num_tokens, "val/paths": paths.num_paths}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what the module has logged by now."""
        for name in ("val/loss", "val/perplexity", "val/bits_per_byte"):
            if name in trainer.callback_metrics and not trainer.sanity_checking:
                self._validation[name] = float(trainer.callback_metrics[name])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export, sample, write the summary and print; a run that was complete already prints what it wrote."""
        if not trainer.is_global_zero:
            return
        run_folder = Path(trainer.default_root_dir)
        summary_file = run_folder / SUMMARY_FILE
        # A run that was killed between its last checkpoint and this has no summary, though nothing is left to train.
        if not summary_file.is_file():
            summary = self._validation | _training_figures(trainer, pl_module)
            tokenizer = trainer.datamodule.tokenizer
            model = _whole_model(pl_module.model, run_folder)
            export_model(model, tokenizer, run_folder / EXPORT_FOLDER)
            summary["sample"] = sample_text(model, tokenizer, self.prompt, self.sample_tokens)
            write_text_atomically(summary_file, json.dumps(summary, indent=2) + "\n")
        print(closing_table(json.loads(summary_file.read_text(encoding="utf-8")), run_folder))

    def state_dict(self) -> dict[str, Any]:
        """The validation of the weights at hand, if any, so that a run that is resumed at its end closes with it."""
        return {"validation": self._validation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's validation."""
        self._validation = state_dict["validation"]


def _whole_model(model: PathMoEForCausalLM, run_folder: Path) -> PathMoEForCausalLM:
    """The model, or where ranks hold shards of it, that of the checkpoint of the last step."""
    is_sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    return load_model(run_folder / LAST_CHECKPOINT) if is_sharded else model


def _training_figures(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    speed = next(callback for callback in trainer.callbacks if isinstance(callback, SpeedMonitor))
    return {
        "steps": trainer.global_step,
        "tokens": speed.tokens,
        "seconds": speed.seconds,
        "wall_seconds": speed.wall_seconds,
        "tokens_per_second": speed.tokens / max(speed.seconds, 1e-9),
        "peak_memory_gib": speed.peak_memory_bytes(pl_module.device) / 2**30,
    }


def closing_table(summary: dict[str, Any], run_folder: Path) -> str:
    """The end of a run in at most 80 columns, for people."""
    rows = [
        *validation_rows(summary),
        (
            "tokens per second",
            f"{summary['tokens_per_second']:,.0f} ({summary['tokens']:,} in {summary['seconds']:,.0f} s)",
        ),
        ("wall time", f"{summary['wall_seconds']:,.0f} s with validations and checkpoints"),
        ("peak memory", f"{summary['peak_memory_gib']:.2f} GiB"),
        ("checkpoint", str(run_folder / LAST_CHECKPOINT)),
        ("exported model", str(run_folder / EXPORT_FOLDER)),
    ]
    return f"\n{table(rows)}\n\n  a sample:\n\n{_indented(str(summary['sample']))}\n"


def _indented(text: str) -> str:
    width = _WIDTH - 4
    text = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text.expandtabs(4))
    lines = [line[start : start + width] for line in text.split("\n") for start in range(0, max(len(line), 1), width)]
    return "\n".join(f"    {line}" for line in lines)
