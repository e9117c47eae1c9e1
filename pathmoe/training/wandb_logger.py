"""Weights & Biases for runs that are started more than once, on more than one rank."""

import secrets
from pathlib import Path
from typing import Any

import wandb
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import WandbLogger

from pathmoe.training.run_folder import write_text_atomically


class RunWandbLogger(WandbLogger):
    """One run of wandb for all starts of a run: its id lies in the run's folder, as `wandb/rank-00000.id`.

    Offline every start writes a file of its own under that id, and `wandb sync` puts them together.

    Args:
        save_dir: the run's folder, after which run and group are called.
        name: other than that.
        group: other than that.
        all_ranks: whether ranks other than the first, which logs all figures, have runs of their own in the group, for
            what wandb sees of their machines: GPUs, memory, network. They are called after their rank.
        kwargs: what Lightning's logger takes besides.
    """

    _experiment: Any
    _id: str | None

    def __init__(
        self,
        save_dir: str = ".",
        name: str | None = None,
        group: str | None = None,
        all_ranks: bool = False,
        **kwargs: Any,
    ) -> None:
        of_run = Path(save_dir).resolve().name
        super().__init__(save_dir=save_dir, name=name or of_run, group=group or of_run, **kwargs)
        self.all_ranks = all_ranks

    @property
    def experiment(self) -> Any:
        """This rank's run, begun or gone on with when it is first asked for; of ranks that have none, a dummy."""
        rank = rank_zero_only.rank or 0
        if self._experiment is None and rank == 0 and self._id is None:
            self._id = self._wandb_init["id"] = _run_id(Path(self._save_dir), rank)
        if self._experiment is None and rank > 0 and self.all_ranks:
            own = {"id": _run_id(Path(self._save_dir), rank), "name": f"{self._name}-rank{rank}", "job_type": "rank"}
            mode = {"mode": "offline"} if self._offline else {}
            self._experiment = wandb.init(**self._wandb_init | own | mode)
        return super().experiment if rank == 0 or self._experiment is None else self._experiment


def _run_id(run_folder: Path, rank: int) -> str:
    """The id that a rank's run has had in this folder, or a new one, which is kept there."""
    file = run_folder / "wandb" / f"rank-{rank:05d}.id"
    if not file.exists():
        write_text_atomically(file, f"{secrets.token_hex(4)}\n")
    return file.read_text(encoding="utf-8").strip()
