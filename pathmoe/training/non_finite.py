"""What becomes of a step whose loss or gradient is not finite."""

import math
from collections.abc import Mapping
from typing import Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from pathmoe.training.errors import OnAllRanksError
from pathmoe.training.last_checkpoint import last_good_checkpoint
from pathmoe.training.step_totals import StepTotals

_MOST_NAMED = 8
"""Micro-batches that an error names; a large run may have thousands."""
_MOST_SKIPPED = 10
"""Steps in a row that may be left out; more of them are no accident of their batches."""


class NonFiniteSteps:
    """Stops a run before such a step, or says that it is left out, and counts.

    Args:
        policy: `stop` or `skip`.
    """

    def __init__(self, policy: Literal["stop", "skip"]) -> None:
        self.policy = policy
        self.skipped = 0
        """Steps of the run that were left out."""
        self._in_a_row = 0

    def allow(self, figures: Mapping[str, float], totals: StepTotals, trainer: Trainer) -> bool:
        """Whether the step may be taken; every rank must call this, with the same figures.

        Args:
            figures: `train/loss` and `train/grad_norm` of the global batch.
            totals: of the step.
            trainer: of the run.

        Raises:
            OnAllRanksError: where it may not, and is not to be skipped; with the micro-batches at fault.
        """
        names = ("train/loss", "train/grad_norm")
        name = next((name for name in names if not math.isfinite(figures[name])), None)
        if name is None:
            self._in_a_row = 0
            return True
        suspects = totals.suspects()
        more = f"; and {len(suspects) - _MOST_NAMED} more" if len(suspects) > _MOST_NAMED else ""
        what = (
            f"{name} ({figures[name]}) must be finite, but is not at optimizer step {trainer.global_step} "
            f"({'; '.join(suspects[:_MOST_NAMED])}{more})"
        )
        if self.policy == "stop" or self._in_a_row == _MOST_SKIPPED:
            again = f", as it was not in the {_MOST_SKIPPED} steps before" if self._in_a_row else ""
            raise OnAllRanksError(
                f"{what}{again}; lower model.optimizer.lr or set trainer.gradient_clip_val, and "
                f"{last_good_checkpoint(trainer)}"
            )
        rank_zero_warn(f"{what}; the step is left out")
        self.skipped += 1
        self._in_a_row += 1
        return False
