"""Validation loss over training tokens, from the CSV logs of a run."""

from __future__ import annotations

import csv
from pathlib import Path

_LOGS = "csv/version_*/metrics.csv"


def learning_curve(run_folder: Path, tokens_per_step: int) -> dict[int, float]:
    """Mean validation loss in nats a token, by the training tokens before it; empty where nothing was logged.

    A run that was stopped and gone on with has several logs; what a later one says of the same step counts.

    Args:
        run_folder: of the run.
        tokens_per_step: of an optimizer step.
    """
    logs = sorted(run_folder.glob(_LOGS), key=lambda log: int(log.parent.name.removeprefix("version_")))
    losses = {}
    for log in logs:
        with log.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                if row.get("val/loss"):
                    # Steps are logged by their number from 0.
                    losses[(int(row["step"]) + 1) * tokens_per_step] = float(row["val/loss"])
    return dict(sorted(losses.items()))
