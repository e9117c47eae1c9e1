# Shapes: T tokens, E experts, K experts per token, N = T*K routed rows, D hidden, F expert width, G = 2F.
from collections.abc import Callable
from importlib.util import find_spec

import bounds
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pathmoe.bench.kernel_ops import ceilings, expert_flops, kernel_ops, least_bytes
from pathmoe.bench.layer import layer_shape

OperatorsOf = Callable[[Callable[[], object]], list[str]]

CPU = torch.device("cpu")
SHAPE = layer_shape(num_tokens=4, hidden_size=8, width=7, num_experts=3, num_experts_per_tok=2)

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="the row kernels are Triton's")


def nbytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_bytes_are_those_of_every_tensor_that_is_read_or_written() -> None:
    T, D, F, E, K = SHAPE.sizes()
    N = T * K
    x_TD, gate_ED, rows_ND = (torch.empty(sizes, dtype=torch.bfloat16) for sizes in [(T, D), (E, D), (N, D)])
    h_NG, a_NF = (torch.empty(sizes, dtype=torch.bfloat16) for sizes in [(N, 2 * F), (N, F)])
    logits_TE, weights_TK, lse_T = torch.empty(T, E), torch.empty(T, K), torch.empty(T)
    ids_TK, index_N = torch.empty(T, K, dtype=torch.int32), torch.empty(N, dtype=torch.int32)
    grad_logits_TE = logits_TE.bfloat16()
    # The sort reads the ids and writes the order and its inverse.
    routed = nbytes(weights_TK, ids_TK, lse_T) + nbytes(ids_TK, index_N, index_N)
    # Ids, weights and log-sum-exp of the forward pass, and the gradients of the latter two.
    given = nbytes(ids_TK, weights_TK, lse_T) + nbytes(weights_TK, lse_T)
    assert least_bytes(SHAPE, itemsize=2) == {
        "route": nbytes(x_TD, gate_ED) + routed,
        "route, backward": nbytes(x_TD, gate_ED, x_TD, gate_ED, grad_logits_TE, grad_logits_TE) + given,
        "route_logits": nbytes(logits_TE) + routed,
        "route_logits, backward": nbytes(logits_TE, logits_TE) + given,
        "sort_by_expert": nbytes(ids_TK, ids_TK, index_N, index_N),
        "gather": nbytes(x_TD, rows_ND, index_N),
        "swiglu": nbytes(h_NG, a_NF),
        # The order, the weights and their gradient; the activation's gradient, and the activation times the weight.
        "swiglu, backward": nbytes(h_NG, h_NG, a_NF, a_NF, index_N, weights_TK, weights_TK),
        "combine": nbytes(rows_ND, x_TD, index_N, weights_TK),
    }


def test_bytes_are_the_roofline_s_but_for_scalars_and_what_ops_keep_to_themselves() -> None:
    T, D, F, E, K = 4096, 256, 128, 64, 8
    layer = bounds.Shape(T, E, K, D, F, b=2, tile=128)
    options = bounds.Options(logsumexp_gradient=True)
    dw = bounds.backward(layer)[-2]
    launches = {
        "route": [bounds.route_forward(layer), bounds.place_rows(layer, layer.C)],
        "sort_by_expert": bounds.sort_by_expert(layer, rows_per_chunk=512),
        "gather": [bounds.gather_rows(layer, "x")],
        "swiglu": [bounds.swiglu(layer)],
        "swiglu, backward": [bounds.swiglu_backward(layer)],
        "combine": [bounds.combine_rows(layer, "y", weighted=True)],
    }
    least = least_bytes(layer_shape(T, D, F, E, K), itemsize=2)
    for name, steps in launches.items():
        assert least[name] == pytest.approx(sum(step.bytes - step.workspace for step in steps), rel=0.01)
    # The gradient of the logits is written once and read by dW: what dx reads of it again lies in a cache.
    backward = bounds.route_backward(layer, options)
    passes = backward.bytes - backward.reads["grad_logits"] + dw.bytes - dw.reads["x"]
    assert least["route, backward"] == pytest.approx(passes, rel=0.01)


def test_flops_are_those_of_three_matrices_for_each_routed_row() -> None:
    T, D, F, _, K = SHAPE.sizes()
    x_KD, up_DG, down_FD = torch.ones(K, D), torch.ones(D, 2 * F), torch.ones(F, D)
    with FlopCounterMode(display=False) as counter:
        (x_KD @ up_DG)[:, :F] @ down_FD
    assert expert_flops(SHAPE) == T * counter.get_total_flops()


def test_the_device_is_measured_by_a_copy_and_a_product(operators_of: OperatorsOf) -> None:
    works = ceilings(CPU, torch.float32, copied_bytes=40, matmul_size=5)
    assert {name: (work.bound, work.amount) for name, work in works.items()} == {
        "copy": ("copy", 80),
        "matmul": ("matmul", 250),
    }
    for name, operator in (("copy", "aten::copy_"), ("matmul", "aten::mm")):
        assert operators_of(works[name].call) == [operator]


@needs_triton
def test_every_op_is_run_by_its_call() -> None:
    torch.manual_seed(0)
    works = kernel_ops(SHAPE, CPU, torch.float32)
    T, D, F, E, K = SHAPE.sizes()
    moved = least_bytes(SHAPE, itemsize=4)
    assert {name: work.amount for name, work in works.items() if work.bound == "copy"} == moved
    assert works["expert_mlp"].amount * 3 == works["expert_mlp, fwd+bwd"].amount == 3 * expert_flops(SHAPE)

    routed, sorted_again = works["route"].call(), works["sort_by_expert"].call()
    assert all(torch.equal(one, two) for one, two in zip(routed.dispatch, sorted_again, strict=True))
    assert [tensor.shape for tensor in works["route, backward"].call()] == [(T, D), (E, D)]
    # The same logits, and so the same choice.
    assert torch.equal(works["route_logits"].call().expert_ids_TK, routed.expert_ids_TK)
    assert [tensor.shape for tensor in works["route_logits, backward"].call()] == [(T, E)]

    rows_ND, activation_NF = works["gather"].call(), works["swiglu"].call()
    assert (rows_ND.shape, activation_NF.shape) == ((T * K, D), (T * K, F))
    assert [tensor.shape for tensor in works["swiglu, backward"].call()] == [(T * K, 2 * F), (T * K, F), (T, K)]
    # The gathered rows, combined, are x times the sum of its weights, which is one.
    x_TD = rows_ND[routed.dispatch.position_N.view(T, K)[:, 0]]
    torch.testing.assert_close(works["combine"].call(), x_TD)
    assert works["expert_mlp"].call().shape == (T, D)


@needs_triton
@pytest.mark.parametrize("name", ["expert_mlp", "expert_mlp, fwd+bwd"])
def test_only_where_it_is_counted_does_a_call_run_backward(operators_of: OperatorsOf, name: str) -> None:
    work = kernel_ops(SHAPE, CPU, torch.float32)[name]
    assert ("pathmoe::expert_mlp_backward" in operators_of(work.call)) == ("bwd" in name)
