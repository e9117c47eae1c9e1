"""The forward kernel of `route`, in Triton's interpreter, against the plain formula in fp64."""

# Shapes: T tokens, E experts, K experts per token, D hidden, C chunks, N = T*K routed rows.

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pathmoe_kernels import Dispatch, Routed, RouteRule, route_forward_triton, route_logits
from pathmoe_kernels.launch import ticket
from pathmoe_kernels.metadata_triton import place_rows
from pathmoe_kernels.route_forward_triton import block_hidden, route_forward, tokens_per_chunk

pytestmark = pytest.mark.usefixtures("poisoned_memory")

CPU = torch.device("cpu")
FP32 = {"atol": 2e-5, "rtol": 2e-5}
# The interpreter computes with numpy, which warns where a GPU gives infinity or NaN.
NUMPY_WARNS = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow) encountered:RuntimeWarning")


@pytest.fixture(autouse=True)
def _the_ticket_is_left_at_zero() -> Iterator[None]:
    yield
    assert ticket(CPU).tolist() == [0]


def run_kernel(
    x_TD: Tensor, gate_ED: Tensor | None, rule: RouteRule, bias_E: Tensor | None = None, mask_T: Tensor | None = None
) -> Routed:
    """The kernel, then the placement that `route` adds."""
    num_experts = x_TD.shape[1] if gate_ED is None else gate_ED.shape[0]
    routed, chunk_starts_CE = route_forward(x_TD, gate_ED, bias_E, mask_T, num_experts, rule)
    assert [tensor.numel() for tensor in routed.dispatch] == [0, 0, num_experts]
    # Through the module: a test may shrink the tile.
    rows_per_chunk = route_forward_triton.tokens_per_chunk(num_experts, gate_ED is not None) * rule.num_experts_per_tok
    ends_E = routed.dispatch.ends_E
    order_N, position_N = place_rows(routed.expert_ids_TK.view(-1), chunk_starts_CE, ends_E, rows_per_chunk)
    return routed._replace(dispatch=Dispatch(order_N, position_N, ends_E))


def assert_equal(ours: Routed, plain: Routed) -> None:
    *outputs, dispatch = ours
    *plain_outputs, plain_dispatch = plain
    for name, got, want in zip(Routed._fields, outputs, plain_outputs, strict=False):
        if want.is_floating_point():
            assert got.dtype == torch.float32
            torch.testing.assert_close(
                got.double(), want, **FP32, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}"
            )
        else:
            assert got.dtype == torch.int32
            assert got.tolist() == want.tolist(), name
    assert [tensor.tolist() for tensor in dispatch] == [tensor.tolist() for tensor in plain_dispatch]


def same_bits(left: Routed, right: Routed) -> bool:
    pairs = zip((*left[:-1], *left.dispatch), (*right[:-1], *right.dispatch), strict=True)
    # As integers, NaN equals itself.
    return all(torch.equal(one.view(torch.int32), two.view(torch.int32)) for one, two in pairs)


def small_tiles(monkeypatch: pytest.MonkeyPatch, chunks_at_a_time: int = 16) -> None:
    monkeypatch.setattr(route_forward_triton, "tokens_per_chunk", lambda num_experts, has_gate: 16)
    monkeypatch.setattr(route_forward_triton, "CHUNKS_AT_A_TIME", chunks_at_a_time)


def num_programs(monkeypatch: pytest.MonkeyPatch, programs: int) -> None:
    monkeypatch.setattr(route_forward_triton, "num_persistent_programs", lambda num_chunks, device: programs)


def test_all_outputs_equal_the_formula(plain_route: Callable[..., Routed], route_case: Any) -> None:
    num_experts, has_gate = route_case.E, "logits" not in route_case.options
    num_tokens = route_case.num_tokens(tokens_per_chunk(num_experts, has_gate))
    bias_E = torch.randn(num_experts) if "bias" in route_case.options else None
    mask_T = torch.rand(num_tokens) < 0.6 if "mask" in route_case.options else None
    x_TD = torch.randn(num_tokens, route_case.D if has_gate else num_experts).to(route_case.dtype)
    gate_ED = torch.randn(num_experts, route_case.D).to(route_case.dtype) if has_gate else None
    ours = run_kernel(x_TD, gate_ED, route_case.rule, bias_E, mask_T)
    exact_gate_ED = None if gate_ED is None else gate_ED.double()
    assert_equal(ours, plain_route(x_TD.double(), exact_gate_ED, route_case.rule, bias_E, mask_T))


