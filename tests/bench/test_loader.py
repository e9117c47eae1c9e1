import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pathmoe.bench.loader import large_figures, tiny_figures, write_blocks
from pathmoe.bench.tiny import TinyRun
from pathmoe.config import PathMoEConfig
from pathmoe.data import TokenDataModule
from pathmoe.training.optim import OptimizerConfig
from pathmoe.training.schedule import ScheduleConfig


def test_the_loader_and_the_steps_are_of_the_same_run(tmp_path: Path) -> None:
    data = TokenDataModule(
        source="c-functions", num_documents=60, vocab_size=300, sequence_length=16, micro_batch_size=2,
        cache_dir=str(tmp_path),
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    config = PathMoEConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, moe_intermediate_size=8,
        num_experts=4, num_experts_per_tok=2, layers_per_router=2,
    )  # fmt: skip
    run = TinyRun(config, OptimizerConfig(lr=1e-2), ScheduleConfig(), max_steps=10, gradient_clip_val=1.0, data=data)
    figures = tiny_figures(run, 3)
    loader, steps, (low, median, high) = figures.values()
    assert isinstance(loader, float) and isinstance(steps, float) and min(loader, steps) > 0
    assert 0 < low <= median <= high


def test_large_blocks_are_read_from_all_files(tmp_path: Path) -> None:
    blocks = write_blocks(tmp_path, 3, 4, 32)
    assert len(blocks) == 12 and len(list(tmp_path.iterdir())) == 3
    rows = blocks.batch(np.arange(12))["input_ids"]
    assert len({tuple(row) for row in rows.tolist()}) == 12


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_every_figure_is_given(tmp_path: Path) -> None:
    figures = large_figures(tmp_path, rounds=2, num_shards=4, blocks_of_shard=16)
    assert len(figures) == 4 and all(isinstance(value, float) and value > 0 for value in figures.values())


def test_too_few_rounds_end_in_one_line() -> None:
    command = [sys.executable, "-m", "pathmoe.bench.loader", "--rounds", "1"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: --rounds (1)") and ended.stderr.count("\n") == 1
