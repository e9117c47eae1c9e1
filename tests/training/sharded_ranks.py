"""Processes that train, save and load shards, for test_sharded_state.py: what to do is on the command line, as JSON.

One import serves all of them, since they are forks of this program.
"""

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import Parameter

from pathmoe.config import PathMoEConfig
from pathmoe.training.background_saves import BackgroundSaves
from pathmoe.training.checkpoint_io import read_checkpoint
from pathmoe.training.checkpoint_names import SaveOptions
from pathmoe.training.errors import OnAllRanksError
from pathmoe.training.module import PathMoEModule
from pathmoe.training.optim import OptimizerConfig, build_optimizer
from pathmoe.training.sharded_state import load_state, save_state

CHANGES = {"os.rename", "os.symlink", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}


def on_ranks(num_ranks: int, work: Callable[[int, ProcessGroup], None]) -> list[int]:
    """Run `work` in so many processes that form a group; returns their exit statuses, -9 for a killed one.

    Once one has been killed, the others are too: what they would wait for never comes.
    """
    store = tempfile.mktemp()
    ranks = []
    for rank in range(num_ranks):
        if (child := os.fork()) == 0:
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks)
            work(rank, dist.new_group(backend="gloo"))
            dist.barrier()
            os._exit(0)
        ranks.append(child)
    statuses = {}
    while len(statuses) < num_ranks:
        child, status = os.wait()
        statuses[child] = os.waitstatus_to_exitcode(status)
        if statuses[child] != 0:
            for other in set(ranks) - statuses.keys():
                os.kill(other, signal.SIGKILL)
    return [statuses[child] for child in ranks]


