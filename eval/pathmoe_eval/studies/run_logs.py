"""Losses and paths over the course of a run, from its CSV logs."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

_LOGS = "csv/version_*/metrics.csv"
_MONITORED = "paths/"


def learning_curve(run_folder: Path, tokens_per_step: int) -> dict[int, float]:
    """Mean validation loss in nats a token, by the training tokens before it; empty where nothing was logged.

    Args:
        run_folder: of the run.
        tokens_per_step: of an optimizer step.
    """
    return _by_tokens(_logged(run_folder).get("val/loss", {}), tokens_per_step)


def monitored_curves(run_folder: Path, tokens_per_step: int) -> dict[str, dict[int, float]]:
    """What `PathMonitor` logged of the model as a whole: each figure by its name and the training tokens before it.

    Args:
        run_folder: of the run.
        tokens_per_step: of an optimizer step.
    """
    return {
        name.removeprefix(_MONITORED): _by_tokens(values, tokens_per_step)
        for name, values in _logged(run_folder).items()
        if name.startswith(_MONITORED) and "/" not in name.removeprefix(_MONITORED)
    }


def loss_roughness(run_folder: Path) -> float | None:
    """How erratic training was: how far logged training losses lie from the mean of their two neighbours (our choice).

    The root mean square over the second half of the run, in nats a token. Losses are of batches, which are in part
    harder than others, so that it compares among runs of one seed, and of as many steps between two logs.

    Args:
        run_folder: of the run.

    Returns:
        None with fewer than three logged losses in that half.
    """
    losses = list(_logged(run_folder).get("train/loss", {}).values())
    later = losses[len(losses) // 2 :]
    if len(later) < 3:
        return None
    squares = [
        (loss - (before + after) / 2) ** 2 for before, loss, after in zip(later, later[1:], later[2:], strict=False)
    ]
    return math.sqrt(math.fsum(squares) / len(squares))


def _by_tokens(by_steps: Mapping[int, float], tokens_per_step: int) -> dict[int, float]:
    return {steps * tokens_per_step: value for steps, value in by_steps.items()}


def _logged(run_folder: Path) -> dict[str, dict[int, float]]:
    """Every logged figure by its name and the steps before it.

    A run that was stopped and gone on with has several logs; what a later one says of the same step counts.
    """
    logs = sorted(run_folder.glob(_LOGS), key=lambda log: int(log.parent.name.removeprefix("version_")))
    figures: dict[str, dict[int, float]] = {}
    for log in logs:
        with log.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                if None in row.values():  # cut short as it was written
                    continue
                # Steps are logged by their number from 0.
                steps = int(row["step"]) + 1
                for name, value in row.items():
                    if value:
                        figures.setdefault(name, {})[steps] = float(value)
    return {name: dict(sorted(values.items())) for name, values in figures.items()}
