"""Initial weights as a function of the seed and of a module's name: the same on one device and in any shards."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from pathmoe.noise import fold_seed
from pathmoe.routers import Router


@torch.no_grad()
def initialize(model: PreTrainedModel, seed: int) -> None:
    """Draw all weights anew, and set buffers to what they begin with.

    Each module draws on the CPU from a generator of its own, so that neither order nor sharding matters. Of sharded
    parameters a rank draws the whole, one module at a time, and keeps its part: no rank holds more than its shards and
    one module's weights, and nothing is sent.

    Args:
        model: of transformers, with memory on its device; what it holds is lost.
        seed: of this use.
    """
    drawn: set[int] = set()
    with torch.random.fork_rng(devices=[]):
        for name, module in _children_first("", model):
            if _has_own_weights(module, drawn):
                torch.default_generator.manual_seed(fold_seed(seed, zlib.crc32(name.encode())))
                with _whole_on_the_cpu(module):
                    model._init_weights(module)
                drawn |= {id(parameter) for parameter in module.parameters(recurse=False)}


def _children_first(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    # As transformers goes, so that routers have the last word on the linear layers inside of them.
    for child_name, child in module.named_children():
        yield from _children_first(f"{name}.{child_name}" if name else child_name, child)
    yield name, module


def _has_own_weights(module: nn.Module, drawn: set[int]) -> bool:
    """Whether there is something to draw: not for a head that is tied to embeddings, which were drawn before."""
    own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in drawn]
    return bool(own) or any(True for _ in module.buffers(recurse=False)) or isinstance(module, Router)


@contextmanager
def _whole_on_the_cpu(module: nn.Module) -> Iterator[None]:
    """Have whole tensors on the CPU stand in for parameters of a module, and copy what they then hold.

    For its own, and of a router for those of its linear layers too, which it draws itself.
    """
    stand_ins: list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]] = []
    for owner in module.modules() if isinstance(module, Router) else (module,):
        for name, parameter in owner.named_parameters(recurse=False):
            whole = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu"))
            stand_ins.append((owner, name, parameter, whole))
            owner._parameters[name] = whole
    yield
    for owner, name, parameter, whole in stand_ins:
        owner._parameters[name] = parameter
        if isinstance(parameter, DTensor):
            # Without a source rank, each takes its part of what it has itself.
            mine = distribute_tensor(whole.data, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.to_local().copy_(mine.to_local())
        else:
            parameter.copy_(whole)
