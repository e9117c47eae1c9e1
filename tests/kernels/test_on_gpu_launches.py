"""Where and when kernels are launched on a GPU: other devices than the current one, streams, graphs, strided inputs.

`TRITON_INTERPRET=0 pytest tests/kernels/test_on_gpu_launches.py` runs it, as `make bench-kernels` does first.
"""

# Shapes: T tokens, E experts, K experts per token, N = T*K routed rows, D hidden, F expert width, G = 2F,
# O the output width of a linear layer.

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pathmoe.bench.kernels import no_gpu
from pathmoe_kernels import (
    Routed,
    RouteRule,
    combine_rows,
    dispatch_rows,
    expert_mlp,
    grouped_linear,
    route,
    sort_by_expert,
)

GPU = torch.device("cuda")
T, E, K, D, F = 300, 64, 8, 128, 64
RULE = RouteRule(K, norm_topk_prob=True, probability_sum=True)

why_not = (
    "needs TRITON_INTERPRET=0, so that kernels run on a GPU" if os.environ["TRITON_INTERPRET"] != "0" else no_gpu()
)
if why_not:
    pytest.skip(why_not, allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("default")


def many_tokens(device: torch.device = GPU) -> tuple[Tensor, Tensor]:
    """x and gate, of more chunks than programs, so that programs finish in any order."""
    inputs = torch.randn(40_001, 64, dtype=torch.bfloat16), torch.randn(E, 64, dtype=torch.bfloat16)
    return inputs[0].to(device), inputs[1].to(device)


def same_bits(left: Routed, right: Routed) -> bool:
    pairs = zip((*left[:-1], *left.dispatch), (*right[:-1], *right.dispatch), strict=True)
    # As integers, NaN equals itself.
    return all(torch.equal(one.view(torch.int32), two.view(torch.int32)) for one, two in pairs)


def layer(x_TD: Tensor, gate_ED: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor) -> Tensor:
    routed = route(x_TD, gate_ED, RULE)
    return expert_mlp(x_TD, routed.weights_TK, gate_up_EGD, down_EDF, routed.dispatch)


def layer_leaves(device: torch.device = GPU) -> list[Tensor]:
    """x, gate, gate_up and down."""
    shapes = [(T, D), (E, D), (E, 2 * F, D), (E, D, F)]
    return [(torch.randn(shape) / 8).to(device, torch.bfloat16).requires_grad_() for shape in shapes]


def output_and_gradients(function: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output.float().square().sum(), leaves)]


def assert_equal(left: list[Tensor], right: list[Tensor]) -> None:
    for i, (one, two) in enumerate(zip(left, right, strict=True)):
        assert torch.equal(one, two), i


def test_launches_on_several_streams_do_not_disturb_each_other() -> None:
    inputs = many_tokens()
    alone, routed = route(*inputs, RULE), []
    torch.cuda.synchronize()
    for stream in 10 * [torch.cuda.Stream(), torch.cuda.Stream()]:
        with torch.cuda.stream(stream):
            routed.append(route(*inputs, RULE))
    torch.cuda.synchronize()
    assert all(same_bits(one, alone) for one in routed)


def captured(function: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    function()  # compiles outside of the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function()
    return graph, output


def test_graphs_replayed_on_several_streams_do_not_disturb_each_other() -> None:
    inputs = many_tokens()
    alone = route(*inputs, RULE)
    graphs = [captured(lambda: route(*inputs, RULE)) for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in graphs]
    for _ in range(10):
        for (graph, _), stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        route(*inputs, RULE)
    torch.cuda.synchronize()
    assert all(same_bits(routed, alone) for _, routed in graphs)


def test_a_graph_of_a_layer_gives_the_bits_of_the_layer() -> None:
    leaves = layer_leaves()
    plain = output_and_gradients(layer, leaves)
    graph, outputs = captured(lambda: output_and_gradients(layer, leaves))
    for output in outputs:
        output.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert_equal(outputs, plain)


def test_tensors_of_another_gpu_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    other = torch.device("cuda", 1)
    leaves = layer_leaves(other)
    with torch.cuda.device(other):
        there = output_and_gradients(layer, leaves)
    assert torch.cuda.current_device() == 0
    assert_equal(output_and_gradients(layer, leaves), there)


def test_strided_inputs() -> None:
    leaves = layer_leaves()
    strided = [leaf.detach().mT.contiguous().mT.requires_grad_() for leaf in leaves]
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert_equal(output_and_gradients(layer, strided), output_and_gradients(layer, leaves))


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_layer_compiles_without_a_graph_break() -> None:
    leaves = layer_leaves()
    compiled = output_and_gradients(torch.compile(layer, fullgraph=True), leaves)
    for got, want in zip(compiled, output_and_gradients(layer, leaves), strict=True):
        torch.testing.assert_close(got, want, atol=2e-2, rtol=2e-2)


def general_path(x_TD: Tensor, weights_TK: Tensor, weight_EOD: Tensor, bias_EO: Tensor, ids_TK: Tensor) -> Tensor:
    dispatch = sort_by_expert(ids_TK, E)
    rows_ND = dispatch_rows(x_TD, dispatch, K)
    return combine_rows(grouped_linear(rows_ND, weight_EOD, dispatch.ends_E, bias_EO), weights_TK, dispatch)


@pytest.mark.parametrize("width", [D, 65])
def test_experts_of_another_form_equal_those_of_a_cpu(width: int) -> None:
    ids_TK = torch.rand(T, E).argsort(dim=-1)[:, :K]
    ids_TK[::7, 0] = E  # rows of no expert
    exact = [torch.randn(shape).double() for shape in [(T, width), (T, K), (E, 33, width), (E, 33)]]
    on_gpu = [tensor.float().to(GPU).requires_grad_() for tensor in exact]
    exact = [tensor.float().double().requires_grad_() for tensor in exact]
    got = output_and_gradients(lambda *leaves: general_path(*leaves, ids_TK.to(GPU)), on_gpu)
    want = output_and_gradients(lambda *leaves: general_path(*leaves, ids_TK), exact)
    for name, one, two in zip(("y", "x", "weights", "weight", "bias"), got, want, strict=True):
        error = (one.double().cpu() - two.double()).norm()
        assert error <= 1e-4 * two.double().norm(), f"{name}: {error:.3g}"
