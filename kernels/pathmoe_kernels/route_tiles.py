"""What the forward and the backward kernel of `route` compute alike, on one tile of tokens by experts."""

# Shapes: T tokens, E experts, K experts per token, D hidden; a tile is BLOCK_T tokens by BLOCK_E >= E experts.

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.4028234663852886e38)
"""The lowest finite fp32."""
TINY = tl.constexpr(1.1754943508222875e-38)
"""The smallest normal fp32: sigmoid scores can underflow to zero together, and are divided by their sum."""


@triton.jit
def logits_tile(
    x_ptr, gate_ptr, token, inside, hidden_size,
    E: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
    FROM_LOGITS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Router logits [BLOCK_T, BLOCK_E] in fp32, from x and the gate or as they are given; minus infinity beyond E."""
    expert = tl.arange(0, BLOCK_E)
    real = expert < E
    row = token[:, None].to(tl.int64)
    if FROM_LOGITS:
        logits = tl.load(x_ptr + row * E + expert[None, :], inside[:, None] & real[None, :], 0.0).to(tl.float32)
    else:
        logits = tl.zeros([BLOCK_T, BLOCK_E], dtype=tl.float32)
        for first in range(0, hidden_size, BLOCK_D):
            column = first + tl.arange(0, BLOCK_D)
            within = column < hidden_size
            x = tl.load(x_ptr + row * hidden_size + column[None, :], inside[:, None] & within[None, :], 0.0)
            gate_ptrs = gate_ptr + expert[None, :] * hidden_size + column[:, None]
            gate = tl.load(gate_ptrs, real[None, :] & within[:, None], 0.0)
            if UPCAST:
                x = x.to(tl.float32)
                gate = gate.to(tl.float32)
            # Three TF32 products make one of about fp32's precision; bf16 and fp16 take one product.
            logits = tl.dot(x, gate, logits, input_precision="tf32x3")
    return tl.where(real[None, :], logits, float("-inf"))


@triton.jit
def logsumexp_rows(logits):
    """Log-sum-exp of each row; infinite and NaN rows as in `torch.logsumexp`."""
    highest = tl.max(logits, axis=1)
    shift = tl.where(tl.abs(highest) < float("inf"), highest, 0.0)
    return tl.log(tl.sum(tl.exp(logits - shift[:, None]), axis=1)) + shift


@triton.jit
def sigmoid(logits):
    """Without overflow for either sign."""
    small = tl.exp(-tl.abs(logits))
    return tl.where(logits >= 0, 1.0, small) / (1.0 + small)
