"""Which tensors the Triton kernels serve."""

from importlib.util import find_spec

from torch import Tensor


def runs_triton(tensor: Tensor) -> bool:
    """True on CUDA where Triton is installed; everything else runs in plain PyTorch."""
    return tensor.is_cuda and find_spec("triton") is not None