@pytest.mark.parametrize("programs", [1, 2, 5, 40])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_neither_a_second_run_nor_the_number_of_programs_changes_a_bit(
    monkeypatch: pytest.MonkeyPatch, masked: bool, programs: int
) -> None:
    small_tiles(monkeypatch, chunks_at_a_time=4)
    x_TD, gate_ED = torch.randn(16 * 9 + 5, 12), torch.randn(7, 12)
    mask_T = torch.rand(len(x_TD)) < 0.6 if masked else None
    rule = RouteRule(3, norm_topk_prob=True, probability_sum=True)
    by_three = run_kernel(x_TD, gate_ED, rule, mask_T=mask_T)
    assert same_bits(run_kernel(x_TD, gate_ED, rule, mask_T=mask_T), by_three)
    num_programs(monkeypatch, programs)
    assert same_bits(run_kernel(x_TD, gate_ED, rule, mask_T=mask_T), by_three)


@pytest.mark.parametrize("num_chunks", [3, 4, 5, 9])  # fewer, as many and more than are scanned at a time
def test_many_chunks(monkeypatch: pytest.MonkeyPatch, plain_route: Callable[..., Routed], num_chunks: int) -> None:
    small_tiles(monkeypatch, chunks_at_a_time=4)
    logits_TE, mask_T = torch.randn(16 * num_chunks, 5), torch.rand(16 * num_chunks) < 0.5
    rule = RouteRule(2, probability_sum=True)
    ours = run_kernel(logits_TE, None, rule, mask_T=mask_T)
    assert_equal(ours, plain_route(logits_TE.double(), None, rule, None, mask_T))


@pytest.mark.parametrize("num_tokens", [0, 1, 16])
def test_no_token_is_left_and_no_token_is_counted(
    monkeypatch: pytest.MonkeyPatch, plain_route: Callable[..., Routed], num_tokens: int
) -> None:
    small_tiles(monkeypatch)
    logits_TE, mask_T = torch.randn(num_tokens, 5), torch.zeros(num_tokens, dtype=torch.bool)
    rule = RouteRule(2, probability_sum=True)
    ours = run_kernel(logits_TE, None, rule, mask_T=mask_T)
    assert_equal(ours, plain_route(logits_TE.double(), None, rule, None, mask_T))
    assert ours.load_E.tolist() == [0] * 5


@pytest.mark.parametrize("expert", [0, 3, 6])
def test_all_tokens_on_one_expert(plain_route: Callable[..., Routed], expert: int) -> None:
    logits_TE = torch.randn(130, 7)
    logits_TE[:, expert] += 50
    ours = run_kernel(logits_TE, None, RouteRule(1))
    assert_equal(ours, plain_route(logits_TE.double(), None, RouteRule(1)))
    assert ours.load_E.tolist() == [130 * (e == expert) for e in range(7)]


@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize(("num_experts", "num_choices"), [(3, 2), (16, 16), (60, 8)])
def test_of_equal_logits_the_lower_index_wins(
    plain_route: Callable[..., Routed], num_experts: int, num_choices: int, sigmoid: bool, biased: bool
) -> None:
    logits_TE = torch.randint(-1, 2, (40, num_experts)).float()
    bias_E = torch.zeros(num_experts) if biased else None
    ours = run_kernel(logits_TE, None, RouteRule(num_choices, sigmoid), bias_E)
    assert_equal(ours, plain_route(logits_TE.double(), None, RouteRule(num_choices, sigmoid), bias_E))


@pytest.mark.parametrize("num_choices", [1, 3, 5])
def test_a_bias_of_minus_infinity_shuts_experts_out_until_none_is_left(num_choices: int) -> None:
    bias_E = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, 0.0])
    ids_TK = run_kernel(torch.zeros(3, 5), None, RouteRule(num_choices), bias_E).expert_ids_TK
    assert ids_TK.tolist() == [[1, 3, 4, 0, 2][:num_choices]] * 3


@NUMPY_WARNS
@pytest.mark.parametrize("num_choices", [1, 3, 5])
def test_a_bias_that_is_nan_ranks_highest_as_without_a_gpu(num_choices: int) -> None:
    bias_E, rule = torch.tensor([0.0, 2.0, math.nan, -math.inf, math.nan]), RouteRule(num_choices)
    ids_TK = run_kernel(torch.zeros(3, 5), None, rule, bias_E).expert_ids_TK
    assert ids_TK.tolist() == [[2, 4, 1, 0, 3][:num_choices]] * 3
    assert torch.equal(ids_TK, route_logits(torch.zeros(3, 5), rule, selection_bias_E=bias_E).expert_ids_TK)


@NUMPY_WARNS
@pytest.mark.parametrize("scale", [1e4, 1e30])
@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
def test_huge_logits(plain_route: Callable[..., Routed], sigmoid: bool, scale: float) -> None:
    logits_TE = scale * torch.randn(20, 6)
    rule = RouteRule(3, sigmoid, probability_sum=True)
    ours, plain = run_kernel(logits_TE, None, rule), plain_route(logits_TE.double(), None, rule)
    assert ours.expert_ids_TK.tolist() == plain.expert_ids_TK.tolist()
    assert all(output.isfinite().all() for output in ours[:3])
    torch.testing.assert_close(ours.weights_TK.double(), plain.weights_TK, atol=1e-5, rtol=1e-5)


