"""Which tensors the Triton kernels serve."""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


def runs_triton(tensor: Tensor) -> bool:
    """True on an NVIDIA GPU of sm_80 or newer where Triton is installed; everything else runs in plain PyTorch.

    So does double precision, which the kernels would round.
    """
    return tensor.is_cuda and tensor.dtype != torch.float64 and _has_kernels(tensor.device)


@cache
def _has_kernels(device: torch.device) -> bool:
    if find_spec("triton") is None or torch.version.hip is not None:
        return False
    # Fake tensors may say CUDA where there is none.
    return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= (8, 0)
