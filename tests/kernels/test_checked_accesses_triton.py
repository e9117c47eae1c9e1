"""That the tests see a kernel reach past its tensors, or touch what another program has stored."""

# Shapes: N numbers.

import pytest
import torch
import triton
import triton.language as tl

BLOCK = 16


@triton.jit
def copy_kernel(source_ptr, target_ptr, num_read, num_written, BLOCK_N: tl.constexpr):
    n = tl.arange(0, BLOCK_N)
    tl.store(target_ptr + n, tl.load(source_ptr + n, n < num_read, 0), n < num_written)


@triton.jit
def share_kernel(numbers_ptr, ticket_ptr, FIRST_STORES: tl.constexpr, SECOND_STORES: tl.constexpr, WAITS: tl.constexpr):
    program = tl.program_id(0)
    if WAITS:
        tl.atomic_add(ticket_ptr, 1)
    if (program == 0 and FIRST_STORES) or (program == 1 and SECOND_STORES):
        tl.store(numbers_ptr, 5)
    else:
        tl.store(numbers_ptr + 1 + program, tl.load(numbers_ptr))


@pytest.mark.parametrize(
    ("num_read", "num_written", "access"), [(9, 8, "load"), (8, 9, "store"), (8, 8, None), (7, 0, None)]
)
def test_one_number_past_the_end_is_seen_and_not_touched(
    checked_accesses: list[str], num_read: int, num_written: int, access: str | None
) -> None:
    buffer_N = torch.arange(3 * BLOCK)
    source_N, target_N = buffer_N[:8], buffer_N[BLOCK : BLOCK + 8]
    copy_kernel[(1,)](source_N, target_N, num_read, num_written, BLOCK_N=BLOCK)
    assert checked_accesses == ([f"copy_kernel: a {access} outside of its tensors"] if access else [])
    checked_accesses.clear()
    num_stored = min(num_written, 8)
    assert target_N[:num_stored].tolist() == [n if n < num_read else 0 for n in range(num_stored)]
    assert buffer_N[BLOCK + num_stored :].tolist() == list(range(BLOCK + num_stored, 3 * BLOCK))


@pytest.mark.parametrize("waits", [False, True], ids=["", "after a ticket"])
@pytest.mark.parametrize("second", ["load", "store"])
@pytest.mark.parametrize("first", ["load", "store"])
def test_a_race_is_seen(checked_accesses: list[str], first: str, second: str, waits: bool) -> None:
    numbers_N, ticket_N = torch.zeros(3, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    share_kernel[(2,)](
        numbers_N, ticket_N, FIRST_STORES=first == "store", SECOND_STORES=second == "store", WAITS=waits
    )  # fmt: skip
    races = not waits and "store" in (first, second)
    assert checked_accesses == [f"share_kernel: a {second} of what another program touches as well"] * races
    checked_accesses.clear()
