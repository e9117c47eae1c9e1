"""A run on a mixture that goes on with other numbers of processes reads exactly the global batches that come next."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from pathmoe.data import TokenDataModule
from pathmoe.data.interleaving import mixed_block_indices

ROOT = Path(__file__).resolve().parents[2]

# Imported by the processes of the run, which are started in the folder that holds it.
RECORDER = """
import json
from lightning.pytorch import Callback


class RecordBlocks(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        with open(f"blocks-{trainer.global_rank}.jsonl", "a") as file:
            seen = [batch["step"], batch["block_ids"], batch["input_ids"].tolist(), trainer.world_size]
            file.write(json.dumps(seen) + "\\n")
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="starts processes that talk over gloo"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, short_documents: Path, texts: Path) -> Path:
    """A run of 2 steps on two processes, 2 on one, and 2 on four; half of a global batch at each end is of an epoch."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "record.py").write_text(RECORDER)
    settings = {
        "model": {
            "config": {
                "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2, "layers_per_router": 2,
            },
            "schedule": {"name": "constant", "warmup_steps": 1},
        },
        "data": {
            "mixture": [{"source": str(short_documents), "weight": 3.0}, {"source": str(texts), "weight": 1.0}],
            "sequence_length": 32, "global_batch_size": 8, "validation_fraction": 0.2,
        },
        "trainer": {
            "accelerator": "cpu", "strategy": "ddp", "val_check_interval": 1000, "check_val_every_n_epoch": None,
            "log_every_n_steps": 1, "enable_progress_bar": False, "enable_model_summary": False,
            "callbacks": [{"class_path": "record.RecordBlocks"}],
        },
        "checkpoint_every_n_steps": 1,
    }  # fmt: skip
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    for max_steps, devices, accumulate in ((2, 2, 2), (4, 1, 1), (6, 4, 1)):
        options = {
            "trainer.max_steps": max_steps, "trainer.devices": devices, "trainer.accumulate_grad_batches": accumulate,
            "data.micro_batch_size": 8 // devices // accumulate, "run_dir": folder / "run", "ckpt_path": "last",
        }  # fmt: skip
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", "settings.yaml", *words]
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr[-4000:]
    return folder


def test_each_step_reads_the_global_batch_of_one_process(folder: Path) -> None:
    seen: dict[int, list[int]] = {}
    ranks: dict[int, set[tuple[int, int]]] = {}
    rows: dict[int, list[int]] = {}
    for file in folder.glob("blocks-*.jsonl"):
        for line in file.read_text().splitlines():
            step, block_ids, inputs, world_size = json.loads(line)
            seen.setdefault(step, []).extend(block_ids)
            ranks.setdefault(step, set()).add((int(file.stem[-1]), world_size))
            rows |= dict(zip(block_ids, inputs, strict=True))
    data_settings = yaml.safe_load((folder / "settings.yaml").read_text())["data"]
    data = TokenDataModule(**data_settings | {"micro_batch_size": 8}, vocab_size=300)
    data.prepare_data()
    data.setup("fit")
    assert data.manifest.mixture is not None
    blocks = [source.train.blocks for source in data.manifest.mixture]
    for step in range(6):
        expected = mixed_block_indices(np.arange(8 * step, 8 * step + 8), blocks, [3.0, 1.0], seed=0)
        assert sorted(seen[step]) == sorted(expected.tolist())
        size = (2, 2, 1, 1, 4, 4)[step]
        assert ranks[step] == {(rank, size) for rank in range(size)}
    indices = np.array(sorted(rows))
    assert data.train_blocks.batch(indices)["input_ids"].tolist() == [rows[index] for index in sorted(rows)]


def test_tokens_and_epochs_of_each_source_are_logged_on(folder: Path) -> None:
    (metrics,) = [
        file.read_text().splitlines()
        for file in (folder / "run" / "csv").glob("*/metrics.csv")
        if "2" in file.parent.name
    ]
    names = metrics[0].split(",")
    figures = dict(zip(names, metrics[-1].split(","), strict=True))
    # 6 steps of 8 blocks of 32 tokens, three quarters of them of the first source.
    assert float(figures["data/short.jsonl/tokens"]) == 36 * 32
    (other,) = {name for name in names if name.startswith("data/") and name.endswith("/tokens")} - {
        "data/short.jsonl/tokens"
    }
    assert float(figures[other]) == 12 * 32
    epochs = {name: float(value) for name, value in figures.items() if name.endswith("/epochs")}
    assert len(epochs) == 2 and all(value > 0 for value in epochs.values())
