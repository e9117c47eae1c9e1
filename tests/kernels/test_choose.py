"""The choice of experts against a sort in plain Python, with every kind of value that a rank can be."""

# Shapes: T tokens, E experts, K experts per token.

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pathmoe_kernels.choose import choose_experts

SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0]


def sorted_choice(ranking_TE: Tensor, num_experts_per_tok: int) -> list[list[int]]:
    lowest = torch.finfo(ranking_TE.dtype).min

    def rank(value: float) -> float:
        return math.inf if math.isnan(value) else max(value, lowest)

    rows = ranking_TE.tolist()
    return [sorted(range(len(row)), key=lambda e: (-rank(row[e]), e))[:num_experts_per_tok] for row in rows]


@st.composite
def rankings(draw: st.DrawFn) -> tuple[Tensor, int]:
    num_tokens, num_experts = draw(st.integers(0, 5)), draw(st.integers(1, 20))
    # Few distinct values: ties in nearly every row.
    values = st.sampled_from([*SPECIAL, 0.5, 2.0, torch.finfo(torch.float32).max, torch.finfo(torch.float32).min])
    rows = [draw(st.lists(values, min_size=num_experts, max_size=num_experts)) for _ in range(num_tokens)]
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]))
    ranking_TE = torch.tensor(rows, dtype=torch.float32).view(num_tokens, num_experts).to(dtype)
    return ranking_TE, draw(st.integers(1, num_experts))


@given(rankings())
def test_equals_a_sort_where_the_lower_index_wins_ties(case: tuple[Tensor, int]) -> None:
    ranking_TE, num_experts_per_tok = case
    expert_ids_TK = choose_experts(ranking_TE, num_experts_per_tok)
    assert expert_ids_TK.dtype == torch.int64
    assert expert_ids_TK.tolist() == sorted_choice(ranking_TE, num_experts_per_tok)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_experts", "num_experts_per_tok"),
    [(1, 1), (7, 1), (7, 7), (8, 8), (60, 8), (60, 9), (61, 61), (257, 6)],  # both ways to choose, E of every kind
)
def test_random_scores(num_experts: int, num_experts_per_tok: int, dtype: torch.dtype) -> None:
    ranking_TE = torch.randn(33, num_experts).to(dtype)
    assert choose_experts(ranking_TE, num_experts_per_tok).tolist() == sorted_choice(ranking_TE, num_experts_per_tok)


def test_more_than_eight_choices_extend_the_first_eight() -> None:
    # Eight and nine choices are made in different ways.
    ranking_TE = torch.randint(-3, 3, (50, 12)).float()
    ranking_TE[torch.rand(50, 12) < 0.1] = math.nan
    ranking_TE[torch.rand(50, 12) < 0.1] = -math.inf
    assert torch.equal(choose_experts(ranking_TE, 9)[:, :8], choose_experts(ranking_TE, 8))


@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("num_experts_per_tok", [3, 10])
def test_a_row_of_one_value_gives_the_first_experts(value: float, num_experts_per_tok: int) -> None:
    chosen_TK = choose_experts(torch.full((2, 11), value), num_experts_per_tok)
    assert chosen_TK.tolist() == [list(range(num_experts_per_tok))] * 2


@pytest.mark.parametrize("num_experts_per_tok", [2, 9])
def test_has_no_gradient_and_leaves_its_input_alone(num_experts_per_tok: int) -> None:
    ranking_TE = torch.tensor([SPECIAL + [2.0] * 4], requires_grad=True)
    before = ranking_TE.detach().clone()
    assert not choose_experts(ranking_TE, num_experts_per_tok).requires_grad
    torch.testing.assert_close(ranking_TE.detach(), before, equal_nan=True)
