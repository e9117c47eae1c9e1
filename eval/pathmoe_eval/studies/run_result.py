"""What a study keeps of a finished run: a small file that stands for its folder, which may then be removed."""

# Shapes: M documents.

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
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
    num_tokens: int
    """Tokens that paths were counted on."""
    data_hash: str
    """Of the tokens and documents that it was evaluated on."""
    nats_M: NDArray[np.float64]
    """Of each scored document."""
    bytes_M: NDArray[np.float64]
    """UTF-8 bytes of each."""
    provenance: dict[str, Any]
    """Versions, commit and machine of the last part of its training."""


def keep_result(file: Path, result: RunResult, evaluation: Evaluation) -> None:
    """Write a result, over an earlier one; the variant's name, which is the study's, is left out."""
    content = {
        "format": FORMAT,
        "evaluation": asdict(evaluation),
        "seed": result.seed,
        "num_tokens": result.num_tokens,
        "data_hash": result.data_hash,
        "figures": result.figures,
        "curve": list(result.curve.items()),
        "nats": result.nats_M.tolist(),
        "bytes": result.bytes_M.tolist(),
        "provenance": result.provenance,
    }
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    write_text_atomically(file, f"{{\n{lines}\n}}\n")


def kept_result(file: Path, variant: str, evaluation: Evaluation) -> RunResult | None:
    """The result that a file holds; None where there is none, or one that was evaluated otherwise than asked.

    Args:
        file: that `keep_result` wrote.
        variant: the name of the run's variant in the study that asks.
        evaluation: what it asks for; without `perturbation_tokens` any will do.

    Raises:
        ValueError: the file is damaged.
    """
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or not _is_evaluated(content["evaluation"], evaluation):
            return None
        return RunResult(
            variant=variant,
            seed=content["seed"],
            figures=content["figures"],
            curve={int(tokens): loss for tokens, loss in content["curve"]},
            num_tokens=content["num_tokens"],
            data_hash=content["data_hash"],
            nats_M=np.array(content["nats"], dtype=np.float64),
            bytes_M=np.array(content["bytes"], dtype=np.float64),
            provenance=content["provenance"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} (damaged) must be a result as a study writes it; remove it") from error


def _is_evaluated(found: dict[str, Any], asked: Evaluation) -> bool:
    tokens = asked.perturbation_tokens
    return found["max_tokens"] == asked.max_tokens and tokens in (None, found["perturbation_tokens"])
