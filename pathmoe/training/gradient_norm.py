"""The norm of all gradients, and clipping by it, where they are whole and where ranks hold shards of them."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter


def gradient_norm(parameters: Iterable[Parameter]) -> Tensor:
    """Euclidean norm of all gradients together, a scalar that is the same on all ranks.

    Under expert parallelism experts are on a mesh of their own, while torch takes a norm over one mesh at a time, with
    an all-reduce for each of its dimensions: this is one in all.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    by_copies: dict[int, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        if isinstance(gradient, DTensor):
            by_copies[_copies(gradient)].append(gradient.to_local())
    if not by_copies:
        return torch.nn.utils.get_total_norm(gradients)
    squared = [torch.nn.utils.get_total_norm(local).square() / copies for copies, local in by_copies.items()]
    total = torch.stack(squared).sum()
    dist.all_reduce(total)
    return total.sqrt()


def clip_gradients(parameters: Iterable[Parameter], max_norm: float, norm: Tensor) -> None:
    """Scale all gradients, in place, so that their norm is at most `max_norm`.

    Args:
        parameters: those of the norm.
        max_norm: what is allowed.
        norm: of `gradient_norm`.
    """
    by_mesh: dict[Any, list[Parameter]] = defaultdict(list)
    for parameter in parameters:
        by_mesh[parameter.device_mesh if isinstance(parameter, DTensor) else None].append(parameter)
    for of_one_mesh in by_mesh.values():
        torch.nn.utils.clip_grads_with_norm_(of_one_mesh, max_norm, norm)


def _copies(tensor: DTensor) -> int:
    """Ranks that hold the same shard."""
    copies = 1
    for size, placement in zip(tensor.device_mesh.shape, tensor.placements, strict=True):
        copies *= size if placement.is_replicate() else 1
    return copies
