"""Processes that share the experts compute what one process with all of them does, for any routing."""

# Shapes: T tokens, K experts per token, D hidden, E experts, F expert width, G = 2F, R ranks.

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from pathmoe.config import PathMoEConfig
from pathmoe.expert_parallel import _exchange
from pathmoe.experts import Experts

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(), reason="forks, which CUDA does not survive"
)

EXPERTS, CHOICES, HIDDEN, WIDTH = 6, 3, 8, 5
TOKENS_OF_RANK = (7, 0, 4)
"""Ranks need not have the same number of tokens, nor any."""


def expert_ids(case: str, num_tokens: int) -> Tensor:
    """[T, K], different experts for each token."""
    scores_TE = torch.rand(num_tokens, EXPERTS)
    if case == "one rank has all":
        scores_TE[:, 2:4] += 1.0
        scores_TE[:, 3] += 1.0
    ids_TK = scores_TE.topk(CHOICES, dim=-1).indices
    if case == "some have none":
        ids_TK[::2, 1] = EXPERTS
        ids_TK[::3] = -1
    return ids_TK.int()


def whole_experts() -> Experts:
    torch.manual_seed(0)
    config = PathMoEConfig(
        vocab_size=16, hidden_size=HIDDEN, num_attention_heads=1, moe_intermediate_size=WIDTH, num_experts=EXPERTS,
        num_experts_per_tok=CHOICES,
    )  # fmt: skip
    config._experts_implementation = "pathmoe"
    experts = Experts(config)
    experts.config = config
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return experts


def inputs(case: str, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1 + rank)
    num_tokens = TOKENS_OF_RANK[rank]
    x_TD, weights_TK = torch.randn(num_tokens, HIDDEN), torch.rand(num_tokens, CHOICES)
    return x_TD.requires_grad_(), expert_ids(case, num_tokens), weights_TK.requires_grad_(), torch.randn_like(x_TD)


def run(experts: Experts, case: str, ranks: list[int], dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """Outputs and gradients of the tokens of some ranks, with what gradients they leave in the experts."""
    results = []
    for rank in ranks:
        x_TD, ids_TK, weights_TK, upstream_TD = inputs(case, rank)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y_TD = experts(x_TD, ids_TK, weights_TK)
        (y_TD * upstream_TD).sum().backward()
        results.append({"y": y_TD.detach(), "x": x_TD.grad, "weights": weights_TK.grad})
    return results


def run_in_parallel(rank: int, folder: Path, case: str, dtype: torch.dtype) -> None:
    num_ranks = len(TOKENS_OF_RANK)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)
    experts, mesh = whole_experts(), init_device_mesh("cpu", (num_ranks,))
    for name, parameter in list(experts.named_parameters()):
        setattr(experts, name, torch.nn.Parameter(distribute_tensor(parameter.data, mesh, [Shard(0)])))
    (result,) = run(experts, case, [rank], dtype)
    # What is left in an expert is the sum over ranks divided by their number.
    result |= {name: num_ranks * parameter.grad.full_tensor() for name, parameter in experts.named_parameters()}
    torch.save(result, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ["any", "one rank has all", "some have none"])
def test_shared_experts_compute_as_whole_ones(tmp_path: Path, case: str, dtype: torch.dtype) -> None:
    experts = whole_experts()
    expected = run(experts, case, list(range(len(TOKENS_OF_RANK))), dtype)
    gradients = {name: parameter.grad for name, parameter in experts.named_parameters()}
    mp.start_processes(run_in_parallel, (tmp_path, case, dtype), nprocs=len(TOKENS_OF_RANK), start_method="fork")
    tolerance = 2e-6 if dtype == torch.float32 else 2e-2
    for rank, of_rank in enumerate(expected):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, want in (of_rank | gradients).items():
            assert found[name].dtype == want.dtype
            largest = float(want.abs().max()) if want.numel() else 1.0
            torch.testing.assert_close(found[name], want, rtol=0, atol=tolerance * largest, msg=f"{name} of {rank}")


def count_rows(rank: int, folder: Path, ids_RTK: Tensor) -> None:
    num_ranks = len(ids_RTK)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)
    exchange = _exchange(ids_RTK[rank], EXPERTS // num_ranks, dist.group.WORLD)
    torch.save((exchange.sent, exchange.received), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_a_token_travels_once_to_each_rank_that_has_experts_of_it(tmp_path: Path) -> None:
    torch.manual_seed(3)
    ids_RTK = torch.stack([expert_ids("any", 20), expert_ids("some have none", 20)])
    mp.start_processes(count_rows, (tmp_path, ids_RTK), nprocs=2, start_method="fork")
    counts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for rank, (sent, _) in enumerate(counts):
        owners = [{expert // 3 for expert in token if 0 <= expert < EXPERTS} for token in ids_RTK[rank].tolist()]
        assert sent == [sum(owner in of_token for of_token in owners) for owner in range(2)]
        assert sum(sent) < int(((ids_RTK[rank] >= 0) & (ids_RTK[rank] < EXPERTS)).sum())
        assert [of_other[rank] for of_other, _ in counts] == counts[rank][1]
