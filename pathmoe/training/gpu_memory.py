"""Memory that one GPU needs in training, part by part, from the shapes of the model and how it is spread."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch

from pathmoe.activations import Forward, activation_bytes, largest_temporaries, number_sizes
from pathmoe.config import PathMoEConfig
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.layout import Layout
from pathmoe.training.optim import OptimizerConfig, parameters_per_optimizer

_UNIT = re.compile(r"model\.layers\.\d+(\.mlp\.experts)?(?=\.)")


@dataclass(frozen=True, kw_only=True)
class TrainingShape:
    """What the memory of one GPU follows from."""

    config: PathMoEConfig
    optimizer: OptimizerConfig
    layout: Layout
    precision: str
    """Lightning's full name."""
    attention: str
    micro_batch_size: int
    sequence_length: int
    checkpointing: bool

    @property
    def forward(self) -> Forward:
        """One forward on one rank."""
        sizes = number_sizes(self.precision, self.layout.is_sharded)
        expert_parallel_size = self.layout.expert_parallel_size
        return Forward(self.micro_batch_size, self.sequence_length, self.attention, sizes, expert_parallel_size)


@dataclass(frozen=True, kw_only=True)
class GpuMemory:
    """Bytes on the rank that has the most, at the peak of forward and backward."""

    weights: int
    gradients: int
    optimizer_state: int
    gathered: int
    """Parameters that FSDP2 has put together, or is about to."""
    reduced: int
    """Gradients on their way to other ranks: whole ones before FSDP2 scatters them, or DDP's buckets."""
    activations: int
    temporaries: int

    @property
    def total(self) -> int:
        """All parts."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def parts(self) -> dict[str, int]:
        """Those that are there, by name in words."""
        words = {"gathered": "gathered parameters", "reduced": "gradients on the way"}
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {words.get(name, name.replace("_", " ")): number for name, number in named.items() if number}


def gpu_memory(shape: TrainingShape) -> GpuMemory:
    """Memory of one GPU.

    Weights, gradients and optimizer state are those of the first rank, as FSDP2 cuts the first dimension into pieces of
    rounded-up size; it stores as much on every rank. Gradients are in the weights' dtype, and AdamW keeps two numbers
    per trainable parameter, Muon one.

    FSDP2, with p bytes of a gathered parameter (2 under bf16-mixed, else 4), in units as `pathmoe.training.sharding`
    makes them: the root stays gathered; a layer without its experts is there twice, once in use and once as it arrives;
    experts arrive in memory that the allocator keeps for that stream, and what they take in use is given back before
    their gradients need more. Gradients of the root wait in p bytes for the end of backward; those of another unit are
    there in p bytes and, as the input of the reduction, in fp32. DDP keeps a copy of all gradients in its buckets.

    Temporaries are the largest of one operation. Where nothing is sharded, the gradients of a layer's experts come on
    top before they are added to those that are kept: in the dtype of the products, and, where autocast casts, in fp32.
    The temporaries of the optimizer's step are left out, when the activations are gone.

    Source: torch.distributed.fsdp and torch.nn.parallel.DistributedDataParallel, torch 2.13.
    """
    with torch.device("meta"):
        model = PathMoEForCausalLM(shape.config)
    layout, forward = shape.layout, shape.forward
    size = {"bf16-true": 2, "64-true": 8}.get(shape.precision, 4)
    numbers = {name: _local_numel(name, parameter.shape, layout) for name, parameter in model.named_parameters()}
    trained = sum(numbers[name] for name, parameter in model.named_parameters() if parameter.requires_grad)
    per_optimizer = parameters_per_optimizer(model, shape.optimizer)
    under_muon = sum(number for name, number in per_optimizer.items() if name != "AdamW")
    units = _gathered_numel_of_units(numbers, layout)
    kept = activation_bytes(shape.config, forward).kept(shape.checkpointing)
    temporaries = largest_temporaries(shape.config, forward)
    if layout.is_sharded:
        gathered, reduced = _fsdp_buffers(units, 2 if shape.precision == "bf16-mixed" else size)
    else:
        gathered = 0
        reduced = trained * size if layout.world_size > 1 and not layout.gradients_are_views else 0
        experts = max((number for name, number in units.items() if name.endswith("experts")), default=0)
        temporaries += experts * (forward.sizes.gemm + (size if forward.sizes.casts else 0))
    return GpuMemory(
        weights=sum(numbers.values()) * size,
        gradients=trained * size,
        optimizer_state=(2 * trained - under_muon // layout.shards) * size,
        gathered=gathered,
        reduced=reduced,
        activations=kept,
        temporaries=temporaries,
    )


def _shards_of(name: str, layout: Layout) -> tuple[int, int]:
    """Ranks that share a parameter's first dimension as whole experts, and those that share what is left in shards."""
    if ".experts." in name:
        return layout.expert_parallel_size, layout.expert_shards
    return 1, layout.shards


def _local_numel(name: str, shape: torch.Size, layout: Layout) -> int:
    owners, shards = _shards_of(name, layout)
    if owners > 1:
        return shape.numel() // owners // shards  # of each expert some rows, which divide evenly
    return -(-shape[0] // shards) * shape[1:].numel()


def _gathered_numel_of_units(numbers: Mapping[str, int], layout: Layout) -> dict[str, int]:
    """Numbers in each of FSDP2's units when gathered, with the padding of uneven shards; "" is the root."""
    units: dict[str, int] = defaultdict(int)
    for name, number in numbers.items():
        unit = _UNIT.match(name)
        units[unit[0] if unit else ""] += number * _shards_of(name, layout)[1]
    return units


def _fsdp_buffers(units: Mapping[str, int], size: int) -> tuple[int, int]:
    """Bytes of gathered parameters, and of gradients before they are scattered."""
    experts = max((number for name, number in units.items() if name.endswith("experts")), default=0)
    rest = max((number for name, number in units.items() if name and not name.endswith("experts")), default=0)
    root = units[""]
    gathered = size * (root + experts + 2 * rest)
    reduced = max(size * root + (size + 4) * max(experts, rest), (size + 4) * root)
    return gathered, reduced
