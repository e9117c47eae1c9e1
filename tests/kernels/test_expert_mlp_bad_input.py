"""What does not fit together is refused in one line."""

# Shapes: T tokens, E experts, K experts per token, N = T*K routed rows, D hidden, F expert width, G = 2F.

from typing import Any

import pytest
import torch

from pathmoe_kernels import expert_mlp, sort_by_expert

T, K, E, D, F = 6, 2, 4, 8, 3


def arguments(**changed: Any) -> dict[str, Any]:
    plain = {
        "x_TD": torch.randn(T, D),
        "weights_TK": torch.rand(T, K),
        "gate_up_EGD": torch.randn(E, 2 * F, D),
        "down_EDF": torch.randn(E, D, F),
        "dispatch": sort_by_expert(torch.randint(0, E, (T, K)), E),
    }
    return plain | changed


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"x_TD": torch.randn(T, D + 1)}, r"x_TD \(\[6, 9\]\) must be \[6, 8\], as the other shapes have it"),
        ({"x_TD": torch.randn(T + 3, D)}, r"weights_TK \(\[6, 2\]\) must be \[9, 2\], as the other shapes have it"),
        ({"weights_TK": torch.rand(T, K + 1)}, r"dispatch\.order_N \(\[12\]\) must be \[18\], as .*"),
        ({"gate_up_EGD": torch.randn(E, F, D)}, r"gate_up_EGD \(\[4, 3, 8\]\) must be \[4, 6, 8\], as .*"),
        ({"dispatch": sort_by_expert(torch.zeros(T, K).int(), 5)}, r"dispatch\.ends_E \(\[5\]\) must be \[4\], .*"),
        (
            {"x_TD": torch.randn(T, D).bfloat16()},
            r"x_TD, gate_up_EGD and down_EDF \(torch.bfloat16, torch.float32, torch.float32\) must be of one dtype; .*",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changed: dict[str, Any], line: str) -> None:
    expert_mlp(**arguments())
    with pytest.raises(ValueError, match=f"^{line}$"):
        expert_mlp(**arguments(**changed))
