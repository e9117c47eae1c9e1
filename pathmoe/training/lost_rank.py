"""A rank that is gone or late, as the others learn of it: a collective that fails or takes too long."""

import re
from pathlib import Path

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from pathmoe.training.heartbeat import late_ranks
from pathmoe.training.last_checkpoint import last_good_checkpoint

LOST_RANK_STATUS = 3
"""Exit status of a rank that has lost others: something to start again for, which wrong input (2) is not."""

_OF_GLOO = re.compile(r"third_party/gloo/\S+\] (.*?)(?:\. This is typically|$)", re.DOTALL)


class LostRank(Callback):
    """Notes on the error of a collective, in one line, which ranks are behind and how to go on.

    Args:
        run_folder: where the ranks' heartbeats are.
    """

    def __init__(self, run_folder: Path) -> None:
        self.run_folder = run_folder

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Note it."""
        reason = failed_collective(exception)
        if reason is None:
            return
        late = "; ".join(late_ranks(self.run_folder)) or "no other rank has said that it is behind"
        exception.add_note(
            f"rank {trainer.global_rank} has lost other ranks in step {trainer.global_step} ({reason}): {late}; see "
            f"what they wrote last, and {last_good_checkpoint(trainer)}"
        )


def failed_collective(error: BaseException) -> str | None:
    """Why a collective failed, in a few words; None for an error of any other kind."""
    of_gloo = _OF_GLOO.search(str(error))
    if isinstance(error, RuntimeError) and of_gloo is not None:
        return " ".join(of_gloo[1].split())
    return " ".join(str(error).split())[:200] if isinstance(error, dist.DistError) else None
