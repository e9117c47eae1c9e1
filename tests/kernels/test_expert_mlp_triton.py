"""The experts as kernels around grouped GEMMs, in Triton's interpreter, against a loop over experts in fp64."""

# Shapes: T tokens, E experts, K experts per token, N = T*K routed rows, D hidden, F expert width, G = 2F.

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from pathmoe_kernels import Dispatch, expert_mlp_triton, sort_by_expert
from pathmoe_kernels.grouped import padding

pytestmark = pytest.mark.usefixtures("poisoned_memory")


class Shape(NamedTuple):
    T: int
    K: int
    E: int
    D: int
    F: int


SHAPES = {
    "aligned": Shape(T=16, K=2, E=4, D=16, F=8),
    "odd widths": Shape(T=9, K=3, E=7, D=5, F=11),
    "only the width is odd": Shape(T=9, K=3, E=3, D=8, F=3),
    "only the hidden size is odd": Shape(T=9, K=3, E=3, D=7, F=8),
    "one token": Shape(T=1, K=2, E=5, D=8, F=4),
    "every expert chosen": Shape(T=6, K=5, E=5, D=4, F=8),
    "one expert": Shape(T=5, K=1, E=1, D=8, F=8),
    "more experts than rows": Shape(T=3, K=2, E=31, D=8, F=4),
    "no token": Shape(T=0, K=2, E=3, D=8, F=8),
}


class Inputs(NamedTuple):
    x_TD: Tensor
    weights_TK: Tensor
    gate_up_EGD: Tensor
    down_EDF: Tensor


def inputs_of(shape: Shape, dtype: torch.dtype = torch.float32) -> Inputs:
    tensors = (
        torch.randn(shape.T, shape.D),
        torch.randn(shape.T, shape.K),
        torch.randn(shape.E, 2 * shape.F, shape.D) / shape.D**0.5,
        torch.randn(shape.E, shape.D, shape.F) / shape.F**0.5,
    )
    return Inputs(*(tensor if i == 1 else tensor.to(dtype) for i, tensor in enumerate(tensors)))


def distinct_ids(shape: Shape) -> Tensor:
    return torch.rand(shape.T, shape.E).argsort(dim=-1)[:, : shape.K]


def loop(inputs: Inputs, ids_TK: Tensor) -> Tensor:
    """Over experts, without autograd's or our functions of the activation."""
    x_TD, weights_TK, gate_up_EGD, down_EDF = inputs
    total_TD = torch.zeros_like(x_TD)
    for e in range(len(down_EDF)):
        weight_T1 = (weights_TK * (ids_TK == e)).sum(dim=-1, keepdim=True)
        gate, up = (x_TD @ gate_up_EGD[e].T).chunk(2, dim=-1)
        total_TD = total_TD + weight_T1 * ((gate / (1 + torch.exp(-gate)) * up) @ down_EDF[e].T)
    return total_TD


def exact(inputs: Inputs, ids_TK: Tensor, grad_TD: Tensor) -> list[Tensor]:
    """Output and gradients in fp64."""
    leaves = Inputs(*(tensor.double().requires_grad_() for tensor in inputs))
    output_TD = loop(leaves, ids_TK)
    return [output_TD.detach(), *torch.autograd.grad(output_TD, leaves, grad_TD.double())]


def run(inputs: Inputs, dispatch: Dispatch, grad_TD: Tensor, recompute: bool = False) -> list[Tensor]:
    output_TD, pre_activation_NG = expert_mlp_triton.forward(*inputs, dispatch)
    kept = None if recompute else pre_activation_NG
    return [output_TD, *expert_mlp_triton.backward(grad_TD, *inputs, dispatch, kept, wants_experts=True)]


def assert_exact(inputs: Inputs, ids_TK: Tensor, recompute: bool = False) -> None:
    grad_TD = torch.randn(inputs.x_TD.shape).to(inputs.x_TD.dtype)
    ours = run(inputs, sort_by_expert(ids_TK, len(inputs.down_EDF)), grad_TD, recompute)
    like = (inputs.x_TD, *inputs)
    names = ["y", "x", "weights", "gate_up", "down"]
    for name, got, want, source in zip(names, ours, exact(inputs, ids_TK, grad_TD), like, strict=True):
        assert (got.shape, got.dtype) == (source.shape, source.dtype), name
        if inputs.x_TD.dtype == torch.float32:
            torch.testing.assert_close(
                got.double(), want, atol=2e-5, rtol=2e-5, msg=lambda m, name=name: f"{name}: {m}"
            )
        else:
            assert (got.double() - want).norm() <= 4 * torch.finfo(inputs.x_TD.dtype).eps * want.norm(), name


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_output_and_gradients_equal_a_loop_over_experts(shape: Shape, recompute: bool) -> None:
    assert_exact(inputs_of(shape), distinct_ids(shape), recompute)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [SHAPES["aligned"], SHAPES["odd widths"]], ids=["aligned", "odd widths"])
