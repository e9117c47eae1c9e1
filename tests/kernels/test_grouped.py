"""Grouped GEMMs against a loop over experts, and what they need: aligned rows, and zeros for experts without rows."""

# Shapes: N routed rows, E experts, I and O the inner and outer widths of a GEMM.

import math

import pytest
import torch

from pathmoe_kernels.grouped import align, padding, rows_by_rows, rows_by_weights

ENDS = {
    "all experts": [3, 4, 9, 12],
    "empty experts": [0, 5, 5, 12],
    "one expert": [0, 0, 12, 12],
    "rows of no expert": [2, 3, 3, 7],
    "only rows of no expert": [0, 0, 0, 0],
}


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
def test_rows_by_weights_is_a_product_for_each_expert(ends: list[int]) -> None:
    rows_NI, weights_EIO = torch.randn(12, 8), torch.randn(4, 8, 16)
    product_NO = rows_by_weights(rows_NI, weights_EIO, torch.tensor(ends, dtype=torch.int32))
    for e, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        torch.testing.assert_close(product_NO[start:end], rows_NI[start:end] @ weights_EIO[e])


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
def test_rows_by_rows_is_a_product_for_each_expert_and_zero_without_rows(ends: list[int]) -> None:
    left_NI, right_NO = torch.randn(12, 8), torch.randn(12, 16)
    left_NI[ends[-1] :], right_NO[ends[-1] :] = math.nan, math.nan
    product_EIO = rows_by_rows(left_NI, right_NO, torch.tensor(ends, dtype=torch.int32))
    for e, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        torch.testing.assert_close(product_EIO[e], left_NI[start:end].T @ right_NO[start:end])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_padding_is_the_least_that_aligns_a_row(dtype: torch.dtype) -> None:
    for width in range(1, 40):
        extra = padding(width, dtype)
        assert (width + extra) * dtype.itemsize % 16 == 0
        assert 0 <= extra * dtype.itemsize < 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 8, 9), (3, 9, 8), (0, 3, 1)])
def test_aligning_adds_zeros_at_the_ends_of_the_last_dimensions(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.randn(shape).to(dtype)
    for num_dims in (1, 2):
        aligned = align(tensor, num_dims)
        extra = [padding(width, dtype) if dim >= 3 - num_dims else 0 for dim, width in enumerate(shape)]
        assert list(aligned.shape) == [width + more for width, more in zip(shape, extra, strict=True)]
        assert torch.equal(aligned[:, : shape[1], : shape[2]], tensor)
        assert aligned.count_nonzero() == tensor.count_nonzero()


def test_what_is_aligned_is_not_copied() -> None:
    tensor = torch.randn(3, 8, 16)
    assert align(tensor, 1) is tensor
    assert align(tensor, 2) is tensor
    assert align(tensor.mT, 2).is_contiguous()
