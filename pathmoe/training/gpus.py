"""GPUs by name: memory and peak rate in bf16."""

import re
from typing import NamedTuple


class Gpu(NamedTuple):
    """What a plan is held against."""

    memory_gib: float
    """The datasheet's gigabytes, which vendors count in 2^30 bytes or a little less."""
    peak_tflops: float
    """Dense products in bf16, 10^12 operations a second; half of what a datasheet gives with sparsity."""


# SXM modules where there are several.
GPUS = {
    "a100-40": Gpu(40, 312),  # "NVIDIA A100 Tensor Core GPU" datasheet
    "a100-80": Gpu(80, 312),  # the same
    "h100": Gpu(80, 989.4),  # "NVIDIA H100 Tensor Core GPU" datasheet: 1,979 with sparsity
    "h200": Gpu(141, 989.4),  # "NVIDIA H200 Tensor Core GPU" datasheet: 1,979 with sparsity
    "b200": Gpu(180, 2250),  # "NVIDIA DGX B200" datasheet: 1,440 GB and 36 PFLOPS with sparsity, of eight
    "mi300x": Gpu(192, 1307.4),  # "AMD Instinct MI300X Accelerator" data sheet
    "mi325x": Gpu(256, 1307.4),  # "AMD Instinct MI325X Accelerator" data sheet
}

# Of these Lightning's table knows nothing, or figures with sparsity, which are twice as high.
_NOT_AS_LIGHTNING_HAS_THEM = ("h200", "b200", "mi300x", "mi325x")


def peak_of_device(name: str) -> float | None:
    """Dense bf16 products a second of a device that Lightning's table lacks or has otherwise; None for all others.

    Args:
        name: as the device says it, e.g. "NVIDIA H200".
    """
    words = re.findall(r"\w+", name.lower())
    known = [gpu for gpu in _NOT_AS_LIGHTNING_HAS_THEM if gpu in words and "nvl" not in words]
    return GPUS[known[0]].peak_tflops * 1e12 if known else None


def check_peak_tflops(peak_tflops: float | None) -> None:
    """Refuse a rate that is none.

    Raises:
        ValueError: that.
    """
    if peak_tflops is not None and peak_tflops <= 0:
        raise ValueError(f"--peak_tflops ({peak_tflops}) must be above 0; give the data sheet's, without sparsity")
