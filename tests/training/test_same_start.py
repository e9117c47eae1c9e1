"""Ranks that would start from different places are refused, on all of them."""

import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pathmoe.training.errors import OnAllRanksError
from pathmoe.training.same_start import SameStart

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(), reason="forks, which CUDA does not survive"
)


def compare(rank: int, folder: Path, paths: list[str | None], accumulate: list[int]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    trainer: Any = SimpleNamespace(
        world_size=2, ckpt_path=paths[rank], accumulate_grad_batches=accumulate[rank], global_rank=rank
    )
    module: Any = None
    try:
        SameStart().setup(trainer, module, "fit")
        said = "nothing"
    except OnAllRanksError as error:
        said = str(error)
    (folder / f"{rank}.txt").write_text(said)
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("paths", "accumulate", "said"),
    [
        (("last.ckpt", "last.ckpt"), (1, 1), "nothing"),
        ((None, None), (2, 2), "nothing"),
        (("last.ckpt", None), (1, 1), "--ckpt_path (no checkpoint) of rank 1 on HOST must be that of rank 0 on HOST ("),
        ((None, "last.ckpt"), (1, 1), "--ckpt_path (FOLDER/last.ckpt of step 4) of rank 1 on HOST must be that of"),
        (("last.ckpt", "other.ckpt"), (1, 1), "--ckpt_path (FOLDER/other.ckpt of step 4) of rank 1 on HOST must be"),
        (("last.ckpt", "damaged.ckpt"), (1, 1), "--ckpt_path (FOLDER/damaged.ckpt, which can't be read) of rank 1 on"),
        (
            (None, None),
            (2, 1),
            "trainer.accumulate_grad_batches (1) of rank 1 on HOST must be that of rank 0 on HOST (2)",
        ),
    ],
)
def test_ranks_start_from_one_place(
    tmp_path: Path, finished_run: Any, paths: tuple[str | None, ...], accumulate: tuple[int, ...], said: str
) -> None:
    for name in ("last.ckpt", "other.ckpt"):
        (tmp_path / name).symlink_to((finished_run.folder / "last.ckpt").resolve())
    (tmp_path / "damaged.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:-100])
    whole = [None if path is None else str(tmp_path / path) for path in paths]
    mp.start_processes(compare, (tmp_path, whole, list(accumulate)), nprocs=2, start_method="fork")
    expected = said.replace("HOST", socket.gethostname()).replace("FOLDER", str(tmp_path))
    for rank in range(2):
        assert (tmp_path / f"{rank}.txt").read_text().startswith(expected)
