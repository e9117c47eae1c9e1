"""The kernels that sort rows by expert, in Triton's interpreter: a stable sort in plain Python, and its invariants."""

# Shapes: N routed rows, E experts, C chunks of consecutive rows.

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pathmoe_kernels import Dispatch, metadata_triton
from pathmoe_kernels.launch import ticket
from pathmoe_kernels.metadata_triton import count_rows, expert_block, place_rows

# The programs of a count; those that share chunks unevenly, and more than there are chunks.
PROGRAMS = [1, 2, 5, 40]


@pytest.fixture(autouse=True)
def _poison(poisoned_memory: None) -> Iterator[None]:
    yield
    assert ticket(torch.device("cpu")).tolist() == [0]


def sort(ids_N: Tensor, num_experts: int, rows_per_chunk: int) -> Dispatch:
    chunk_starts_CE, ends_E = count_rows(ids_N, num_experts, rows_per_chunk)
    return Dispatch(*place_rows(ids_N, chunk_starts_CE, ends_E, rows_per_chunk), ends_E)


def assert_sorted(dispatch: Dispatch, ids: list[int], num_experts: int) -> None:
    assert {tensor.dtype for tensor in dispatch} == {torch.int32}
    owners = [expert if 0 <= expert < num_experts else num_experts for expert in ids]
    order, position, ends = (tensor.tolist() for tensor in dispatch)
    # Python's sort is stable.
    assert order == sorted(range(len(ids)), key=lambda row: owners[row])
    assert [order[place] for place in position] == list(range(len(ids)))
    assert ends == [sum(owner <= e for owner in owners) for e in range(num_experts)]


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Ids with duplicates and ids of no expert, the number of experts, and rows per chunk."""
    num_experts = draw(st.integers(1, 20))
    beyond = st.sampled_from([-1, num_experts, num_experts + 1, expert_block(num_experts), 2**31 - 1, -(2**31)])
    ids = st.one_of(st.integers(0, num_experts - 1), st.integers(0, num_experts - 1), beyond)
    return draw(st.lists(ids, max_size=90)), num_experts, draw(st.sampled_from([1, 5, 31, 32, 33, 64, 70]))


@given(rows(), st.sampled_from([torch.int32, torch.int64]))
def test_is_a_stable_sort_with_its_inverse_and_ends(case: tuple[list[int], int, int], dtype: torch.dtype) -> None:
    ids, num_experts, rows_per_chunk = case
    assert_sorted(sort(torch.tensor(ids, dtype=dtype), num_experts, rows_per_chunk), ids, num_experts)


@pytest.mark.parametrize("num_experts", [1, 3, 16, 17, 60, 64, 128, 256])
@pytest.mark.parametrize("num_rows", [0, 1, 512, 513, 1100])
def test_the_chunks_of_a_bare_sort(num_experts: int, num_rows: int) -> None:
    ids_N = torch.randint(-1, num_experts + 1, (num_rows,))
    assert_sorted(sort(ids_N, num_experts, 512), ids_N.tolist(), num_experts)


@pytest.mark.parametrize("num_chunks", [15, 16, 17, 33])  # scanned sixteen at a time
def test_more_chunks_than_are_scanned_at_a_time(num_chunks: int) -> None:
    ids_N = torch.randint(0, 6, (4 * num_chunks - 1,), dtype=torch.int32)
    assert_sorted(sort(ids_N, 6, 4), ids_N.tolist(), 6)


@pytest.mark.parametrize("expert", [0, 4, 6, 7, -1])
def test_all_rows_on_one_expert_or_none(expert: int) -> None:
    ids_N = torch.full((100,), expert, dtype=torch.int32)
    assert_sorted(sort(ids_N, 7, 33), ids_N.tolist(), 7)


@pytest.mark.parametrize("programs", PROGRAMS)
def test_neither_a_second_run_nor_the_number_of_programs_changes_the_order(
    monkeypatch: pytest.MonkeyPatch, programs: int
) -> None:
    ids_N = torch.randint(0, 8, (150,))
    first, again = sort(ids_N, 7, 16), sort(ids_N, 7, 16)
    monkeypatch.setattr(metadata_triton, "num_persistent_programs", lambda num_chunks, device: programs)
    shared = sort(ids_N, 7, 16)
    assert all(torch.equal(*pair) for pair in [*zip(first, again, strict=True), *zip(first, shared, strict=True)])


def test_what_lies_around_the_ends_and_starts_is_not_read() -> None:
    ids_N = torch.randint(-1, 8, (150,))
    chunk_starts_CE, ends_E = count_rows(ids_N, 7, 16)
    amid_garbage = []
    for tensor in (chunk_starts_CE, ends_E):
        buffer = torch.full((tensor.numel() + 64,), 99_999, dtype=torch.int32)
        buffer[32:-32] = tensor.flatten()
        amid_garbage.append(buffer[32:-32].view(tensor.shape))
    order_N, position_N = place_rows(ids_N, *amid_garbage, 16)
    assert_sorted(Dispatch(order_N, position_N, ends_E), ids_N.tolist(), 7)


@given(rows())
def test_chunk_starts_count_the_rows_before_each_chunk(case: tuple[list[int], int, int]) -> None:
    ids, num_experts, rows_per_chunk = case
    chunk_starts_CE, _ = count_rows(torch.tensor(ids, dtype=torch.int64), num_experts, rows_per_chunk)
    for c, starts in enumerate(chunk_starts_CE.tolist()):
        before = ids[: c * rows_per_chunk]
        smaller = [sum(0 <= expert < e for expert in ids) for e in range(num_experts)]
        assert starts == [smaller[e] + before.count(e) for e in range(num_experts)]


@pytest.mark.parametrize(("num_experts", "block"), [(1, 16), (16, 16), (17, 32), (60, 64), (256, 256)])
def test_tiles_are_powers_of_two_that_a_tensor_core_takes(num_experts: int, block: int) -> None:
    assert expert_block(num_experts) == block
