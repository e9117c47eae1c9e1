"""The experts against a plain double loop in fp64 and against transformers' own, output and every gradient."""

# Shapes: T tokens, E experts, K experts per token, N = T*K routed rows, D hidden, F expert width, G = 2F.

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

from pathmoe_kernels import expert_mlp, expert_mlp_cpu, sort_by_expert

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Shape:
    T: int
    K: int
    E: int
    D: int
    F: int


SHAPES = {
    "plain": Shape(T=16, K=2, E=4, D=8, F=8),
    "one token": Shape(T=1, K=2, E=5, D=8, F=4),
    "one choice": Shape(T=9, K=1, E=4, D=8, F=4),
    "every expert chosen": Shape(T=6, K=5, E=5, D=4, F=8),
    "one expert": Shape(T=5, K=1, E=1, D=4, F=4),
    "prime number of experts, odd widths": Shape(T=33, K=3, E=7, D=5, F=11),
    "more experts than rows": Shape(T=3, K=2, E=31, D=8, F=4),
    "width one": Shape(T=7, K=2, E=3, D=1, F=1),
    "no token": Shape(T=0, K=2, E=3, D=4, F=4),
}


def distinct_ids(shape: Shape) -> Tensor:
    return torch.rand(shape.T, shape.E).argsort(dim=-1)[:, : shape.K]


def inputs_of(shape: Shape, dtype: torch.dtype = torch.float32, expert_ids_TK: Tensor | None = None) -> Inputs:
    expert_ids_TK = distinct_ids(shape) if expert_ids_TK is None else expert_ids_TK
    x_TD = torch.randn(shape.T, shape.D)
    # Signed and not summing to one: nothing may rely on what a router happens to give.
    weights_TK = torch.randn(shape.T, shape.K)
    gate_up_EGD, down_EDF = torch.randn(shape.E, 2 * shape.F, shape.D), torch.randn(shape.E, shape.D, shape.F)
    x_TD, weights_TK, gate_up_EGD, down_EDF = (
        tensor.to(dtype).requires_grad_() for tensor in (x_TD, weights_TK, gate_up_EGD, down_EDF)
    )
    return x_TD, expert_ids_TK, weights_TK, gate_up_EGD, down_EDF


def routed_mlp(
    x_TD: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    gate_up_EGD: Tensor,
    down_EDF: Tensor,
    recompute: bool = False,
) -> Tensor:
    dispatch = sort_by_expert(expert_ids_TK, gate_up_EGD.shape[0])
    return expert_mlp(x_TD, weights_TK, gate_up_EGD, down_EDF, dispatch, recompute=recompute)


def double_loop(
    x_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor
) -> Tensor:
    rows = []
    for t in range(x_TD.shape[0]):
        row = torch.zeros_like(x_TD[t])
        for k in range(expert_ids_TK.shape[1]):
            e = int(expert_ids_TK[t, k])
            if not 0 <= e < gate_up_EGD.shape[0]:
                continue
            gate, up = (gate_up_EGD[e] @ x_TD[t]).chunk(2)
            row = row + weights_TK[t, k] * (down_EDF[e] @ (gate / (1 + torch.exp(-gate)) * up))
        rows.append(row)
    # The zero keeps the graph where there is no token.
    zero = 0 * (x_TD.sum() + weights_TK.sum() + gate_up_EGD.sum() + down_EDF.sum())
    return (torch.stack(rows) if rows else x_TD) + zero


def output_and_gradients(function: Any, inputs: Inputs, upstream_TD: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in inputs]
    output = function(*leaves)
    (output * upstream_TD).sum().backward()
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.is_floating_point())]


