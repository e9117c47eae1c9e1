"""FSDP2: which parts of a model are gathered together, and in which precision."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from pathmoe.experts import Experts
from pathmoe.model import PathMoEForCausalLM

_BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
_POLICY_OF_PRECISION = {"32-true": MixedPrecisionPolicy(), "bf16-mixed": _BF16}


EXPERTS = "experts"
"""The mesh dimension whose ranks share the experts."""


def shard(model: PathMoEForCausalLM, mesh: DeviceMesh, precision: str, experts_mesh: DeviceMesh | None = None) -> None:
    """Shard all parameters over the ranks of a mesh: with one dimension over all, with two (replicas, shards) hybrid.

    Each layer's experts are one unit and the rest of the layer another, so that attention does not wait for experts;
    embeddings, head, norm and the routers, which several layers share, belong to the root, which stays gathered from
    forward to backward. Layers take what they are handed as it is, since a decision that layers share is fp32, while
    the root casts.

    Args:
        model: on any device, the meta device too.
        mesh: of data parallel ranks.
        precision: of Lightning; `32-true`, or `bf16-mixed`: parameters are gathered in bf16, gradients reduced in fp32.
        experts_mesh: of the same ranks for expert parallelism, with a last dimension `EXPERTS`, whose ranks hold some
            of the experts each; they are sharded over the ranks of the dimensions before.
    """
    policy = _POLICY_OF_PRECISION[precision]
    of_layers = replace(policy, cast_forward_inputs=False)
    for layer in model.model.layers:
        if layer.is_moe and experts_mesh is not None:
            _share_out(layer.mlp.experts, experts_mesh[EXPERTS])
            rest = experts_mesh[tuple(name for name in experts_mesh.mesh_dim_names or () if name != EXPERTS)]
            # By their rows: the experts themselves are shared out already.
            fully_shard(layer.mlp.experts, mesh=rest, mp_policy=of_layers, shard_placement_fn=lambda _: Shard(1))
        elif layer.is_moe:
            fully_shard(layer.mlp.experts, mesh=mesh, mp_policy=of_layers)
        fully_shard(layer, mesh=mesh, mp_policy=of_layers)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


def _share_out(experts: Experts, mesh: DeviceMesh) -> None:
    """Leave each rank of a mesh its experts."""
    for name, parameter in list(experts.named_parameters()):
        shared = distribute_tensor(parameter.data, mesh, [Shard(0)], src_data_rank=None)
        setattr(experts, name, nn.Parameter(shared, requires_grad=parameter.requires_grad))
