"""The kernels of the activation, in Triton's interpreter, against autograd in fp64."""

# Shapes: T tokens, K experts per token, N = T*K routed rows, F expert width, G = 2F (gate, then up).

import math

import pytest
import torch
from torch import Tensor

from pathmoe_kernels.swiglu_triton import swiglu, swiglu_backward

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Tokens, choices and width: around the rows and the columns of a block.
SHAPES = [(1, 1, 1), (7, 1, 3), (4, 2, 256), (3, 3, 257), (11, 2, 33), (2, 4, 600), (0, 2, 8)]


def ends_of(num_rows: int, num_taken: int) -> Tensor:
    return torch.tensor([num_taken // 2, num_taken // 2, min(num_taken, num_rows)], dtype=torch.int32)


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def tolerances(dtype: torch.dtype) -> dict[str, float]:
    # The interpreter rounds to bf16 up to a whole unit off.
    return {"atol": 1e-5, "rtol": 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share_taken", [1.0, 0.6, 0.0])
@pytest.mark.parametrize(("num_tokens", "num_choices", "width"), SHAPES)
def test_activation_is_that_of_the_taken_rows_and_zero_for_the_others(
    num_tokens: int, num_choices: int, width: int, share_taken: float, dtype: torch.dtype
) -> None:
    num_rows = num_tokens * num_choices
    num_taken = int(share_taken * num_rows)
    pre_activation_NG = (3 * torch.randn(num_rows, 2 * width)).to(dtype)
    gate_NF, up_NF = pre_activation_NG.double().chunk(2, dim=-1)
    exact_NF = silu(gate_NF) * up_NF
    exact_NF[num_taken:] = 0
    pre_activation_NG[num_taken:] = math.nan
    activation_NF = swiglu(pre_activation_NG, ends_of(num_rows, num_taken))
    assert activation_NF.dtype == dtype
    torch.testing.assert_close(activation_NF.double(), exact_NF, **tolerances(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share_taken", [1.0, 0.6, 0.0])
@pytest.mark.parametrize(("num_tokens", "num_choices", "width"), SHAPES)
def test_gradients_equal_autograd(
    num_tokens: int, num_choices: int, width: int, share_taken: float, weights_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    num_rows = num_tokens * num_choices
    num_taken = int(share_taken * num_rows)
    order_N = torch.randperm(num_rows)
    weights_TK = torch.randn(num_tokens, num_choices).to(weights_dtype)
    pre_activation_NG, grad_NF = torch.randn(num_rows, 2 * width).to(dtype), torch.randn(num_rows, width).to(dtype)

    pre_leaf_NG, weights_leaf_TK = (tensor.double().requires_grad_() for tensor in (pre_activation_NG, weights_TK))
    gate_NF, up_NF = pre_leaf_NG.chunk(2, dim=-1)
    weighted_NF = silu(gate_NF) * up_NF * weights_leaf_TK.flatten()[order_N, None]
    taken_N1 = (torch.arange(num_rows) < num_taken)[:, None]
    weighted_NF = weighted_NF * taken_N1
    (weighted_NF * grad_NF).sum().backward()

    pre_activation_NG[num_taken:], grad_NF[num_taken:] = math.nan, math.nan
    weights_TK.view(-1)[order_N[num_taken:]] = math.nan
    ours = swiglu_backward(pre_activation_NG, grad_NF, order_N.int(), weights_TK, ends_of(num_rows, num_taken))
    exact = (pre_leaf_NG.grad, weighted_NF.detach(), weights_leaf_TK.grad)
    for got, want, like in zip(ours, exact, (dtype, dtype, weights_dtype), strict=True):
        assert got.dtype == like
        assert want is not None
        torch.testing.assert_close(got.double(), want, **tolerances(like))


def test_the_same_inputs_give_the_same_bits() -> None:
    arguments = (torch.randn(20, 140), torch.randn(20, 70), torch.randperm(20).int(), torch.randn(10, 2))
    first, again = (swiglu_backward(*arguments, ends_of(20, 20)) for _ in range(2))
    assert all(torch.equal(left, right) for left, right in zip(first, again, strict=True))


@pytest.mark.parametrize("gate", [-1e30, -200.0, 200.0, 1e30])
def test_gates_far_from_zero_do_not_overflow(gate: float) -> None:
    pre_activation_NG = torch.tensor([[gate, 0.5]])
    activation_NF = swiglu(pre_activation_NG, ends_of(1, 1))
    torch.testing.assert_close(activation_NF, torch.tensor([[max(gate, 0.0) * 0.5]]))
    one = torch.ones(1, 1)
    gradients = swiglu_backward(pre_activation_NG, one, torch.zeros(1, dtype=torch.int32), one, ends_of(1, 1))
    slope = float(gate > 0)
    torch.testing.assert_close(gradients[0], torch.tensor([[0.5 * slope, max(gate, 0.0)]]))
