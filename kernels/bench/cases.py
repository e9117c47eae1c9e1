"""The launches whose resources are watched: every kernel over the grid of experts, choices and dtypes."""

# Shapes: T tokens, E experts, K experts per token, D hidden, N = T*K routed rows, F expert width, G = 2F,
# C chunks of rows.

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from pathmoe_kernels.metadata_triton import count_rows, place_rows
from pathmoe_kernels.route_backward_triton import route_backward
from pathmoe_kernels.route_forward_triton import route_forward
from pathmoe_kernels.route_rule import Dispatch, RouteRule
from pathmoe_kernels.rows_triton import combine_rows, gather_rows
from pathmoe_kernels.swiglu_triton import swiglu, swiglu_backward
from pathmoe_kernels.zero_groups_triton import zero_empty_groups

NUM_TOKENS, HIDDEN_SIZE, WIDTH = 256, 512, 256
EXPERTS, CHOICES = (16, 64, 128, 256), (1, 2, 4, 6, 8)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SCORES = ("softmax", "sigmoid")
CAPABILITIES = (80, 90, 100)

ROUTE = ("num_experts", "num_choices", "dtype", "scores")
DEPENDS_ON = {
    "route forward": ROUTE,
    "route forward, logits": ROUTE,
    "route backward": ROUTE,
    "route backward, logits": ROUTE,
    "count rows": ("num_experts",),
    "place rows": ("num_experts",),
    "gather rows": ("num_choices", "dtype"),
    "combine rows": ("num_choices", "dtype"),
    "swiglu": ("dtype",),
    "swiglu backward": ("dtype",),
    "zero empty groups": ("dtype",),
}
"""What each kernel is compiled anew for."""


@dataclass(frozen=True)
class Case:
    """One launch; None for what it does not depend on."""

    name: str
    num_experts: int | None
    num_choices: int | None
    dtype: str | None
    scores: str | None

    def launch(self) -> object:
        """Launch it; `route` with a bias, a mask, renormalised weights, a probability sum, and all gradients."""
        experts, choices = self.num_experts or EXPERTS[0], self.num_choices or CHOICES[0]
        return _launches(experts, choices, DTYPES[self.dtype or "fp32"], self.scores == "sigmoid")[self.name]()

    def is_corner(self) -> bool:
        """Whether it lies at an end of the grid in experts and in choices."""
        ends = (EXPERTS[0], EXPERTS[-1], None), (CHOICES[0], CHOICES[-1], None)
        return self.num_experts in ends[0] and self.num_choices in ends[1]


def cases() -> list[Case]:
    """Every launch of the grid once."""
    grid = itertools.product(DEPENDS_ON, EXPERTS, CHOICES, DTYPES, SCORES)
    return list(dict.fromkeys(_case(*point) for point in grid))


def _case(name: str, num_experts: int, num_choices: int, dtype: str, scores: str) -> Case:
    values = {"num_experts": num_experts, "num_choices": num_choices, "dtype": dtype, "scores": scores}
    return Case(name, **{key: value if key in DEPENDS_ON[name] else None for key, value in values.items()})


def _launches(num_experts: int, num_choices: int, dtype: torch.dtype, sigmoid: bool) -> dict[str, Callable[[], object]]:
    x_TD, gate_ED = (
        torch.empty(NUM_TOKENS, HIDDEN_SIZE, dtype=dtype),
        torch.empty(num_experts, HIDDEN_SIZE, dtype=dtype),
    )
    logits_TE, vector_E = torch.empty(NUM_TOKENS, num_experts, dtype=dtype), torch.empty(num_experts)
    mask_T, vector_T = torch.ones(NUM_TOKENS, dtype=torch.bool), torch.empty(NUM_TOKENS)
    weights_TK, ids_TK = torch.empty(NUM_TOKENS, num_choices), torch.empty(NUM_TOKENS, num_choices, dtype=torch.int32)
    num_rows = ids_TK.numel()
    rows_ND, h_NG = torch.empty(num_rows, HIDDEN_SIZE, dtype=dtype), torch.empty(num_rows, 2 * WIDTH, dtype=dtype)
    activation_NF, ends_E = torch.empty(num_rows, WIDTH, dtype=dtype), torch.empty(num_experts, dtype=torch.int32)
    order_N = torch.empty(num_rows, dtype=torch.int32)
    dispatch = Dispatch(order_N, order_N, ends_E)
    starts_CE = torch.empty(num_rows // 32, num_experts, dtype=torch.int32)
    rule = RouteRule(num_choices, sigmoid, norm_topk_prob=True, probability_sum=True)
    grads = (mask_T, ids_TK, weights_TK, vector_T, weights_TK, vector_T, vector_E)
    return {
        "route forward": partial(route_forward, x_TD, gate_ED, vector_E, mask_T, num_experts, rule),
        "route forward, logits": partial(route_forward, logits_TE, None, vector_E, mask_T, num_experts, rule),
        "route backward": partial(route_backward, x_TD, gate_ED, *grads, num_experts, rule),
        "route backward, logits": partial(route_backward, logits_TE, None, *grads, num_experts, rule),
        "count rows": partial(count_rows, ids_TK.view(-1), num_experts, 512),
        "place rows": partial(place_rows, ids_TK.view(-1), starts_CE, ends_E, 32),
        "gather rows": partial(gather_rows, x_TD, dispatch, num_choices),
        "combine rows": partial(combine_rows, rows_ND, dispatch, weights_TK, num_choices),
        "swiglu": partial(swiglu, h_NG, ends_E),
        "swiglu backward": partial(swiglu_backward, h_NG, activation_NF, order_N, weights_TK, ends_E),
        "zero empty groups": partial(zero_empty_groups, gate_ED[:, :, None], ends_E),
    }
