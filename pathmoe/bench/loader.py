"""`make bench-data`: how fast one process loads batches, beside the steps of the tiny run, and in what memory."""

import json
import statistics
import tempfile
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from pathmoe.bench.layer import Figure
from pathmoe.bench.paired import paired_seconds, ratio
from pathmoe.bench.peer import our_inputs
from pathmoe.bench.step import lines_of, training_step
from pathmoe.bench.tests_first import run_tests
from pathmoe.bench.tiny import TinyRun, tiny_run
from pathmoe.data.blocks import Blocks, to_table
from pathmoe.data.interleaving import mixed_block_indices
from pathmoe.data.loader import MicroBatches, Order, TrainLoader
from pathmoe.data.order import BatchGeometry, block_indices
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.config_files import config_folder
from pathmoe.training.errors import OneLineParser, fail, with_one_line_errors
from pathmoe.training.provenance import provenance

LEAST_RATIO = 50
"""What the loader must give for each token that the tiny run takes."""

_BATCHES_PER_CALL = 50
_TESTED = ("blocks", "loader", "loader_memory", "order", "interleaving", "datamodule_mixture")
"""Of tests/data."""


def anonymous_bytes() -> int:
    """Memory of this process that no file backs: what is mapped and can be read again does not count. Linux only."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    (kibibytes,) = [line.split()[1] for line in lines if line.startswith("Anonymous:")]
    return int(kibibytes) * 1024


def write_blocks(folder: Path, num_shards: int, blocks_of_shard: int, sequence_length: int) -> Blocks:
    """Blocks of random tokens in so many files, with a document about every 500 tokens."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(num_shards):
        shape = (blocks_of_shard, sequence_length + 1)
        table = to_table(rng.integers(0, 2**15, shape).astype(np.uint16), rng.random(shape) < 0.002)
        files.append(folder / f"{number:05}.arrow")
        with pa.OSFile(str(files[-1]), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return Blocks.open(*files)


def peak_of_reading(blocks: Blocks, num_batches: int, geometry: BatchGeometry, order: Order) -> int:
    """The most anonymous memory that the process has while it reads so many batches, in bytes, looked at ten times."""
    loader = TrainLoader(MicroBatches(blocks, geometry, order), lambda: 0)
    looked_at = range(0, num_batches, max(1, num_batches // 10))
    return max(anonymous_bytes() for number, _ in enumerate(islice(loader, num_batches)) if number in looked_at)


def tiny_figures(run: TinyRun, rounds: int) -> dict[str, Figure]:
    """The loader of the tiny run and its steps, in turns in one process."""
    torch.manual_seed(0)
    batches = run.data.train_batches()
    batch = next(batches)
    step = training_step(PathMoEForCausalLM(run.config), our_inputs(batch), run)
    calls = {"loader": lambda: list(islice(batches, _BATCHES_PER_CALL)), "step": step}
    seconds = paired_seconds(calls, rounds)
    num_tokens = batch["input_ids"].numel()
    low, median, high = (_BATCHES_PER_CALL * share for share in ratio(seconds, "step", "loader"))
    return {
        "tiny run: loader alone, tokens/s": _BATCHES_PER_CALL * num_tokens / statistics.median(seconds["loader"]),
        "tiny run: training steps, tokens/s": num_tokens / statistics.median(seconds["step"]),
        f"loader over steps (at least {LEAST_RATIO})": (low, median, high),
    }


def large_figures(folder: Path, rounds: int, num_shards: int = 64, blocks_of_shard: int = 64) -> dict[str, Figure]:
    """One of 64 ranks of a run on blocks of 4,096 tokens, 512 a step, in many files; alone and as a mixture of two."""
    blocks = write_blocks(folder, num_shards, blocks_of_shard, sequence_length=4096)
    geometry = BatchGeometry(micro_batch_size=8, world_size=64)
    halves = [len(blocks) // 4, len(blocks) - len(blocks) // 4]
    orders: dict[str, Order] = {
        "one source": partial(block_indices, num_blocks=len(blocks), seed=0),
        "a mixture": partial(mixed_block_indices, blocks_of_sources=halves, weights=[0.7, 0.3], seed=0),
    }
    figures: dict[str, Figure] = {}
    for name, order in orders.items():
        batches = iter(TrainLoader(MicroBatches(blocks, geometry, order), lambda: 0))
        next(batches)
        seconds = paired_seconds({"loader": partial(next, batches)}, rounds)["loader"]
        figures[f"blocks of 4,096, {name}: tokens/s of a rank"] = 8 * 4096 / statistics.median(seconds)
    order = orders["one source"]
    number = max(1, len(blocks) // 4 // 8)
    first, last = (peak_of_reading(blocks, batches, geometry, order) for batches in (number, 4 * number))
    figures["anonymous memory, MiB, at most while reading N blocks"] = first / 2**20
    figures["the same for 4 N, of them all in the files"] = last / 2**20
    return figures


def main() -> None:
    """Run the tests of what is timed, then time it, and print versions, commit and figures."""
    parser = OneLineParser(prog="python -m pathmoe.bench.loader", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="Rounds that are timed.")
    rounds = parser.parse_args().rounds
    if rounds < 2:
        fail(f"--rounds ({rounds}) must be at least 2, for quartiles; raise it")
    run_tests(config_folder().parent, [f"data/test_{name}.py" for name in _TESTED], ("-m", "not slow"))
    print(json.dumps(provenance(), indent=2))
    for line in lines_of(tiny_figures(tiny_run(), rounds)):
        print(line)
    with tempfile.TemporaryDirectory() as folder:
        for line in lines_of(large_figures(Path(folder), 10 * rounds)):
            print(line)


if __name__ == "__main__":
    with_one_line_errors(main)
