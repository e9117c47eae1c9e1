"""The kernel that zeroes the gradients of experts without rows, in Triton's interpreter."""

# Shapes: E experts, I and O the sides of an expert's matrix.

import pytest
import torch

from pathmoe_kernels.zero_groups_triton import BLOCK, PROGRAMS_PER_EXPERT, zero_empty_groups

pytestmark = pytest.mark.usefixtures("checked_accesses")

ENDS = {
    "none empty": [3, 4, 9, 12],
    "first and last empty": [0, 5, 12, 12],
    "neighbours empty": [1, 1, 1, 12],
    "all empty": [0, 0, 0, 0],
}
# One number, a block less one, a block, one more, and more blocks than programs.
SIZES = [(1, 1), (1, BLOCK - 1), (BLOCK // 8, 8), (1, BLOCK + 1), (PROGRAMS_PER_EXPERT + 1, BLOCK)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("size", SIZES)
def test_zeroes_the_matrices_of_experts_without_rows_and_no_others(
    size: tuple[int, int], ends: list[int], dtype: torch.dtype
) -> None:
    product_EIO = torch.randn(len(ends), *size).to(dtype) + 10
    expected_EIO = product_EIO.clone()
    for e, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if start == end:
            expected_EIO[e] = 0
    assert zero_empty_groups(product_EIO, torch.tensor(ends, dtype=torch.int32)) is product_EIO
    assert torch.equal(product_EIO, expected_EIO)


def test_no_numbers_are_left_alone() -> None:
    assert zero_empty_groups(torch.empty(3, 0, 4), torch.zeros(3, dtype=torch.int32)).shape == (3, 0, 4)