class Training:
    """A model whose experts are sharded as under expert parallelism, on a mesh of their own, and its optimizer.

    Its gradients are random: only what becomes of the state is looked at.
    """

    def __init__(self, shape: dict[str, Any], seed: int) -> None:
        ranks = dist.get_world_size()
        self.module = PathMoEModule(PathMoEConfig(**shape), OptimizerConfig(lr=0.01), seed=seed)
        self.module.configure_model()
        model = self.module.model
        mesh = init_device_mesh("cpu", (ranks,))
        inner = 2 if ranks % 2 == 0 else 1
        of_experts = init_device_mesh("cpu", (ranks // inner, inner), mesh_dim_names=("efsdp", "ep"))
        for layer in model.model.layers:
            experts = layer.mlp.experts
            for name, weight in list(experts.named_parameters()):
                setattr(experts, name, Parameter(distribute_tensor(weight.detach(), of_experts["ep"], [Shard(0)])))
            fully_shard(experts, mesh=of_experts["efsdp"])
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        self.optimizer = build_optimizer(model, OptimizerConfig(lr=0.01))
        for group in self.optimizer.param_groups:
            group["foreach"] = False  # which takes tensors of one mesh only

    def step(self, step: int) -> None:
        torch.manual_seed(100 * step + dist.get_rank())
        for parameter in self.module.parameters():
            parameter.grad = torch.zeros_like(parameter)
            parameter.grad.to_local().normal_()
        self.optimizer.step()

    def checkpoint(self, step: int) -> dict[str, Any]:
        return {
            "global_step": step,
            "pathmoe": {"config": self.module.config.to_dict()},
            "state_dict": get_model_state_dict(self.module),
            "optimizer_states": [get_optimizer_state_dict(self.module, self.optimizer)],
        }

    def whole(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return get_state_dict(self.module, self.optimizer, options=StateDictOptions(full_state_dict=True))


def train(folder: Path, shape: dict[str, Any], num_ranks: int) -> None:
    """Two steps saved, then saved once more while training goes on; what the ranks had lies beside."""

    def work(rank: int, group: ProcessGroup) -> None:
        training = Training(shape, seed=0)
        for step in range(2):
            training.step(step)
        whole = training.whole()
        if rank == 0:
            torch.save(whole, folder / "whole.pt")
        save_state(training.checkpoint(2), folder / "sync.ckpt", SaveOptions(), group)
        background = BackgroundSaves()
        save_state(training.checkpoint(2), folder / "async.ckpt", SaveOptions(background=background), group)
        for step in range(2, 6):
            training.step(step)
        background.wait()

    assert on_ranks(num_ranks, work) == [0] * num_ranks


def load(folder: Path, shape: dict[str, Any], num_ranks: int, checkpoint: str) -> None:
    """Loaded into ranks of another number, whose whole state lies beside; or what each rank raised."""

    def work(rank: int, group: ProcessGroup) -> None:
        training = Training(shape, seed=1)
        optimizers = [training.optimizer]
        try:
            rest = load_state(folder / checkpoint, training.module, training.module.config, optimizers, group)
        except Exception as error:
            (folder / f"error_{rank}").write_text(f"{type(error).__name__}: {error}")
            return
        assert rest["global_step"] == 2 and "state_dict" not in rest
        whole = training.whole()
        if rank == 0:
            torch.save(whole, folder / f"loaded_{num_ranks}.pt")

    assert on_ranks(num_ranks, work) == [0] * num_ranks


def fill(folder: Path, shape: dict[str, Any]) -> None:
    """A save for which one rank has no room."""

    def work(rank: int, group: ProcessGroup) -> None:
        training = Training(shape, seed=0)
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        try:
            save_state(training.checkpoint(3), folder / "sync.ckpt", SaveOptions(), group)
        except Exception as error:
            # Standard output is a pipe, which has room for whatever a file has not.
            _say(f"{type(error).__name__}: {error}")

    assert on_ranks(2, work) == [0, 0]


def apart(folder: Path, shape: dict[str, Any]) -> None:
    """A save of ranks whose disks are not the same."""

    def work(rank: int, group: ProcessGroup) -> None:
        try:
            save_state(Training(shape, 0).checkpoint(3), folder / str(rank) / "last.ckpt", SaveOptions(), group)
        except OnAllRanksError as error:
            _say(str(error))

    assert on_ranks(2, work) == [0, 0]


def _say(line: str) -> None:
    """Print of an unbuffered Python writes the newline apart from the line, and the other rank between the two."""
    os.write(1, f"{line}\n".encode())


def kill(folder: Path, victim: int) -> None:
    """A save of step 2 over one of step 1, killed on one rank before each thing that it does to the folder in turn."""

    def save(run: Path, step: int, killed_at: int = -1) -> list[int]:
        def work(rank: int, group: ProcessGroup) -> None:
            weights = distribute_tensor(torch.full((5, 2), float(step)), init_device_mesh("cpu", (2,)), [Shard(0)])
            checkpoint = {"global_step": step, "pathmoe": {}, "state_dict": {"w": weights}}
            if rank == victim:
                sys.addaudithook(_killer(run, killed_at))
            save_state(checkpoint, run / "last.ckpt", SaveOptions(run / "previous.ckpt"), group)

        return on_ranks(2, work)

    assert save(folder / "first", 1) == [0, 0]
    statuses = []
    for killed_at in count():
        run = Path(shutil.copytree(folder / "first", folder / f"{killed_at}", symlinks=True))
        statuses = save(run, 2, killed_at)
        found = _steps(run)
        assert save(run, 3) == [0, 0]
        print(json.dumps([statuses, found, _steps(run), len([*run.glob(".*")])]), flush=True)
        if statuses == [0, 0]:
            break


def _killer(run: Path, killed_at: int) -> Callable[[str, tuple[Any, ...]], None]:
    events = count()

    def kill(event: str, arguments: tuple[Any, ...]) -> None:
        touches = event in CHANGES or (event == "open" and str(run) in str(arguments[0]))
        if touches and next(events) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


def _steps(run: Path) -> list[int]:
    """The steps of the last checkpoint and of the one before, once their content is found to be theirs."""
    contents = [read_checkpoint(run / name) for name in ("last.ckpt", "previous.ckpt") if (run / name).exists()]
    assert all(content["state_dict"]["w"].eq(content["global_step"]).all() for content in contents)
    return [content["global_step"] for content in contents]


if __name__ == "__main__":
    what = json.loads(sys.argv[1])
    work = {"train": train, "load": load, "fill": fill, "apart": apart, "kill": kill}[what.pop("what")]
    work(Path(what.pop("folder")), **what)
