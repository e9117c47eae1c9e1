"""The kernels that gather and combine rows, in Triton's interpreter, against loops in plain Python."""

# Shapes: T tokens, K experts per token, N = T*K routed rows, D hidden.

import math

import pytest
import torch
from torch import Tensor

from pathmoe_kernels import Dispatch, sort_by_expert
from pathmoe_kernels.rows_triton import combine_rows, gather_rows

pytestmark = pytest.mark.usefixtures("poisoned_memory")

E = 5
# Of a program at each width: a whole number of them, one row more, and rows and columns that leave a rest.
SHAPES = [(1, 1, 1), (7, 2, 3), (8, 1, 512), (9, 2, 513), (5, 4, 1030), (257, 3, 16), (12, 5, 33), (0, 2, 8)]


def dispatch_of(num_tokens: int, num_choices: int, share_of_none: float) -> Dispatch:
    ids_TK = torch.randint(0, E, (num_tokens, num_choices))
    return sort_by_expert(ids_TK.masked_fill(torch.rand(ids_TK.shape) < share_of_none, E), E)


def gathered(source_TD: Tensor, dispatch: Dispatch, num_choices: int) -> Tensor:
    rows_ND = torch.zeros(len(dispatch.order_N), source_TD.shape[1], dtype=source_TD.dtype)
    for position in range(int(dispatch.ends_E[-1])):
        rows_ND[position] = source_TD[int(dispatch.order_N[position]) // num_choices]
    return rows_ND


def combined(source_ND: Tensor, dispatch: Dispatch, weights_TK: Tensor | None, num_choices: int) -> Tensor:
    sums_TD = torch.zeros(len(source_ND) // num_choices, source_ND.shape[1], dtype=torch.float64)
    for position in range(int(dispatch.ends_E[-1])):
        token, k = divmod(int(dispatch.order_N[position]), num_choices)
        weight = 1.0 if weights_TK is None else weights_TK[token, k].double()
        sums_TD[token] += weight * source_ND[position].double()
    return sums_TD


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("share_of_none", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("num_tokens", "num_choices", "width"), SHAPES)
def test_gathers_the_bits_of_each_token_and_zeros_for_no_expert(
    num_tokens: int, num_choices: int, width: int, share_of_none: float, dtype: torch.dtype
) -> None:
    source_TD = torch.randn(num_tokens, width).to(dtype)
    dispatch = dispatch_of(num_tokens, num_choices, share_of_none)
    rows_ND = gather_rows(source_TD, dispatch, num_choices)
    assert rows_ND.dtype == dtype
    assert torch.equal(rows_ND, gathered(source_TD, dispatch, num_choices))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weights_dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share_of_none", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("num_tokens", "num_choices", "width"), SHAPES)
def test_combines_in_fp32_whatever_the_rows_of_no_expert_hold(
    num_tokens: int,
    num_choices: int,
    width: int,
    share_of_none: float,
    weights_dtype: torch.dtype | None,
    dtype: torch.dtype,
) -> None:
    dispatch = dispatch_of(num_tokens, num_choices, share_of_none)
    source_ND = torch.randn(num_tokens * num_choices, width).to(dtype)
    source_ND[int(dispatch.ends_E[-1]) :] = math.nan
    weights_TK = None if weights_dtype is None else torch.randn(num_tokens, num_choices).to(weights_dtype)
    sums_TD = combine_rows(source_ND, dispatch, weights_TK, num_choices)
    assert sums_TD.dtype == dtype
    # The interpreter rounds to bf16 up to a whole unit off.
    tolerance = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    exact_TD = combined(source_ND, dispatch, weights_TK, num_choices)
    torch.testing.assert_close(sums_TD.double(), exact_TD, atol=1e-5, rtol=tolerance)


def test_rows_wider_than_all_that_a_program_takes() -> None:
    dispatch, source_TD = dispatch_of(2, 2, 0.0), torch.randn(2, 5000)
    rows_ND = gather_rows(source_TD, dispatch, 2)
    assert torch.equal(rows_ND, gathered(source_TD, dispatch, 2))
    torch.testing.assert_close(combine_rows(rows_ND, dispatch, None, 2), 2 * source_TD)


def test_the_same_inputs_give_the_same_bits() -> None:
    dispatch, source_ND, weights_TK = dispatch_of(40, 4, 0.1), torch.randn(160, 70), torch.randn(40, 4)
    first, again = (combine_rows(source_ND, dispatch, weights_TK, 4) for _ in range(2))
    assert torch.equal(first, again)


def test_sums_in_the_order_of_the_choices() -> None:
    # In fp32 only the order of k gives one: 1e8 and -1e8 cancel before 1 comes.
    dispatch = sort_by_expert(torch.tensor([[4, 2, 0]]), E)
    source_ND = torch.tensor([[1.0], [-1e8], [1e8]])  # of experts 0, 2, 4
    assert combine_rows(source_ND, dispatch, None, 3).tolist() == [[1.0]]
    backwards = sort_by_expert(torch.tensor([[0, 2, 4]]), E)
    assert combine_rows(source_ND, backwards, None, 3).tolist() == [[0.0]]
