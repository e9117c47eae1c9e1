"""Which tensors the Triton kernels serve, and ops that run on the device of their tensors."""

from collections.abc import Callable
from functools import cache, wraps
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef


def device_op(name: str) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Make a custom op of a function that changes none of its inputs.

    It runs with the GPU of its first tensor as the current one, which is where Triton launches.
    """

    def define(body: Callable[..., Any]) -> CustomOpDef:
        @wraps(body)
        def on_its_device(first: Tensor, *rest: Any) -> Any:
            with torch.cuda.device_of(first):
                return body(first, *rest)

        return torch.library.custom_op(name, on_its_device, mutates_args=())

    return define


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
