"""Bytes that a module keeps for its backward."""

from collections.abc import Callable

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], Tensor], beside: tuple[Tensor, ...] = ()) -> int:
    """Bytes of distinct storages that autograd saves in `forward`, without those of the tensors in `beside`.

    Args:
        forward: runs the module once with gradients.
        beside: tensors that live anyway, such as parameters and the input.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in beside}
    storages: dict[int, int] = {}
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
            # An address is told apart only as long as its memory is not given to another tensor.
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    del output
    return sum(storages.values())
