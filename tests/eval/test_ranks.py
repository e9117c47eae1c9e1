"""Counts of two processes put together, in both."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pathmoe_eval.layers.agreement import AdjacentCounts
from pathmoe_eval.paths.paths import PathCounts
from pathmoe_eval.ranks import merged_over_ranks

PATH_IDS = np.random.default_rng(0).integers(0, 3, (100, 4))


def test_one_process_has_its_own() -> None:
    counts = PathCounts(num_layers=4, num_experts=3)
    assert merged_over_ranks(counts) is counts


def merge(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = []
    for kind in (PathCounts, AdjacentCounts):
        counts = kind(num_layers=4, num_experts=3)
        counts.update(PATH_IDS[:70] if rank == 0 else PATH_IDS[70:])
        results.append(vars(merged_over_ranks(counts).result()))
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="forks, which CUDA does not survive")
def test_two_processes_have_those_of_both(tmp_path: Path) -> None:
    mp.start_processes(merge, (tmp_path,), nprocs=2, start_method="fork")
    expected = []
    for kind in (PathCounts, AdjacentCounts):
        counts = kind(num_layers=4, num_experts=3)
        counts.update(PATH_IDS)
        expected.append(vars(counts.result()))
    assert torch.load(tmp_path / "0.pt") == torch.load(tmp_path / "1.pt") == expected
