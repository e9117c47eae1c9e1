"""Callback that lays down, beside the checkpoints, what is needed to use them: configuration, provenance, tokenizer."""

import json
from dataclasses import asdict
from pathlib import Path

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from pathmoe.training.provenance import provenance
from pathmoe.training.run_folder import CONFIG_FILE, PROVENANCE_FILE, TOKENIZER_FOLDER, write_text_atomically


class SaveRun(Callback):
    """Writes the resolved configuration, the provenance and the tokenizer into the run folder when training starts.

    Args:
        run_folder: where.
        resolved_config: the configuration after all files and flags, plain types only.
    """

    def __init__(self, run_folder: Path, resolved_config: dict) -> None:
        self.run_folder = run_folder
        self.resolved_config = resolved_config

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, on the first rank."""
        if not trainer.is_global_zero:
            return
        facts = provenance() | {"data": asdict(trainer.datamodule.manifest)}
        write_text_atomically(self.run_folder / PROVENANCE_FILE, json.dumps(facts, indent=2) + "\n")
        trainer.datamodule.tokenizer.save_pretrained(self.run_folder / TOKENIZER_FOLDER)
        print(trainer.datamodule.manifest.summary())
        # Last, since a folder with a configuration counts as a run.
        text = yaml.safe_dump(self.resolved_config, sort_keys=False)
        write_text_atomically(self.run_folder / CONFIG_FILE, text)
