"""Memory of a GPU as planned, against what processes hold after a step, and what torch's tracker sees under FSDP2."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from pathmoe.config import PathMoEConfig
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.gpu_memory import GpuMemory, TrainingShape, gpu_memory
from pathmoe.training.layout import Layout
from pathmoe.training.optim import OptimizerConfig
from pathmoe.training.sharding import shard

# Five experts and width 24 divide neither by two nor by four.
SHAPE = {
    "vocab_size": 300, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "moe_intermediate_size": 10,
    "num_experts": 5, "num_experts_per_tok": 2, "layers_per_router": 2, "first_k_dense_replace": 1,
}  # fmt: skip
FROZEN = {"router_frozen": True, "tie_word_embeddings": True, "n_shared_experts": 1}
ADAMW, MUON = {"name": "adamw"}, {"name": "muon"}
SHARDED = Layout(is_sharded=True)

TRAIN = f"""
import json
import sys
from pathlib import Path

from lightning.pytorch import Callback, Trainer

from pathmoe.config import PathMoEConfig
from pathmoe.data import TokenDataModule
from pathmoe.training.module import PathMoEModule
from pathmoe.training.optim import OptimizerConfig
from pathmoe.training.schedule import ScheduleConfig
from pathmoe.training.sharded_strategy import ShardedStrategy

FOLDER, SOURCE, DEVICES = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])


def local_bytes(tensors):
    locals = [getattr(tensor, "_local_tensor", tensor) for tensor in tensors if tensor is not None]
    return sum(local.numel() * local.element_size() for local in locals)