@NUMPY_WARNS
@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
def test_minus_infinity_shuts_an_expert_out(plain_route: Callable[..., Routed], sigmoid: bool, biased: bool) -> None:
    logits_TE = torch.randn(20, 6)
    logits_TE[:, 2] = -math.inf
    logits_TE[5, 1:] = -math.inf  # fewer are left than are chosen
    bias_E = torch.rand(6) / 1e6 if biased else None
    rule = RouteRule(3, sigmoid, norm_topk_prob=True, probability_sum=True)
    assert_equal(run_kernel(logits_TE, None, rule, bias_E), plain_route(logits_TE.double(), None, rule, bias_E))


@NUMPY_WARNS
@pytest.mark.parametrize("options", ["", "biased", "uniform"])
@pytest.mark.parametrize("norm", [False, True], ids=["", "renormalised"])
@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
def test_nan_rows_take_the_first_experts_and_leave_the_others_alone(sigmoid: bool, norm: bool, options: str) -> None:
    rule = RouteRule(3, sigmoid, norm, uniform="uniform" in options)
    bias_E = torch.randn(6) if "biased" in options else None
    logits_TE = torch.randn(20, 6)
    clean = run_kernel(logits_TE, None, rule, bias_E)
    logits_TE[4, 2], logits_TE[9], logits_TE[10] = math.nan, math.nan, -math.inf
    logits_TE[11, 0], logits_TE[11, 1] = math.inf, math.nan
    logits_TE[12, 5] = math.inf
    routed = run_kernel(logits_TE, None, rule, bias_E)
    bad = torch.tensor([t in (4, 9, 11) or (t in (10, 12) and not sigmoid) for t in range(20)])
    others = torch.tensor([t not in (4, 9, 10, 11, 12) for t in range(20)])
    assert routed.expert_ids_TK[bad].tolist() == [[0, 1, 2]] * int(bad.sum())
    assert torch.equal(routed.weights_TK.isnan().all(dim=-1), bad)
    for clean_rows, rows in zip(clean[:3], routed[:3], strict=True):
        assert torch.equal(clean_rows[others], rows[others])
    assert routed.load_E.sum() == 60


@NUMPY_WARNS
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_logsumexp_of_rows_that_are_not_finite_is_that_of_torch(value: float) -> None:
    logits_TE = torch.randn(3, 6)
    logits_TE[0], logits_TE[1, 4] = value, value
    logsumexp_T = run_kernel(logits_TE, None, RouteRule(2)).logsumexp_T
    torch.testing.assert_close(logsumexp_T, logits_TE.logsumexp(dim=-1), equal_nan=True)


@pytest.mark.parametrize("logit", [-200.0, -89.13, -88.44, -87.0])  # six or three scores of about the smallest normal
def test_sigmoid_scores_that_underflow_together_have_finite_weights(logit: float) -> None:
    logits_TE = torch.full((2, 6), logit)
    routed = run_kernel(logits_TE, None, RouteRule(3, sigmoid=True, norm_topk_prob=True, probability_sum=True))
    score, tiny = math.exp(logit), torch.finfo(torch.float32).tiny
    torch.testing.assert_close(routed.weights_TK, torch.full((2, 3), score / (3 * score + tiny)), atol=0, rtol=1e-5)
    probability_E = torch.full((6,), 2 * score / (6 * score + tiny))
    torch.testing.assert_close(routed.probability_sum_E, probability_E, atol=0, rtol=1e-5)


@pytest.mark.parametrize(
    ("num_experts", "with_gate", "with_logits"),
    [(1, 128, 64), (16, 128, 64), (60, 128, 64), (64, 128, 64), (65, 64, 32), (128, 64, 32), (256, 32, 16),
     (300, 16, 16), (1000, 16, 16)],
)  # fmt: skip
def test_tokens_of_a_tile_leave_its_logits_in_registers(num_experts: int, with_gate: int, with_logits: int) -> None:
    assert (tokens_per_chunk(num_experts, True), tokens_per_chunk(num_experts, False)) == (with_gate, with_logits)


@pytest.mark.parametrize(("num_experts", "num_bytes"), [(1, 128), (16, 128), (17, 64), (256, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_columns_that_are_multiplied_at_a_time(dtype: torch.dtype, num_experts: int, num_bytes: int) -> None:
    x_TD = torch.empty(1, 1, dtype=dtype)
    assert block_hidden(x_TD, num_experts) * x_TD.element_size() == num_bytes
