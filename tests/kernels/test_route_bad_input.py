"""Masks, biases and numbers of choices that do not fit are refused in one line."""

# Shapes: T tokens, E experts.

from typing import Any

import pytest
import torch

from pathmoe_kernels import RouteRule, route, route_logits

T, E = 6, 4
LINES: list[tuple[dict[str, Any], str]] = [
    ({"token_mask_T": torch.ones(T).long()}, r"token_mask_T \(torch.int64 \[6\]\) must be torch.bool \[6\]; .*"),
    ({"token_mask_T": torch.ones(2, 3).bool()}, r"token_mask_T \(torch.bool \[2, 3\]\) must be torch.bool \[6\]; .*"),
    ({"selection_bias_E": torch.zeros(1)}, r"selection_bias_E \(\[1\]\) must be \[4\], one for each expert"),
    ({"rule": RouteRule(0)}, r"num_experts_per_tok \(0\) must be at least 1; raise it"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "line"), LINES)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], line: str) -> None:
    options = {"rule": RouteRule(2)} | changed
    with pytest.raises(ValueError, match=f"^{line}$"):
        route(torch.randn(T, 8), torch.randn(E, 8), **options)
    with pytest.raises(ValueError, match=f"^{line}$"):
        route_logits(torch.randn(T, E), **options)
