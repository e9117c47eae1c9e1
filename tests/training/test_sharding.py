"""What FSDP2 gathers together: experts, layers and the root, which has the routers that layers share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from pathmoe.config import PathMoEConfig
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.sharding import EXPERTS, shard

SHAPE = {
    "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "moe_intermediate_size": 8,
    "num_experts": 4, "num_experts_per_tok": 2, "layers_per_router": 2, "first_k_dense_replace": 1,
}  # fmt: skip


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    """One rank, of a group that is its own."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_units_are_experts_layers_and_the_root(mesh: DeviceMesh, device: str) -> None:
    with torch.device(device):
        model = PathMoEForCausalLM(PathMoEConfig(**SHAPE))
    shard(model, mesh, "32-true")
    units = {name for name, module in model.named_modules() if isinstance(module, FSDPModule)}
    layers = {f"model.layers.{layer}" for layer in range(3)}
    assert units == {"", *layers, "model.layers.1.mlp.experts", "model.layers.2.mlp.experts"}
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    of_root = {name for name, _ in model.named_parameters() if not name.startswith("model.layers.")}
    assert any(name.startswith("model.routers.") for name in of_root)


def test_experts_are_shared_out_and_then_sharded_by_rows(mesh: DeviceMesh) -> None:
    model = PathMoEForCausalLM(PathMoEConfig(**SHAPE))
    experts_mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("shards", EXPERTS))
    shard(model, mesh, "32-true", experts_mesh)
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        assert parameter.placements == ((Shard(1), Shard(0)) if ".experts." in name else (Shard(0),)), name


def test_in_mixed_precision_what_computes_is_bf16_and_what_is_kept_fp32(mesh: DeviceMesh) -> None:
    model = PathMoEForCausalLM(PathMoEConfig(**SHAPE))
    shard(model, mesh, "bf16-mixed")
    seen: dict[str, torch.dtype] = {}
    experts = model.model.layers[1].mlp.experts
    experts.register_forward_pre_hook(lambda module, _: seen.update(weight=module.down_proj.dtype))
    ids = torch.arange(20)[None]
    output = model(input_ids=ids, labels=ids)
    assert seen == {"weight": torch.bfloat16}
    assert output.routings[0].expert_weights_TK.dtype == torch.float32
    output.loss.backward()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