def assert_equals_double_loop(inputs: Inputs) -> None:
    upstream_TD = torch.randn(inputs[0].shape)
    ours = output_and_gradients(routed_mlp, inputs, upstream_TD)
    exact_inputs = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs)
    exact = output_and_gradients(double_loop, exact_inputs, upstream_TD.double())
    for name, got, want in zip(("y", "x", "weights", "gate_up", "down"), ours, exact, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, atol=2e-5, rtol=2e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_output_and_gradients_equal_a_double_loop(shape: Shape) -> None:
    assert_equals_double_loop(inputs_of(shape))


@pytest.mark.parametrize("expert", [0, 3, 6])
def test_all_tokens_on_one_expert(expert: int) -> None:
    shape = Shape(T=12, K=1, E=7, D=6, F=5)
    assert_equals_double_loop(inputs_of(shape, expert_ids_TK=torch.full((12, 1), expert)))


def test_rows_of_no_expert_add_nothing_even_where_their_memory_held_nan(poisoned_memory: None) -> None:
    shape = Shape(T=20, K=3, E=4, D=6, F=5)
    expert_ids_TK = distinct_ids(shape)
    expert_ids_TK[::2, 1] = shape.E
    expert_ids_TK[5] = -1
    inputs = inputs_of(shape, expert_ids_TK=expert_ids_TK)
    assert_equals_double_loop(inputs)
    gradients = output_and_gradients(routed_mlp, inputs, torch.randn(shape.T, shape.D))
    assert not gradients[0][5].any()
    assert not gradients[2][expert_ids_TK == -1].any()


def test_all_rows_of_no_expert() -> None:
    shape = Shape(T=4, K=2, E=3, D=6, F=5)
    assert_equals_double_loop(inputs_of(shape, expert_ids_TK=torch.full((4, 2), 3)))


@pytest.mark.parametrize("numbers", [1, 40, 100])
def test_experts_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    monkeypatch.setattr(expert_mlp_cpu, "NUMBERS_PER_CHUNK", numbers)
    assert_equals_double_loop(inputs_of(Shape(T=13, K=2, E=6, D=4, F=5)))


def test_strided_inputs_and_32_bit_ids() -> None:
    shape = Shape(T=10, K=2, E=4, D=6, F=5)
    x_TD, expert_ids_TK, weights_TK, gate_up_EGD, down_EDF = inputs_of(shape)
    strided = tuple(tensor.detach().mT.contiguous().mT for tensor in (x_TD, weights_TK, gate_up_EGD, down_EDF))
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert_equals_double_loop((strided[0], expert_ids_TK.int(), *strided[1:]))


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize(
    "shape", [SHAPES["plain"], SHAPES["every expert chosen"]], ids=["plain", "every expert chosen"]
)
def test_equals_the_experts_of_transformers(shape: Shape, implementation: str) -> None:
    config = OlmoeConfig(
        hidden_size=shape.D, intermediate_size=shape.F, num_experts=shape.E, experts_implementation=implementation
    )
    experts = OlmoeExperts(config)

    def olmoe(x_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor) -> Tensor:
        parameters = {"gate_up_proj": gate_up_EGD, "down_proj": down_EDF}
        return torch.func.functional_call(experts, parameters, (x_TD, expert_ids_TK, weights_TK))

    inputs, upstream_TD = inputs_of(shape), torch.randn(shape.T, shape.D)
    ours = output_and_gradients(routed_mlp, inputs, upstream_TD)
    theirs = output_and_gradients(olmoe, inputs, upstream_TD)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_gradcheck() -> None:
    inputs = inputs_of(Shape(T=5, K=2, E=3, D=3, F=2), dtype=torch.float64)
    assert routed_mlp(*inputs).dtype == torch.float64
    assert torch.autograd.gradcheck(routed_mlp, inputs)


def test_nan_stays_with_its_token() -> None:
    shape = SHAPES["plain"]
    x_TD, expert_ids_TK, weights_TK, gate_up_EGD, down_EDF = (tensor.detach() for tensor in inputs_of(shape))
    clean_TD = routed_mlp(x_TD, expert_ids_TK, weights_TK, gate_up_EGD, down_EDF)
    others = torch.arange(shape.T) != 5
    for poisoned in (x_TD.clone(), weights_TK.clone()):
        poisoned[5] = math.nan
        arguments = (poisoned, weights_TK) if poisoned.shape == x_TD.shape else (x_TD, poisoned)
        output_TD = routed_mlp(arguments[0], expert_ids_TK, arguments[1], gate_up_EGD, down_EDF)
        assert output_TD[5].isnan().all()
        assert torch.equal(output_TD[others], clean_TD[others])


def test_same_bits_every_time() -> None:
    inputs, upstream_TD = inputs_of(Shape(T=300, K=4, E=8, D=16, F=8)), torch.randn(300, 16)
    first = output_and_gradients(routed_mlp, inputs, upstream_TD)
    for _ in range(3):
        again = output_and_gradients(routed_mlp, inputs, upstream_TD)
        assert all(torch.equal(left, right) for left, right in zip(first, again, strict=True))


class OpDtypes(TorchDispatchMode):
    """Records the floating-point dtypes that each of our ops is handed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "pathmoe":
            tensors = [arg for arg in args if isinstance(arg, Tensor) and arg.is_floating_point()]
            if tensors:
                self.seen[func.__name__.removesuffix(".default")] = [tensor.dtype for tensor in tensors]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_gemms_run_in_its_dtype_and_gradients_come_back_in_fp32(dtype: torch.dtype) -> None:
    inputs = inputs_of(Shape(T=40, K=2, E=4, D=32, F=16))
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    upstream_TD = torch.randn(40, 32)
    exact_TD = routed_mlp(*inputs)
    exact = torch.autograd.grad((exact_TD * upstream_TD).sum(), leaves)

    with OpDtypes() as ops:
        with torch.autocast("cpu", dtype):
            output_TD = routed_mlp(*inputs)
        gradients = torch.autograd.grad((output_TD * upstream_TD).sum(), leaves)
    # x, routing weights, gate and up, down; in backward between the upstream gradient and the pre-activation.
    forward_dtypes = [dtype, torch.float32, dtype, dtype]
    assert ops.seen == {"expert_mlp": forward_dtypes, "expert_mlp_backward": [dtype, *forward_dtypes, dtype]}
    assert output_TD.dtype == dtype
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    for got, want in zip([output_TD, *gradients], [exact_TD, *exact], strict=True):
        assert (got - want).norm() < 0.03 * want.norm()


def test_routing_weights_in_half_precision_models_stay_fp32() -> None:
    x_TD, expert_ids_TK, weights_TK, gate_up_EGD, down_EDF = inputs_of(SHAPES["plain"], dtype=torch.bfloat16)
    weights_TK = torch.randn(weights_TK.shape, requires_grad=True)
    output_TD = routed_mlp(x_TD, expert_ids_TK, weights_TK, gate_up_EGD, down_EDF)
    output_TD.sum().backward()
    assert output_TD.dtype == torch.bfloat16
    assert weights_TK.grad is not None
    assert weights_TK.grad.dtype == torch.float32


def saved_activations(inputs: Inputs, *, recompute: bool) -> list[Tensor]:
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        routed_mlp(*inputs, recompute=recompute)
    return [tensor for tensor in saved if not any(tensor is leaf for leaf in inputs[3:])]


@pytest.mark.parametrize("recompute", [False, True])
def test_saves_at_most_the_pre_activation_per_routed_row(recompute: bool) -> None:
    shape = Shape(T=50, K=3, E=4, D=64, F=4)
    activations = saved_activations(inputs_of(shape), recompute=recompute)
    num_rows = shape.T * shape.K
    assert max(tensor.numel() for tensor in activations) < num_rows * shape.D
    # x; routing weights, order and position; ends; pre-activation.
    expected = shape.T * shape.D + 3 * num_rows + shape.E + (0 if recompute else num_rows * 2 * shape.F)
    assert sum(tensor.numel() for tensor in activations) == expected


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_recomputing_gives_the_same_bits(shape: Shape) -> None:
    inputs, upstream_TD = inputs_of(shape), torch.randn(shape.T, shape.D)
    kept = output_and_gradients(routed_mlp, inputs, upstream_TD)
    again = output_and_gradients(partial(routed_mlp, recompute=True), inputs, upstream_TD)
    assert all(torch.equal(left, right) for left, right in zip(kept, again, strict=True))


def test_backward_makes_no_gradient_of_the_pre_activation() -> None:
    inputs = inputs_of(Shape(T=20, K=2, E=3, D=4, F=16))
    output_TD = routed_mlp(*inputs)
    sizes = set()

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func is not torch.ops.aten.detach.default and isinstance(result, Tensor):
                sizes.add(tuple(result.shape))
            return result

    with Sizes():
        output_TD.sum().backward()
    assert sizes
    assert (40, 32) not in sizes


def test_an_undefined_gradient_is_passed_on() -> None:
    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x_TD: Tensor) -> Tensor:
            return x_TD.clone()

        @staticmethod
        def backward(ctx: Any, grad_TD: Tensor) -> None:
            return None

    inputs = inputs_of(SHAPES["plain"])
    Nothing.apply(routed_mlp(*inputs)).sum().backward()
    assert all(leaf.grad is None for leaf in inputs if leaf.requires_grad)


def op_arguments(shape: Shape) -> tuple[Tensor, ...]:
    x_TD, expert_ids_TK, weights_TK, gate_up_EGD, down_EDF = inputs_of(shape)
    return x_TD, weights_TK, gate_up_EGD, down_EDF, *sort_by_expert(expert_ids_TK, shape.E)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("shape", [SHAPES["plain"], SHAPES["more experts than rows"]], ids=["plain", "empty experts"])
def test_opcheck(shape: Shape, recompute: bool) -> None:
    arguments = op_arguments(shape)
    torch.library.opcheck(torch.ops.pathmoe.expert_mlp.default, (*arguments, recompute))
    with torch.no_grad():
        _, pre_activation_NG = torch.ops.pathmoe.expert_mlp(*arguments, recompute)
    detached = [argument.detach() for argument in arguments]
    backward_arguments = (torch.randn(shape.T, shape.D), *detached, None if recompute else pre_activation_NG)
    for wants_experts in (False, True):
        torch.library.opcheck(torch.ops.pathmoe.expert_mlp_backward.default, (*backward_arguments, wants_experts))


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize(
    "backend",
    ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)],  # inductor calls a C++ compiler
)
def test_compiles_without_a_graph_break(backend: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(routed_mlp, fullgraph=True, backend=backend)
    for num_tokens in (16, 24):  # the second size makes the graph dynamic
        shape = Shape(T=num_tokens, K=2, E=4, D=8, F=8)
        inputs, upstream_TD = inputs_of(shape), torch.randn(num_tokens, 8)
        plain = output_and_gradients(routed_mlp, inputs, upstream_TD)
        torch.testing.assert_close(output_and_gradients(compiled, inputs, upstream_TD), plain)


def test_the_gradient_of_a_weight_does_not_overflow_on_its_way() -> None:
    x_TD, down_EDF = torch.ones(1, 1).half(), torch.tensor([[[256.0, -255.0]]]).half()
    gate_up_EGD = torch.tensor([32.0, 32.0, 16.0, 16.0]).half().view(1, 4, 1)
    weights_TK = torch.ones(1, 1, requires_grad=True)
    dispatch = sort_by_expert(torch.zeros(1, 1, dtype=torch.int32), 1)
    y_TD = expert_mlp(x_TD, weights_TK, gate_up_EGD, down_EDF, dispatch)
    # An activation of silu(32) * 16 = 512 in both columns, of which one product is 131,072.
    assert torch.autograd.grad(y_TD, weights_TK, torch.ones_like(y_TD))[0].item() == 512.0
