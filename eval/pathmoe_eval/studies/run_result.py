"""What a study keeps of a finished run: a small file that stands for its folder, which may then be removed."""

# Shapes: M documents.

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathmoe.training.run_folder import write_text_atomically
from pathmoe_eval.studies.study import Evaluation

FORMAT = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class RunResult:
    """A finished run."""

    variant: str
    seed: int
    figures: dict[str, float]
    """By the keys of `FIGURES`."""
    curve: dict[int, float]
    """Validation loss by training tokens."""
    monitored: dict[str, dict[int, float]]
    """What `PathMonitor` logged while it trained, by name and training tokens; empty without one."""
    num_tokens: int
    """Tokens that paths were counted on."""
    data_hash: str
    """Of the tokens and documents that it was evaluated on."""
    nats_M: NDArray[np.float64]
    """Of each scored document."""
    bytes_M: NDArray[np.float64]
    """UTF-8 bytes of each."""
    circumstances: dict[str, list[str]]
    """Commit, versions, threads and device of its training: one value each, or several where it was stopped and gone on
    with under others."""
    data: dict[str, Any]
    """What it was trained on, as its provenance has it: source, sizes, hashes."""


def name_of_result(key: str, evaluation: Evaluation) -> str:
    """Of the file of a run, by its key and by how it was evaluated."""
    limits = {
        "tokens": evaluation.max_tokens,
        "perturbed": evaluation.perturbation_document_tokens,
        "geometry": evaluation.geometry_document_tokens,
    }
    return "-".join([key, *(f"{name}{value}" for name, value in limits.items() if value is not None)]) + ".json"


def keep_result(file: Path, result: RunResult) -> None:
    """Write a result, unless it is there; the variant's name, which is the study's, is left out."""
    content = {
        "format": FORMAT,
        "seed": result.seed,
        "num_tokens": result.num_tokens,
        "data_hash": result.data_hash,
        "figures": result.figures,
        "curve": list(result.curve.items()),
        "monitored": {name: list(curve.items()) for name, curve in result.monitored.items()},
        "nats": result.nats_M.tolist(),
        "bytes": result.bytes_M.tolist(),
        "circumstances": result.circumstances,
        "data": result.data,
    }
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    text = f"{{\n{lines}\n}}\n"
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        write_text_atomically(file, text)


def kept_result(file: Path, variant: str) -> RunResult | None:
    """The result that a file holds; None where there is none.

    Args:
        file: that `keep_result` wrote.
        variant: the name of the run's variant in the study that asks.

    Raises:
        ValueError: the file is damaged, or of another version.
    """
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(content["format"])
        return RunResult(
            variant=variant,
            seed=content["seed"],
            figures=content["figures"],
            curve=_curve(content["curve"]),
            # Results of a version that kept none have none.
            monitored={name: _curve(curve) for name, curve in content.get("monitored", {}).items()},
            num_tokens=content["num_tokens"],
            data_hash=content["data_hash"],
            nats_M=np.array(content["nats"], dtype=np.float64),
            bytes_M=np.array(content["bytes"], dtype=np.float64),
            circumstances=content["circumstances"],
            data=content["data"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} (damaged) must be a result as this version writes it; remove it") from error


def _curve(points: Sequence[Sequence[float]]) -> dict[int, float]:
    return {int(tokens): value for tokens, value in points}
