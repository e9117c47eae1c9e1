"""transformers' expert parallelism around our experts: two processes with half of the experts each, as one with all."""

# Shapes: B batch, S sequence, D hidden.

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import GptOssConfig, OlmoeConfig
from transformers.distributed.expert_parallel import apply_expert_parallelism
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

import pathmoe.experts  # noqa: F401  # registers the implementation

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(), reason="forks, which CUDA does not survive"
)

SIZES = {"hidden_size": 16, "intermediate_size": 12, "num_experts_per_tok": 2}


def random_block(name: str, experts_implementation: str) -> nn.Module:
    torch.manual_seed(1)
    block: nn.Module
    if name == "olmoe":
        block = OlmoeSparseMoeBlock(OlmoeConfig(**SIZES, num_experts=6))
    else:
        block = GptOssMLP(GptOssConfig(**SIZES, num_local_experts=6))
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    block.experts.config._experts_implementation = experts_implementation
    return block


def run(block: nn.Module) -> dict[str, Tensor]:
    """Output, and gradients of the input and of all parameters, those of other processes included."""
    torch.manual_seed(2)
    x_BSD, upstream_BSD = torch.randn(2, 7, 16, requires_grad=True), torch.randn(2, 7, 16)
    output = block(x_BSD)
    y_BSD = output[0] if isinstance(output, tuple) else output
    y_BSD.backward(upstream_BSD)
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    whole = {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in gradients.items()}
    return {"y": y_BSD.detach(), "x": x_BSD.grad, **whole}


def run_in_parallel(rank: int, folder: Path, name: str, ep_implementation: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    block = random_block(name, "pathmoe")
    plan = {f"experts.{parameter}": "grouped_gemm" for parameter, _ in block.experts.named_parameters()}
    mesh = init_device_mesh("cpu", (2,))
    apply_expert_parallelism(block, mesh, mesh, plan | {"experts": "ep_dispatch_experts"}, ep_implementation)
    assert block.experts.num_experts == 3
    torch.save(run(block), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("ep_implementation", ["all_reduce", "all_to_all"])
@pytest.mark.parametrize("name", ["olmoe", "gpt_oss"])
def test_two_processes_with_half_of_the_experts_each_are_as_one(
    tmp_path: Path, name: str, ep_implementation: str
) -> None:
    expected = run(random_block(name, "eager"))
    mp.start_processes(run_in_parallel, (tmp_path, name, ep_implementation), nprocs=2, start_method="fork")
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == expected.keys()
        for key, want in expected.items():
            torch.testing.assert_close(found[key], want, rtol=0, atol=2e-6 * float(want.abs().max()))
