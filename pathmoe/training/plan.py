"""The GPU that a run is planned for, and how long the run takes on it."""

from dataclasses import dataclass

from pathmoe.training.gpus import GPUS

GIB = 2**30
RESERVE = 0.1
"""Share of a GPU's memory that a plan leaves to the CUDA context, NCCL, cuBLAS and fragmentation: our choice."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """The GPU that a dry run is held against, and how much of it a run gets out.

    Raises:
        ValueError: a GPU that is not listed, or a number out of its range.
    """

    gpu: str | None = None
    """Name of a listed GPU: its memory, and its peak rate in bf16."""
    memory_gib: float | None = None
    """Memory of a GPU that is not listed, or less than the listed one's."""
    mfu: float = 0.4
    """Share of the peak rate that the model's own FLOPs reach: our choice, to be replaced by what a run has shown."""

    def __post_init__(self) -> None:
        if self.gpu is not None and self.gpu not in GPUS:
            raise ValueError(
                f"plan.gpu ({self.gpu}) must be one of {', '.join(GPUS)}; of others set plan.memory_gib and peak_tflops"
            )
        if self.memory_gib is not None and self.memory_gib <= 0:
            raise ValueError(f"plan.memory_gib ({self.memory_gib}) must be above 0; raise it")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"plan.mfu ({self.mfu}) must be above 0 and at most 1; set a share such as 0.4")

    @property
    def bytes(self) -> int | None:
        """Memory of one GPU; None where none is named."""
        gib = self.memory_gib if self.memory_gib is not None or self.gpu is None else GPUS[self.gpu].memory_gib
        return None if gib is None else int(gib * GIB)

    @property
    def reserve(self) -> int:
        """Bytes of it that the plan leaves alone."""
        return int(RESERVE * (self.bytes or 0))

    def peak_flops_per_second(self, precision: str) -> float | None:
        """Peak rate of one GPU; None where none is named, or it is only known in another precision."""
        if self.gpu is None or not precision.startswith("bf16"):
            return None
        return GPUS[self.gpu].peak_tflops * 1e12


@dataclass(frozen=True)
class Duration:
    """How long a run takes at a share of the peak rate."""

    tokens_per_second: float
    """Of all GPUs together."""
    seconds: float

    @property
    def days(self) -> float:
        """Wall-clock time."""
        return self.seconds / 86_400


def duration(tokens: int, flops_per_token: int, num_gpus: int, peak_flops_per_second: float, mfu: float) -> Duration:
    """Time for `tokens`: tokens x FLOPs per token = MFU x peak rate x GPUs x seconds.

    MFU counts the model's own FLOPs (PaLM, arXiv 2204.02311, appendix B), so that what checkpointing computes again
    lowers it.
    """
    tokens_per_second = mfu * peak_flops_per_second * num_gpus / flops_per_token
    return Duration(tokens_per_second, tokens / tokens_per_second)
