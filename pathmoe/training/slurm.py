"""SLURM, where it has started this process."""

import os

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment


class SlurmJob(SLURMEnvironment):
    """What Lightning knows of a job, without what it does on SIGUSR1.

    It would save in the middle of a step, a checkpoint that another start prefers to the run's own, and queue the job
    again by itself. `StopSignals` waits for the end of the step instead, and the job's script sees by the exit status
    that there is more to do.
    """

    def __init__(self) -> None:
        super().__init__(auto_requeue=False)

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Refuse a trainer of other sizes than the job's.

        Raises:
            ValueError: that.
        """
        sizes = (("devices", num_devices, "SLURM_NTASKS_PER_NODE"), ("num_nodes", num_nodes, "SLURM_NNODES"))
        for key, size, variable in sizes:
            if size != int(os.environ.get(variable, size)):
                raise ValueError(
                    f"trainer.{key} ({size}) must be the job's {variable} ({os.environ[variable]}); give "
                    f"--trainer.{key} {os.environ[variable]} after the configurations"
                )


def slurm_plugins() -> list[SlurmJob]:
    """The job that this process is a task of; empty where there is none, or torchrun has started it within one.

    Raises:
        ValueError: a job that does not say how many tasks a node has.
    """
    if torch.distributed.is_torchelastic_launched() or not SlurmJob.detect():
        return []
    if int(os.environ["SLURM_NTASKS"]) > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ValueError(
            f"SLURM_NTASKS ({os.environ['SLURM_NTASKS']}) must come with SLURM_NTASKS_PER_NODE; ask SLURM for "
            "--ntasks-per-node instead of --ntasks"
        )
    return [SlurmJob()]
