"""Autocast for ops that it does not know: custom ops and grouped GEMMs."""

import torch
from torch import Tensor


def to_autocast(tensor: Tensor) -> Tensor:
    """The tensor in the dtype of autocast where autocast is on for its device; itself where not.

    Double precision stays itself too, as in what autocast knows.
    """
    device_type = tensor.device.type
    # Asking after a device that has no autocast, such as meta, is an error.
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(device_type):
        return tensor
    if tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device_type))
