"""The norm of gradients that are whole, or shards on several meshes, against that of all of them in one process."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor

from pathmoe.training.gradient_norm import clip_gradients, gradient_norm

SHAPES = [(6, 8), (5,), (4, 6, 2), (8, 4)]


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    made = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    for parameter in made[:-1]:
        parameter.grad = torch.randn_like(parameter)
    return made  # the last one without a gradient


def expected_norm() -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in parameters() if p.grad is not None]).double().norm()


def test_of_whole_gradients() -> None:
    made = parameters()
    norm = gradient_norm(made)
    torch.testing.assert_close(norm.double(), expected_norm(), rtol=1e-6, atol=0)
    clip_gradients(made, 0.5, norm)
    torch.testing.assert_close(gradient_norm(made), torch.tensor(0.5), rtol=1e-4, atol=0)


def run(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4)
    line, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2), mesh_dim_names=("shards", "experts"))
    places: list[tuple[DeviceMesh, list[Placement]]] = [
        (line, [Shard(0)]), (square, [Replicate(), Shard(0)]), (square, [Shard(1), Shard(0)]), (line, [Replicate()]),
    ]  # fmt: skip
    made = []
    for whole, (mesh, placements) in zip(parameters(), places, strict=True):
        made.append(nn.Parameter(distribute_tensor(whole.data, mesh, placements)))
        if whole.grad is not None:
            made[-1].grad = distribute_tensor(whole.grad, mesh, placements)
    norm = gradient_norm(made)
    clip_gradients(made, 0.5, norm)
    torch.save((norm, gradient_norm(made)), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="forks, which CUDA does not survive")
def test_of_shards_on_two_meshes(tmp_path: Path) -> None:
    mp.start_processes(run, (tmp_path,), nprocs=4, start_method="fork")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]
    torch.testing.assert_close(found[0][0].double(), expected_norm(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found[0][1], torch.tensor(0.5), rtol=1e-4, atol=0)
    assert all(torch.equal(norm, found[0][0]) for norm, _ in found), "a norm of its own on each rank would part them"
