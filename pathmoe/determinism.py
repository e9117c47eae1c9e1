"""The same bits in every process: a fault of the math library on CPUs, kept out of the way."""

import torch

# Elementwise functions that torch hands to MKL on a CPU.
_FUNCTIONS = (
    "acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp", "expm1", "lgamma", "log", "log10", "log1p", "log2",
    "rsqrt", "sigmoid", "sin", "sinh", "sqrt", "tan", "tanh",
)  # fmt: skip


def call_math_functions_once() -> None:
    """Call each elementwise function on one number, so that MKL picks its kernel before several threads use it.

    It picks at the first call. Where threads share that call, one of them may compute its part with a kernel of low
    accuracy, for this one time (https://github.com/pytorch/pytorch/issues/188792): the cosines of a first forward, and
    with them the whole run, then differ from process to process. It costs well under a millisecond.
    """
    for dtype in (torch.float32, torch.float64):
        half = torch.full((1,), 0.5, dtype=dtype, device="cpu")
        for name in _FUNCTIONS:
            getattr(torch, name)(half)
