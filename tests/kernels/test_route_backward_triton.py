"""The backward kernel of `route`, in Triton's interpreter, against autograd of the plain formula in fp64."""

# Shapes: T tokens, E experts, K experts per token, D hidden.

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from pathmoe_kernels import Routed, RouteRule, route_backward_triton
from pathmoe_kernels.route_backward_triton import route_backward
from pathmoe_kernels.route_forward_triton import tokens_per_chunk

pytestmark = pytest.mark.usefixtures("poisoned_memory")

PlainRoute = Callable[..., Routed]

# The interpreter computes with numpy, which warns where a GPU gives infinity or NaN.
NUMPY_WARNS = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow) encountered:RuntimeWarning")


class Gradients(NamedTuple):
    """Of the outputs of `route`."""

    weights_TK: Tensor
    logsumexp_T: Tensor | None
    probability_E: Tensor | None


def random_gradients(num_tokens: int, num_experts: int, rule: RouteRule, logsumexp: bool = True) -> Gradients:
    return Gradients(
        torch.randn(num_tokens, rule.num_experts_per_tok),
        torch.randn(num_tokens) if logsumexp else None,
        torch.randn(num_experts) if rule.probability_sum else None,
    )


class Case:
    """The kernel's inputs for one routing, and what autograd makes of it."""

    def __init__(
        self,
        plain_route: PlainRoute,
        rule: RouteRule,
        x_TD: Tensor,
        gate_ED: Tensor | None,
        gradients: Gradients,
        bias_E: Tensor | None = None,
        mask_T: Tensor | None = None,
    ) -> None:
        self.rule, self.x_TD, self.gate_ED = rule, x_TD, gate_ED
        self.gradients, self.mask_T = gradients, mask_T
        logits_TE = x_TD.double() if gate_ED is None else x_TD.double() @ gate_ED.double().T
        logits_TE.requires_grad_()
        self.routed: Routed = plain_route(logits_TE, None, rule, bias_E, mask_T)
        outputs = (self.routed.weights_TK, self.routed.logsumexp_T, self.routed.probability_sum_E)
        loss = sum(
            (output * upstream.double()).sum()
            for output, upstream in zip(outputs, gradients, strict=True)
            if upstream is not None
        )
        (self.exact_logits_TE,) = torch.autograd.grad(loss, logits_TE)
        self.exact_x_TD = None if gate_ED is None else self.exact_logits_TE @ gate_ED.double()

    def run(self) -> tuple[Tensor, Tensor | None]:
        saved = (
            self.routed.expert_ids_TK.int(), self.routed.weights_TK.detach().float(),
            self.routed.logsumexp_T.detach().float(),
        )  # fmt: skip
        num_experts = self.exact_logits_TE.shape[1]
        return route_backward(self.x_TD, self.gate_ED, self.mask_T, *saved, *self.gradients, num_experts, self.rule)

    def assert_exact(self) -> None:
        grad_logits_TE, grad_x_TD = self.run()
        assert grad_logits_TE.dtype == self.x_TD.dtype
        # The interpreter rounds to bf16 up to a whole unit off.
        tolerance = 2e-5 if self.x_TD.dtype == torch.float32 else torch.finfo(self.x_TD.dtype).eps
        torch.testing.assert_close(grad_logits_TE.double(), self.exact_logits_TE, atol=2e-5, rtol=tolerance)
        if self.gate_ED is None:
            assert grad_x_TD is None
            return
        assert grad_x_TD is not None
        assert self.exact_x_TD is not None
        assert grad_x_TD.dtype == self.x_TD.dtype
        # Each of the gradients of the logits is rounded before the product.
        rounding_TE = self.exact_logits_TE.abs() * tolerance + 2e-5
        bound_TD = rounding_TE @ self.gate_ED.double().abs() + self.exact_x_TD.abs() * tolerance + 2e-5
        assert ((grad_x_TD.double() - self.exact_x_TD).abs() <= bound_TD).all()


def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route_backward_triton, "tokens_per_chunk", lambda num_experts, has_gate: 16)


