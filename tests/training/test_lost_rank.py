"""Errors of collectives are told from all others by real ones; what a run says of them is in `test_faults`."""

import os
import re
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pathmoe.training.lost_rank import failed_collective


def wait_for_the_other(rank: int, folder: Path, ends: bool) -> None:
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=3))
    dist.barrier()
    if rank == 1 and ends:
        os._exit(0)
    if rank == 1:
        while not (folder / "reason").exists():
            time.sleep(0.05)
        os._exit(0)
    try:
        dist.all_reduce(torch.zeros(1))
    except RuntimeError as error:
        (folder / "partial").write_text(str(failed_collective(error)))
        (folder / "partial").rename(folder / "reason")
    os._exit(0)


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="forks, which CUDA does not survive")
@pytest.mark.parametrize(
    ("ends", "reason"), [(True, "Connection (closed|reset) by peer"), (False, "Timed out waiting")]
)
def test_a_rank_that_is_gone_or_late(tmp_path: Path, ends: bool, reason: str) -> None:
    mp.start_processes(wait_for_the_other, (tmp_path, ends), nprocs=2, start_method="fork")
    said = (tmp_path / "reason").read_text()
    assert re.search(reason, said)
    assert "third_party" not in said and "\n" not in said


def test_of_torch_as_it_is_named_and_of_no_other_kind() -> None:
    assert failed_collective(dist.DistBackendError("NCCL error:\n remote process exited")) == (
        "NCCL error: remote process exited"
    )
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("third_party/gloo/x.cc:1] no")):
        assert failed_collective(error) is None