def test_half_precision(shape: Shape, dtype: torch.dtype) -> None:
    assert_exact(inputs_of(shape, dtype), distinct_ids(shape))


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("share_of_none", [0.3, 1.0])
def test_rows_of_no_expert_add_nothing(share_of_none: float, recompute: bool) -> None:
    shape = SHAPES["aligned"]
    ids_TK = distinct_ids(shape)
    none_TK = torch.rand(ids_TK.shape) < share_of_none
    none_TK[3] = True
    ids_TK[none_TK] = shape.E
    assert_exact(inputs_of(shape), ids_TK, recompute)


@pytest.mark.parametrize("expert", [0, 3, 6])
def test_all_tokens_on_one_expert(expert: int) -> None:
    shape = Shape(T=12, K=1, E=7, D=8, F=8)
    assert_exact(inputs_of(shape), torch.full((12, 1), expert))


def test_gradients_of_experts_that_are_not_wanted_are_empty() -> None:
    shape = SHAPES["aligned"]
    inputs, grad_TD = inputs_of(shape), torch.randn(shape.T, shape.D)
    dispatch = sort_by_expert(distinct_ids(shape), shape.E)
    _, pre_activation_NG = expert_mlp_triton.forward(*inputs, dispatch)
    wanted, unwanted = (
        expert_mlp_triton.backward(grad_TD, *inputs, dispatch, pre_activation_NG, wants_experts)
        for wants_experts in (True, False)
    )
    assert all(torch.equal(one, two) for one, two in zip(wanted[:2], unwanted[:2], strict=True))
    assert [gradient.numel() for gradient in unwanted[2:]] == [0, 0]


def test_strided_inputs() -> None:
    shape = SHAPES["aligned"]
    inputs = Inputs(*(tensor.mT.contiguous().mT for tensor in inputs_of(shape)))
    assert not any(tensor.is_contiguous() for tensor in inputs)
    assert_exact(inputs, distinct_ids(shape))


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
def test_the_same_inputs_give_the_same_bits(recompute: bool) -> None:
    shape = SHAPES["odd widths"]
    inputs, dispatch, grad_TD = inputs_of(shape), sort_by_expert(distinct_ids(shape), shape.E), torch.randn(9, 5)
    first, again = run(inputs, dispatch, grad_TD), run(inputs, dispatch, grad_TD, recompute)
    assert all(torch.equal(left, right) for left, right in zip(first, again, strict=True))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_weights_are_padded_to_the_alignment_of_grouped_gemms_with_zeros(shape: Shape) -> None:
    inputs = inputs_of(shape)
    gate_up_EGD, down_EDF = expert_mlp_triton.pad_weights(inputs.gate_up_EGD, inputs.down_EDF)
    width = shape.F + padding(shape.F, torch.float32)
    assert down_EDF.shape == (shape.E, shape.D + padding(shape.D, torch.float32), width)
    assert gate_up_EGD.shape == (shape.E, 2 * width, down_EDF.shape[1])
    gate_EFD, up_EFD = gate_up_EGD[:, :width], gate_up_EGD[:, width:]
    assert torch.equal(gate_EFD[:, : shape.F, : shape.D], inputs.gate_up_EGD[:, : shape.F])
    assert torch.equal(up_EFD[:, : shape.F, : shape.D], inputs.gate_up_EGD[:, shape.F :])
    assert torch.equal(down_EDF[:, : shape.D, : shape.F], inputs.down_EDF)
    for padded, plain in [(gate_up_EGD, inputs.gate_up_EGD), (down_EDF, inputs.down_EDF)]:
        assert padded.count_nonzero() == plain.count_nonzero()
        assert padded.shape != plain.shape or padded.data_ptr() == plain.data_ptr()
