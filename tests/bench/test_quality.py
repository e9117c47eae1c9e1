import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pathmoe import PathMoEConfig
from pathmoe.bench.peer import build_peer
from pathmoe.bench.quality import bits_per_byte, train_peer
from pathmoe.data import TokenDataModule
from pathmoe.training.schedule import ScheduleConfig


@pytest.fixture
def data(tmp_path: Path) -> TokenDataModule:
    module = TokenDataModule(
        source="c-functions", num_documents=60, vocab_size=300, sequence_length=32, micro_batch_size=2,
        validation_fraction=0.2, cache_dir=str(tmp_path),
    )  # fmt: skip
    module.prepare_data()
    module.setup("fit")
    return module


def test_peer_learns_and_is_scored_over_the_whole_split(data: TokenDataModule) -> None:
    config = PathMoEConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, moe_intermediate_size=8,
        num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    peer = build_peer(config)
    with torch.no_grad():
        peer.lm_head.weight.zero_()
    # A head of zeros is uniform over the vocabulary, whatever else the model does.
    uniform = math.log2(300) / data.bytes_per_target
    assert bits_per_byte(peer, data) == pytest.approx(uniform, rel=1e-5)
    peer = build_peer(config)
    steps = train_peer(peer, data, seconds=1.0, lr=1e-2, schedule=ScheduleConfig(name="constant"))
    assert steps > 1
    assert bits_per_byte(peer, data) < uniform


def test_a_run_that_is_not_there_ends_in_one_line() -> None:
    command = [sys.executable, "-m", "pathmoe.bench.quality", "--run", "no/such/run"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1 and "no/such/run" in ended.stderr


def test_a_run_that_has_not_ended_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").touch()
    command = [sys.executable, "-m", "pathmoe.bench.quality", "--run", tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {tmp_path}/summary.json must be there") and ended.stderr.count("\n") == 1
