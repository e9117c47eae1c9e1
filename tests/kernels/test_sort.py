"""The sort by expert against a stable sort and counts in plain Python."""

# Shapes: T tokens, E experts, K experts per token, N = T*K routed rows.

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pathmoe_kernels import sort_by_expert


@st.composite
def choices(draw: st.DrawFn) -> tuple[Tensor, int]:
    num_experts = draw(st.integers(1, 12))
    num_tokens, num_experts_per_tok = draw(st.integers(0, 12)), draw(st.integers(1, num_experts))
    rows = [draw(st.permutations(range(num_experts)))[:num_experts_per_tok] for _ in range(num_tokens)]
    dtype = draw(st.sampled_from([torch.int64, torch.int32]))
    return torch.tensor(rows, dtype=dtype).view(num_tokens, num_experts_per_tok), num_experts


@given(choices())
def test_is_a_stable_sort_with_the_ends_of_each_expert(case: tuple[Tensor, int]) -> None:
    expert_ids_TK, num_experts = case
    order_N, position_N, ends_E = sort_by_expert(expert_ids_TK, num_experts)
    flat = expert_ids_TK.flatten().tolist()
    assert order_N.tolist() == sorted(range(len(flat)), key=lambda row: flat[row])
    assert [order_N[position] for position in position_N] == list(range(len(flat)))
    assert ends_E.tolist() == [sum(expert <= e for expert in flat) for e in range(num_experts)]
    assert {tensor.dtype for tensor in (order_N, position_N, ends_E)} == {torch.int32}


@given(choices())
def test_every_row_lies_once_in_the_slice_of_its_expert(case: tuple[Tensor, int]) -> None:
    expert_ids_TK, num_experts = case
    order_N, _, ends_E = sort_by_expert(expert_ids_TK, num_experts)
    ends = ends_E.tolist()
    assert sorted(order_N.tolist()) == list(range(expert_ids_TK.numel()))
    for e, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        tokens = (order_N[start:end] // expert_ids_TK.shape[1]).tolist()
        assert all(e in expert_ids_TK[token] for token in tokens)
        assert tokens == sorted(set(tokens))  # in order, each once


@pytest.mark.parametrize(("dtype", "num_experts"), [(torch.uint8, 256), (torch.int8, 200), (torch.int16, 40_000)])
def test_ids_may_be_of_a_type_that_just_holds_them(dtype: torch.dtype, num_experts: int) -> None:
    ids_TK = torch.tensor([[100, 3], [0, 100]])
    for got, want in zip(
        sort_by_expert(ids_TK.to(dtype), num_experts), sort_by_expert(ids_TK, num_experts), strict=True
    ):
        assert torch.equal(got, want)


def test_all_tokens_on_the_last_expert_leave_the_others_empty() -> None:
    order_N, position_N, ends_E = sort_by_expert(torch.full((5, 1), 3), 4)
    assert order_N.tolist() == position_N.tolist() == [0, 1, 2, 3, 4]
    assert ends_E.tolist() == [0, 0, 0, 5]


@pytest.mark.parametrize("none", [2, 3, 65536 + 1, 2**31 - 1, -1, -(2**31)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_ids_of_no_expert_sort_last_in_their_order(none: int, dtype: torch.dtype) -> None:
    # transformers marks with id E what another rank of expert parallelism computes.
    order_N, position_N, ends_E = sort_by_expert(torch.tensor([[none, 0], [1, none]], dtype=dtype), 2)
    assert order_N.tolist() == [1, 2, 0, 3]
    assert position_N.tolist() == [2, 0, 1, 3]
    assert ends_E.tolist() == [1, 2]


def test_more_experts_than_a_radix_sort_of_16_bits_takes() -> None:
    expert_ids_TK = torch.randint(0, 40_000, (500, 2))
    order_N, _, ends_E = sort_by_expert(expert_ids_TK, 40_000)
    assert torch.equal(order_N.long(), expert_ids_TK.flatten().argsort(stable=True))
    assert torch.equal(ends_E, expert_ids_TK.flatten().bincount(minlength=40_000).cumsum(0, dtype=torch.int32))


def test_order_is_the_same_whatever_the_layout() -> None:
    expert_ids_TK = torch.randint(0, 5, (1000, 3))
    strided_TK = expert_ids_TK.T.contiguous().T
    assert not strided_TK.is_contiguous()
    for left, right in zip(sort_by_expert(expert_ids_TK, 5), sort_by_expert(strided_TK, 5), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("num_tokens", [0, 1, 9])
def test_opcheck(num_tokens: int) -> None:
    expert_ids_TK = torch.randint(0, 5, (num_tokens, 3))
    torch.library.opcheck(torch.ops.pathmoe.sort_by_expert.default, (expert_ids_TK, 5))


def test_more_rows_than_offsets_reach_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expert_ids \(67108866 rows\) must be at most 2\^26; split the batch"):
        sort_by_expert(torch.empty(2**25 + 1, 2, dtype=torch.int32, device="meta"), 4)