class Weigh(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        # Of the second step, where what the first one made is still there.
        parameters = list(pl_module.parameters())
        states = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
        gradients = [parameter.grad for parameter in parameters]
        self.bytes = [local_bytes(parameters), local_bytes(gradients), local_bytes(states)]


if __name__ == "__main__":
    for number, run in enumerate(json.loads(sys.argv[4])):
        weigh, replicas = Weigh(), run["num_replicas"]
        strategy = ShardedStrategy(replicas, run["expert_parallel_size"]) if replicas else "ddp"
        trainer = Trainer(
            accelerator="cpu", devices=DEVICES, strategy=strategy, precision=run["precision"], callbacks=[weigh],
            max_steps=2, limit_val_batches=0, logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False,
        )
        optimizer, config = OptimizerConfig(**run["optimizer"]), PathMoEConfig(**({SHAPE} | run["fields"]))
        module = PathMoEModule(config, optimizer, ScheduleConfig(name="constant"))
        trainer.fit(module, datamodule=TokenDataModule(SOURCE, vocab_size=300, sequence_length=32, micro_batch_size=2))
        (FOLDER / f"{{number}}-{{trainer.global_rank}}.json").write_text(json.dumps(weigh.bytes))
"""


def run_of(
    num_replicas: int, precision: str = "32-true", optimizer: Any = ADAMW, experts: int = 1, **fields: Any
) -> dict[str, Any]:
    """A run of `TRAIN`, whose experts so many ranks share; without replicas, under DDP."""
    layout = {"num_replicas": num_replicas, "expert_parallel_size": experts}
    return {**layout, "precision": precision, "optimizer": optimizer, "fields": fields}


RUNS = {
    2: [run_of(1), run_of(1, "bf16-mixed", **FROZEN), run_of(0), run_of(0, "bf16-mixed", MUON, **FROZEN)],
    4: [
        run_of(1),
        run_of(2, "bf16-mixed", **FROZEN),
        run_of(1, experts=2, num_experts=6),
        run_of(4, experts=4, num_experts=4),
    ],
}


def planned(world_size: int, run: dict[str, Any], **changes: Any) -> GpuMemory:
    layout = Layout(world_size=world_size)
    if run["num_replicas"]:
        sizes = {key: run[key] for key in ("num_replicas", "expert_parallel_size")}
        layout = replace(layout, is_sharded=True, **sizes)
    shape = TrainingShape(
        config=PathMoEConfig(**SHAPE | run["fields"]), optimizer=OptimizerConfig(**run["optimizer"]), layout=layout,
        precision=run["precision"], attention="sdpa", micro_batch_size=2, sequence_length=32, checkpointing=False,
    )  # fmt: skip
    return gpu_memory(replace(shape, **changes))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="starts processes that talk over gloo")
@pytest.mark.parametrize("ranks", RUNS)
def test_what_ranks_hold_after_a_step(tmp_path: Path, short_documents: Path, ranks: int) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    command = [sys.executable, "train.py", str(tmp_path), str(short_documents), str(ranks), json.dumps(RUNS[ranks])]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
    for number, run in enumerate(RUNS[ranks]):
        of_ranks = [json.loads((tmp_path / f"{number}-{rank}.json").read_text()) for rank in range(ranks)]
        memory = planned(ranks, run)
        found = [max(part) for part in zip(*of_ranks, strict=True)]
        assert found == [memory.weights, memory.gradients, memory.optimizer_state], run


@pytest.fixture
def four_ranks() -> Iterator[None]:
    """A group of which only this rank is there, and whose collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


WIDE = {"hidden_size": 256, "moe_intermediate_size": 256, "num_experts": 16, "vocab_size": 1000, "num_hidden_layers": 4}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_torch_tracks_under_fsdp2(four_ranks: None, precision: str, checkpointing: bool) -> None:
    fields, length = SHAPE | WIDE, 128
    mesh, config = init_device_mesh("cpu", (4,)), PathMoEConfig(**fields)
    # A mask that is given, as one of documents would be looked for in the positions.
    ids, mask = torch.zeros(2, length, dtype=torch.int64), torch.ones(2, 1, length, length, dtype=torch.bool).tril()
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("meta"):
            model = PathMoEForCausalLM(config)
        shard(model, mesh, precision)
        model.to_empty(device="cpu")
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        tracker = FSDPMemTracker(model)
        tracker.track_inputs((ids, mask))
        with tracker:
            # In the second pass there are gradients already, as in all but the first micro-batch of a run.
            for _ in range(2):
                tracker.reset_mod_stats()
                with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"):
                    output = model(
                        input_ids=ids, attention_mask=mask, shift_labels=ids, return_logits=False, use_cache=False
                    )
                output.loss.backward()
                del output
    peak = {
        getattr(name, "value", name): number
        for name, number in tracker.get_tracker_snapshot("peak")[torch.device("cpu")].items()
    }
    layout = replace(SHARDED, world_size=4)
    memory = planned(
        4, run_of(1, precision, **WIDE), layout=layout, sequence_length=length, checkpointing=checkpointing
    )
    assert peak["Sharded Param"] == memory.weights
    assert peak["Sharded Grad"] == memory.gradients
    passing = memory.gathered + memory.reduced + memory.activations + memory.temporaries
    seen = peak["Total"] - peak["Sharded Param"] - peak["Sharded Grad"]
    # The tracker knows nothing of what a stream's allocator keeps, nor of what is within our operations.
    assert 0.6 * passing < seen < passing


@pytest.mark.parametrize(("world_size", "expert_parallel_size", "num_replicas"), [(8, 2, 1), (8, 4, 2), (16, 2, 4)])
def test_ranks_share_experts_and_shard_what_each_has(
    world_size: int, expert_parallel_size: int, num_replicas: int
) -> None:
    run = run_of(1, num_experts=16, hidden_size=32, moe_intermediate_size=16, tie_word_embeddings=True)
    layout = Layout(
        world_size=world_size, is_sharded=True, num_replicas=num_replicas, expert_parallel_size=expert_parallel_size
    )
    expert_replicas = min(num_replicas, world_size // expert_parallel_size)
    expected = 0
    with torch.device("meta"):
        parameters = PathMoEForCausalLM(PathMoEConfig(**SHAPE | run["fields"])).named_parameters()
    for name, parameter in parameters:
        divisor = world_size // (expert_replicas if ".experts." in name else num_replicas)
        expected += 4 * (parameter.numel() // divisor if ".experts." in name else parameter.chunk(divisor)[0].numel())
    found = planned(world_size, run, layout=layout)
    assert found.weights == expected
    alone = planned(world_size, run, layout=replace(layout, expert_parallel_size=1))
    assert found.gathered < alone.gathered, "each gathers its own share of the experts"


def test_what_ddp_and_one_device_need_on_the_way() -> None:
    ddp, one = planned(4, run_of(0)), planned(1, run_of(0))
    views = planned(4, run_of(0), layout=Layout(world_size=4, gradients_are_views=True))
    assert (ddp.reduced, views.reduced, one.reduced) == (ddp.gradients, 0, 0)
    assert one.total == views.total == ddp.total - ddp.gradients == sum(one.parts.values())
    assert set(ddp.parts) - set(one.parts) == {"gradients on the way"}


def test_gradients_of_experts_come_on_top_where_nothing_is_sharded() -> None:
    experts = 3 * 5 * 24 * 10
    fp32, autocast = (planned(1, run_of(0, precision)).temporaries for precision in ("32-true", "bf16-mixed"))
    without = {precision: planned(1, run_of(1, precision)).temporaries for precision in ("32-true", "bf16-mixed")}
    assert fp32 - without["32-true"] == 4 * experts
    assert autocast - without["bf16-mixed"] == (2 + 4) * experts
