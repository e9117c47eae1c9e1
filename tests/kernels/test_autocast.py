"""Ops that autocast does not know follow it all the same."""

import pytest
import torch

from pathmoe_kernels.autocast import to_autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_tensor_takes_the_dtype_of_autocast(dtype: torch.dtype) -> None:
    tensor = torch.randn(3)
    with torch.autocast("cpu", dtype):
        assert torch.equal(to_autocast(tensor), tensor.to(dtype))
        assert to_autocast(tensor.to(dtype)).dtype == dtype


def test_double_precision_stays_as_torch_leaves_it() -> None:
    tensor = torch.randn(3, 3, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert (tensor @ tensor).dtype == torch.float64
        assert to_autocast(tensor) is tensor


def test_a_tensor_stays_itself_where_autocast_is_off_or_on_for_another_device() -> None:
    on_cpu, on_meta = torch.randn(3), torch.randn(3, device="meta")
    assert to_autocast(on_cpu) is on_cpu
    with torch.autocast("cpu", torch.bfloat16):
        assert to_autocast(on_meta) is on_meta