def test_gradients_of_logits_and_x_equal_autograd(plain_route: PlainRoute, route_case: Any) -> None:
    num_experts, has_gate, rule = route_case.E, "logits" not in route_case.options, route_case.rule
    num_tokens = route_case.num_tokens(tokens_per_chunk(num_experts, has_gate))
    x_TD = torch.randn(num_tokens, route_case.D if has_gate else num_experts).to(route_case.dtype)
    gate_ED = torch.randn(num_experts, route_case.D).to(route_case.dtype) if has_gate else None
    bias_E = torch.randn(num_experts) if "bias" in route_case.options else None
    mask_T = torch.rand(num_tokens) < 0.6 if "mask" in route_case.options else None
    gradients = random_gradients(num_tokens, num_experts, rule)
    Case(plain_route, rule, x_TD, gate_ED, gradients, bias_E, mask_T).assert_exact()


@pytest.mark.parametrize("balance", [False, True], ids=["", "balance"])
@pytest.mark.parametrize("logsumexp", [False, True], ids=["", "z-loss"])
@pytest.mark.parametrize("norm", [False, True], ids=["", "renormalised"])
@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
def test_each_gradient_with_and_without_the_others(
    monkeypatch: pytest.MonkeyPatch, plain_route: PlainRoute, sigmoid: bool, norm: bool, logsumexp: bool, balance: bool
) -> None:
    small_tiles(monkeypatch)
    rule = RouteRule(3, sigmoid, norm, 2.5, probability_sum=balance)
    gradients = random_gradients(19, 7, rule, logsumexp)
    mask_T = torch.rand(19) < 0.6
    Case(plain_route, rule, torch.randn(19, 5), torch.randn(7, 5), gradients, mask_T=mask_T).assert_exact()


@pytest.mark.parametrize("num_experts", [15, 16, 17, 33])  # experts are multiplied 16 at a time
@pytest.mark.parametrize("hidden_size", [1, 63, 64, 65, 130])
def test_widths_around_the_blocks_of_the_products(
    monkeypatch: pytest.MonkeyPatch, plain_route: PlainRoute, num_experts: int, hidden_size: int
) -> None:
    small_tiles(monkeypatch)
    rule = RouteRule(2, norm_topk_prob=True)
    x_TD, gate_ED = torch.randn(17, hidden_size), torch.randn(num_experts, hidden_size) / math.sqrt(hidden_size)
    Case(plain_route, rule, x_TD, gate_ED, random_gradients(17, num_experts, rule)).assert_exact()


def test_the_same_inputs_give_the_same_bits(plain_route: PlainRoute) -> None:
    rule = RouteRule(3, norm_topk_prob=True, probability_sum=True)
    gradients = random_gradients(140, 7, rule)
    case = Case(plain_route, rule, torch.randn(140, 9), torch.randn(7, 9), gradients)
    for left, right in zip(case.run(), case.run(), strict=True):
        assert left is not None
        assert right is not None
        assert torch.equal(left, right)


@pytest.mark.parametrize("expert", [0, 6])
def test_all_tokens_on_one_expert(plain_route: PlainRoute, expert: int) -> None:
    logits_TE = torch.randn(20, 7)
    logits_TE[:, expert] += 5
    rule = RouteRule(1, probability_sum=True)
    Case(plain_route, rule, logits_TE, None, random_gradients(20, 7, rule)).assert_exact()


@NUMPY_WARNS
@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("norm", [False, True], ids=["", "renormalised"])
def test_minus_infinity_shuts_an_expert_out(plain_route: PlainRoute, sigmoid: bool, norm: bool) -> None:
    logits_TE = torch.randn(20, 6)
    logits_TE[:, 2] = -math.inf
    logits_TE[5, 1:] = -math.inf  # fewer are left than are chosen
    rule = RouteRule(3, sigmoid, norm, probability_sum=True)
    Case(plain_route, rule, logits_TE, None, random_gradients(20, 6, rule)).assert_exact()


