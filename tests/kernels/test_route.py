"""`route` and `route_logits` against the plain formula under autograd in fp64, also where a softmax breaks."""

# Shapes: T tokens, E experts, K experts per token, D hidden, N = T*K routed rows.

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from pathmoe_kernels import Routed, RouteRule, route, route_logits

PlainRoute = Callable[..., Routed]

T, E, K, D = 23, 7, 3, 5

FP32 = {"atol": 2e-5, "rtol": 2e-5}

RULES = {
    f"{'sigmoid' if sigmoid else 'softmax'}{' renormalised' if norm else ''}{' uniform' if uniform else ''}": RouteRule(
        K, sigmoid, norm, 2.5, probability_sum=True, uniform=uniform
    )
    for sigmoid, norm, uniform in product([False, True], repeat=3)
}


def differentiable(routed: Routed) -> list[Tensor]:
    return [routed.weights_TK, routed.logsumexp_T, routed.probability_sum_E]


def integers(routed: Routed) -> list[Tensor]:
    return [tensor.long() for tensor in (routed.expert_ids_TK, routed.load_E, *routed.dispatch)]


def random_loss(routed: Routed, seed: int = 1) -> Tensor:
    """A random combination of all that carries a gradient."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(())
    for output in differentiable(routed):
        upstream = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        total = total + (output * upstream.to(output.dtype)).sum()
    return total


def run_route(x_TD: Tensor, gate_ED: Tensor | None, rule: RouteRule, bias: Any = None, mask: Any = None) -> Routed:
    options = {"selection_bias_E": bias, "token_mask_T": mask}
    return route_logits(x_TD, rule, **options) if gate_ED is None else route(x_TD, gate_ED, rule, **options)


def inputs_of(from_logits: bool, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = [(T, E)] if from_logits else [(T, D), (E, D)]
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def leaves_of(tensors: list[Tensor], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]


def as_arguments(tensors: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    return tensors[0], tensors[1] if len(tensors) == 2 else None


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
@pytest.mark.parametrize("from_logits", [False, True], ids=["gate", "logits"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_outputs_and_gradients_equal_the_formula(
    plain_route: PlainRoute, rule: RouteRule, from_logits: bool, biased: bool, masked: bool
) -> None:
    bias_E = torch.randn(E) if biased else None
    mask_T = torch.rand(T) < 0.7 if masked else None
    inputs = inputs_of(from_logits)
    ours = run_route(*as_arguments(inputs), rule, bias_E, mask_T)
    leaves = leaves_of(inputs)
    plain = plain_route(*as_arguments(leaves), rule, bias_E, mask_T)
    assert [tensor.tolist() for tensor in integers(ours)] == [tensor.tolist() for tensor in integers(plain)]
    torch.testing.assert_close(differentiable(ours), differentiable(plain))
    random_loss(ours).backward()
    random_loss(plain).backward()
    torch.testing.assert_close([tensor.grad for tensor in inputs], [leaf.grad for leaf in leaves])


@pytest.mark.parametrize("output", range(3), ids=["weights", "logsumexp", "probability sum"])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_the_gradient_of_each_output_alone(plain_route: PlainRoute, output: int, sigmoid: bool) -> None:
    rule = RouteRule(K, sigmoid, norm_topk_prob=True, probability_sum=True)
    inputs = inputs_of(from_logits=False)
    leaves = leaves_of(inputs)
    differentiable(route(*inputs, rule))[output].square().sum().backward()
    differentiable(plain_route(*leaves, rule))[output].square().sum().backward()
    torch.testing.assert_close([tensor.grad for tensor in inputs], [leaf.grad for leaf in leaves])


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_gradcheck(rule: RouteRule) -> None:
    mask_T = torch.rand(T) < 0.7

    def function(x_TD: Tensor, gate_ED: Tensor) -> tuple[Tensor, ...]:
        return tuple(differentiable(route(x_TD, gate_ED, rule, token_mask_T=mask_T)))

    assert torch.autograd.gradcheck(function, inputs_of(from_logits=False), fast_mode=True)


@pytest.mark.parametrize("from_logits", [False, True], ids=["gate", "logits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_routed_in_fp32(
    plain_route: PlainRoute, dtype: torch.dtype, from_logits: bool
) -> None:
    rule = RouteRule(K, norm_topk_prob=True, probability_sum=True)
    inputs = inputs_of(from_logits, dtype)
    # Exactly what the half-precision inputs hold, so that only fp32's rounding is left.
    leaves = leaves_of(inputs)
    ours, plain = run_route(*as_arguments(inputs), rule), plain_route(*as_arguments(leaves), rule)
    assert {output.dtype for output in differentiable(ours)} == {torch.float32}
    assert torch.equal(ours.expert_ids_TK.long(), plain.expert_ids_TK)
    torch.testing.assert_close([output.double() for output in differentiable(ours)], differentiable(plain), **FP32)
    random_loss(ours).backward()
    random_loss(plain).backward()
    for tensor, leaf in zip(inputs, leaves, strict=True):
        assert tensor.grad is not None
        assert tensor.grad.dtype == dtype
        tolerance = max(2e-5, torch.finfo(dtype).eps)
        torch.testing.assert_close(tensor.grad.double(), leaf.grad, atol=tolerance, rtol=tolerance)


def test_a_gate_of_another_dtype_meets_x_in_the_wider() -> None:
    x_TD, gate_ED = torch.randn(T, D, dtype=torch.bfloat16, requires_grad=True), torch.randn(E, D, requires_grad=True)
    routed = route(x_TD, gate_ED, RouteRule(K))
    assert torch.equal(routed.logsumexp_T, route(x_TD.float(), gate_ED, RouteRule(K)).logsumexp_T)
    routed.weights_TK.square().sum().backward()
    assert x_TD.grad is not None
    assert gate_ED.grad is not None
    assert (x_TD.grad.dtype, gate_ED.grad.dtype) == (torch.bfloat16, torch.float32)


def test_autocast_does_not_reach_the_router() -> None:
    inputs = inputs_of(False, torch.float32)
    plain = route(*inputs, RouteRule(K))
    grads = torch.autograd.grad(random_loss(plain), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        under = route(*inputs, RouteRule(K))
        grads_under = torch.autograd.grad(random_loss(under), inputs)
    assert torch.equal(under.logsumexp_T, plain.logsumexp_T)
    assert all(torch.equal(left, right) for left, right in zip(grads_under, grads, strict=True))


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("num_choices", [2, 9])
def test_of_equal_logits_the_lower_index_wins(num_choices: int, sigmoid: bool) -> None:
    logits_TE = torch.zeros(4, 12)
    logits_TE[1, 5:] = 1.0
    logits_TE[2, [3, 11]] = 2.0
    logits_TE[3] = -1.0
    ids_TK = route_logits(logits_TE, RouteRule(num_choices, sigmoid)).expert_ids_TK
    order = [list(range(12)), [*range(5, 12), *range(5)], [3, 11, 0, 1, 2, *range(4, 11)], list(range(12))]
    assert ids_TK.tolist() == [row[:num_choices] for row in order]


def test_of_equal_biased_scores_the_lower_index_wins() -> None:
    bias_E = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    routed = route_logits(torch.zeros(3, 5), RouteRule(4), selection_bias_E=bias_E)
    assert routed.expert_ids_TK.tolist() == [[1, 2, 4, 0]] * 3
    assert routed.weights_TK.unique().tolist() == [pytest.approx(0.2)]  # without the bias


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_nan_row_takes_the_first_experts_and_leaves_the_others_alone(rule: RouteRule) -> None:
    logits_TE = torch.randn(T, E)
    poisoned_TE = logits_TE.clone()
    poisoned_TE[4, 2] = math.nan
    poisoned_TE[9] = math.nan
    others = torch.tensor([t not in (4, 9) for t in range(T)])
    bias_E = torch.randn(E)
    clean = route_logits(logits_TE, rule, selection_bias_E=bias_E)
    routed = route_logits(poisoned_TE.requires_grad_(), rule, selection_bias_E=bias_E)
    for clean_rows, rows in zip(clean[:3], routed[:3], strict=True):
        assert torch.equal(clean_rows[others], rows[others])
    assert routed.expert_ids_TK[~others].tolist() == [list(range(K))] * 2
    assert routed.weights_TK[~others].isnan().all()
    assert routed.logsumexp_T[~others].isnan().all()
    routed.weights_TK.sum().backward()
    assert poisoned_TE.grad is not None
    assert poisoned_TE.grad[others].isfinite().all()


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_a_softmax_of_only_infinite_logits_is_a_nan_row(value: float) -> None:
    logits_TE = torch.randn(3, E)
    logits_TE[1] = value
    routed = route_logits(logits_TE, RouteRule(K))
    assert routed.expert_ids_TK[1].tolist() == [0, 1, 2]
    assert routed.weights_TK.isnan().all(dim=-1).tolist() == [False, True, False]
    assert routed.logsumexp_T[1] == value


@pytest.mark.parametrize(
    ("value", "weights"), [(math.inf, [1.0, 1.0, 1.0]), (-math.inf, [0.0, 0.0, 0.0])], ids=["inf", "-inf"]
)
def test_a_sigmoid_of_infinite_logits_is_a_number(value: float, weights: list[float]) -> None:
    routed = route_logits(torch.full((2, E), value), RouteRule(K, sigmoid=True))
    assert routed.expert_ids_TK.tolist() == [[0, 1, 2]] * 2
    assert routed.weights_TK.tolist() == [weights] * 2


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
def test_minus_infinity_shuts_an_expert_out(plain_route: PlainRoute, rule: RouteRule, biased: bool) -> None:
    inputs = inputs_of(from_logits=True)
    with torch.no_grad():
        inputs[0][:, 2] = -math.inf
        inputs[0][5, 3:] = -math.inf  # as many as are chosen are left, or fewer
    bias_E = torch.rand(E) / 1e6 if biased else None
    leaves = leaves_of(inputs)
    ours, plain = run_route(inputs[0], None, rule, bias_E), plain_route(leaves[0], None, rule, bias_E)
    assert torch.equal(ours.expert_ids_TK.long(), plain.expert_ids_TK)
    torch.testing.assert_close(differentiable(ours), differentiable(plain))
    random_loss(ours).backward()
    random_loss(plain).backward()
    torch.testing.assert_close(inputs[0].grad, leaves[0].grad)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_huge_logits_do_not_overflow(rule: RouteRule, scale: float) -> None:
    logits_TE = (scale * torch.randn(T, E)).requires_grad_()
    routed = route_logits(logits_TE, rule)
    assert all(output.isfinite().all() for output in differentiable(routed))
    random_loss(routed).backward()
    assert logits_TE.grad is not None
    assert logits_TE.grad.isfinite().all()
    if not rule.uniform:
        assert torch.equal(routed.expert_ids_TK.long(), logits_TE.argsort(dim=-1, descending=True)[:, :K])


def test_sigmoid_scores_that_underflow_together_have_finite_weights_and_gradients() -> None:
    logits_TE = torch.full((2, E), -200.0, requires_grad=True)
    routed = route_logits(logits_TE, RouteRule(K, sigmoid=True, norm_topk_prob=True, probability_sum=True))
    assert routed.weights_TK.isfinite().all()
    (1e6 * random_loss(routed)).backward()  # as a loss scaler would
    assert logits_TE.grad is not None
    assert logits_TE.grad.isfinite().all()


def test_uniform_routing_loads_every_expert_alike() -> None:
    routed = route_logits(torch.randn(4 * E, E), RouteRule(K, uniform=True))
    assert routed.load_E.tolist() == [4 * K] * E


def test_padding_is_routed_but_not_counted() -> None:
    x_TD, gate_ED = torch.randn(T, D), torch.randn(E, D)
    rule = RouteRule(K, probability_sum=True)
    mask_T = torch.arange(T) < 10
    routed, alone = route(x_TD, gate_ED, rule, token_mask_T=mask_T), route(x_TD[:10], gate_ED, rule)
    assert torch.equal(routed.load_E, alone.load_E)
    torch.testing.assert_close(routed.probability_sum_E, alone.probability_sum_E)
    assert routed.dispatch.ends_E[-1] == T * K


@pytest.mark.parametrize("from_logits", [False, True], ids=["gate", "logits"])
def test_no_token(from_logits: bool) -> None:
    inputs = [tensor.detach()[:0] if i == 0 else tensor for i, tensor in enumerate(inputs_of(from_logits))]
    inputs[0].requires_grad_()
    routed = run_route(*as_arguments(inputs), RouteRule(K, probability_sum=True))
    assert routed.weights_TK.shape == (0, K)
    assert [routed.load_E.tolist(), routed.probability_sum_E.tolist()] == [[0] * E, [0.0] * E]
    random_loss(routed).backward()
    assert all(tensor.grad is not None and not tensor.grad.any() for tensor in inputs)


def test_saves_its_input_and_a_few_numbers_a_routed_row() -> None:
    num_tokens, num_experts, hidden_size = 50, 64, 16
    x_TD, gate_ED = (torch.randn(n, hidden_size, requires_grad=True) for n in (num_tokens, num_experts))
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        route(x_TD, gate_ED, RouteRule(K, probability_sum=True))
    kept = [tensor for tensor in saved if tensor is not x_TD and tensor is not gate_ED]
    # Ids, weights and log-sum-exp.
    assert sum(tensor.nbytes for tensor in kept) == 4 * num_tokens * (2 * K + 1)


@pytest.mark.parametrize("by_column", [False, True], ids=["by row", "by column"])
@pytest.mark.parametrize("from_logits", [False, True], ids=["gate", "logits"])
def test_opcheck(from_logits: bool, by_column: bool) -> None:
    inputs = inputs_of(from_logits, torch.float32)
    if by_column:
        inputs = [tensor.detach().T.contiguous().T.requires_grad_() for tensor in inputs]
    rule = RouteRule(K, sigmoid=from_logits, norm_topk_prob=True, probability_sum=True)
    mask_T = torch.rand(T) < 0.5
    arguments = (*as_arguments(inputs), torch.randn(E), mask_T, *rule)
    torch.library.opcheck(torch.ops.pathmoe.route.default, arguments)
    x_TD, gate_ED = (None if tensor is None else tensor.detach() for tensor in as_arguments(inputs))
    weights_TK, ids_TK, logsumexp_T, _, probability_E, *_ = torch.ops.pathmoe.route(*arguments)
    saved = (x_TD, gate_ED, mask_T, ids_TK, weights_TK.detach(), logsumexp_T.detach())
    grads = (torch.randn(T, K), torch.randn(T), torch.randn_like(probability_E))
    for wants_gate in (False, True):
        torch.library.opcheck(torch.ops.pathmoe.route_backward.default, (*saved, *grads, *rule[1:4], wants_gate))


@pytest.mark.parametrize("from_logits", [False, True], ids=["gate", "logits"])
def test_compiles_without_a_graph_break(from_logits: bool) -> None:
    torch.compiler.reset()
    rule = RouteRule(K, norm_topk_prob=True, probability_sum=True)
    compiled = torch.compile(run_route, fullgraph=True, backend="aot_eager")
    for num_tokens in (T, T + 6):  # the second size makes the graph dynamic
        inputs = inputs_of(from_logits, torch.float32)
        inputs[0] = torch.randn(num_tokens, inputs[0].shape[1], requires_grad=True)
        plain, graph = run_route(*as_arguments(inputs), rule), compiled(*as_arguments(inputs), rule)
        torch.testing.assert_close(differentiable(graph), differentiable(plain))
        assert all(torch.equal(left, right) for left, right in zip(integers(graph), integers(plain), strict=True))
        torch.testing.assert_close(
            torch.autograd.grad(random_loss(graph), inputs), torch.autograd.grad(random_loss(plain), inputs)
        )


def test_more_choices_than_experts_are_refused() -> None:
    message = r"num_experts_per_tok \(8\) must be at most the number of experts \(7\); lower it"
    with pytest.raises(ValueError, match=message):
        route_logits(torch.zeros(1, E), RouteRule(8))
    with pytest.raises(ValueError, match=message):
        route(torch.zeros(1, D), torch.zeros(E, D), RouteRule(8))


def test_more_rows_than_offsets_reach_are_refused() -> None:
    message = r"tokens \(33554433\) times num_experts_per_tok must be at most 2\^26; split the batch"
    with pytest.raises(ValueError, match=message):
        route_logits(torch.empty(2**25 + 1, 2, device="meta"), RouteRule(2))
