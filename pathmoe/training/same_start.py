"""Callback that refuses ranks that would not start from one and the same place."""

import socket
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from pathmoe.training.checkpoint_io import saved_step
from pathmoe.training.errors import OnAllRanksError


class SameStart(Callback):
    """Each rank looks for the checkpoint itself: where they do not see one disk, some would begin anew, unnoticed."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare, before anything is loaded.

        Raises:
            OnAllRanksError: ranks with other checkpoints, or other numbers of micro-batches, than the first.
        """
        if trainer.world_size == 1:
            return
        mine = (_start(trainer.ckpt_path), trainer.accumulate_grad_batches, socket.gethostname())
        of_ranks = [mine] * trainer.world_size
        dist.all_gather_object(of_ranks, mine)
        first = of_ranks[0]
        for rank, (theirs, accumulate, host) in enumerate(of_ranks):
            if theirs != first[0]:
                raise OnAllRanksError(
                    f"--ckpt_path ({theirs}) of rank {rank} on {host} must be that of rank 0 on {first[2]} ({first[0]})"
                    "; have all ranks see the same --run_dir"
                )
            if accumulate != first[1]:
                raise OnAllRanksError(
                    f"trainer.accumulate_grad_batches ({accumulate}) of rank {rank} on {host} must be that of rank 0 "
                    f"on {first[2]} ({first[1]}); start all ranks with the same command"
                )


def _start(path: Any) -> str:
    if path is None:
        return "no checkpoint"
    try:
        return f"{path} of step {saved_step(Path(path))}"
    except ValueError:
        # Raised here, it would leave the ranks that can read theirs waiting for this one. Loading says what is wrong.
        return f"{path}, which can't be read"