@NUMPY_WARNS
@pytest.mark.parametrize("uniform", [False, True], ids=["", "uniform"])
@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_huge_logits_have_finite_gradients(plain_route: PlainRoute, scale: float, sigmoid: bool, uniform: bool) -> None:
    logits_TE = scale * torch.randn(20, 6)
    rule = RouteRule(3, sigmoid, norm_topk_prob=True, probability_sum=True, uniform=uniform)
    case = Case(plain_route, rule, logits_TE, None, random_gradients(20, 6, rule))
    case.routed = case.routed._replace(weights_TK=case.routed.weights_TK.nan_to_num())  # 0 / 0 in the plain formula
    grad_logits_TE, _ = case.run()
    assert grad_logits_TE.isfinite().all()


@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
def test_scores_that_underflow_together_do_not_overflow_a_scaled_loss(plain_route: PlainRoute, sigmoid: bool) -> None:
    logits_TE = torch.full((2, 6), -200.0)
    logits_TE[:, -1] = 0.0 if not sigmoid else -200.0
    rule = RouteRule(3, sigmoid, norm_topk_prob=True, probability_sum=True, uniform=True)
    gradients = Gradients(1e6 * torch.randn(2, 3), 1e6 * torch.randn(2), 1e6 * torch.randn(6))
    grad_logits_TE, _ = Case(plain_route, rule, logits_TE, None, gradients).run()
    assert grad_logits_TE.isfinite().all()


@pytest.mark.parametrize("logit", [-89.13, -88.44, -87.0])  # six or three scores of about the smallest normal number
def test_sigmoid_scores_as_small_as_what_is_added_to_their_sum(logit: float) -> None:
    logits_TE, tiny = (
        torch.full((2, 6), logit, dtype=torch.float64, requires_grad=True),
        torch.finfo(torch.float32).tiny,
    )
    scores_TE = torch.sigmoid(logits_TE)
    weights_TK = scores_TE[:, :3] / (scores_TE[:, :3].sum(dim=-1, keepdim=True) + tiny)
    probability_TE = scores_TE / (scores_TE.sum(dim=-1, keepdim=True) + tiny)
    gradients = random_gradients(2, 6, rule := RouteRule(3, True, True, probability_sum=True), logsumexp=False)
    loss = (weights_TK * gradients.weights_TK).sum() + (probability_TE.sum(dim=0) * gradients.probability_E).sum()
    (exact_TE,) = torch.autograd.grad(loss, logits_TE)
    saved = (torch.arange(3).repeat(2, 1).int(), weights_TK.detach().float(), logits_TE.detach().logsumexp(-1).float())
    grad_logits_TE, _ = route_backward(logits_TE.detach().float(), None, None, *saved, *gradients, 6, rule)
    torch.testing.assert_close(grad_logits_TE.double(), exact_TE, atol=1e-5, rtol=1e-5)


@NUMPY_WARNS
@pytest.mark.parametrize("norm", [False, True], ids=["", "renormalised"])
@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
def test_a_nan_row_leaves_the_others_alone(plain_route: PlainRoute, sigmoid: bool, norm: bool) -> None:
    rule = RouteRule(3, sigmoid, norm, probability_sum=True)
    logits_TE, gradients = torch.randn(20, 6), random_gradients(20, 6, rule)
    clean_TE, _ = Case(plain_route, rule, logits_TE, None, gradients).run()
    logits_TE[4] = math.nan
    grad_logits_TE, _ = Case(plain_route, rule, logits_TE, None, gradients).run()
    others = torch.arange(20) != 4
    assert torch.equal(grad_logits_TE[others], clean_TE[others])
    assert grad_logits_TE[4].isnan().all()


def test_no_token(plain_route: PlainRoute) -> None:
    grad_logits_TE, grad_x_TD = Case(
        plain_route, RouteRule(2), torch.randn(0, 4), torch.randn(5, 4), Gradients(torch.randn(0, 2), None, None)
    ).run()
    assert grad_x_TD is not None
    assert (grad_logits_TE.shape, grad_x_TD.shape) == ((0, 5), (0, 4))
