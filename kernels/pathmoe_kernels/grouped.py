"""Grouped GEMMs over rows sorted by expert."""

# Shapes: N routed rows, E experts, I and O the inner and outer widths of a GEMM.

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGNMENT = 16
"""Bytes that rows of a grouped GEMM's operands must be multiples of."""


def padding(width: int, dtype: torch.dtype) -> int:
    """Columns that a row of `width` lacks to be aligned."""
    return -width % (ALIGNMENT // dtype.itemsize)


def align(tensor: Tensor, num_dims: int) -> Tensor:
    """The tensor, contiguous, with zeros that align its last `num_dims` dimensions; itself where it is that already."""
    extra = [n for width in tensor.shape[: -num_dims - 1 : -1] for n in (0, padding(width, tensor.dtype))]
    # `F.pad` by nothing copies.
    return F.pad(tensor, extra) if any(extra) else tensor.contiguous()


def rows_by_weights(rows_NI: Tensor, weights_EIO: Tensor, ends_E: Tensor) -> Tensor:
    """Each expert's rows times its matrix, [N, O]. Rows past the last expert's are left as the memory was."""
    return F.grouped_mm(rows_NI, weights_EIO, offs=ends_E)


def rows_by_rows(left_NI: Tensor, right_NO: Tensor, ends_E: Tensor) -> Tensor:
    """Each expert's left rows, transposed, times its right rows, [E, I, O]; zeros for an expert without rows."""
    # Not at the top: without Triton, and so without a GPU, only the alignment is asked for.
    from pathmoe_kernels.zero_groups_triton import zero_empty_groups

    # Some versions leave the product of an empty group as the memory was (pytorch issue 172439).
    return zero_empty_groups(F.grouped_mm(left_NI.T, right_NO, offs=ends_E), ends_E)
