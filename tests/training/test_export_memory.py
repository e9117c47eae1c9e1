"""What an export of a sharded checkpoint holds in memory: the model, and neither optimizer states nor a second copy."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import save

import pathmoe

SHAPE = {
    "vocab_size": 300, "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
    "moe_intermediate_size": 512, "num_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip

# Prints its peak in bytes. That of getrusage would be the peak of whoever started it, if that is higher.
EXPORT = """
import re, sys
from pathlib import Path
from pathmoe.training.export import export_command
if len(sys.argv) > 1:
    export_command(["--ckpt_path", sys.argv[1], "--out", sys.argv[2]])
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)
"""


def peak_bytes(cwd: Path, *arguments: str) -> int:
    ended = subprocess.run([sys.executable, "-c", EXPORT, *arguments], cwd=cwd, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak as Linux counts it")
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
def test_an_export_needs_the_model_and_little_more(finished_run: Any, tmp_path: Path) -> None:
    for name in ("tokenizer", "config.yaml"):
        path = finished_run.folder / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / name)
    model = pathmoe.PathMoEForCausalLM(pathmoe.PathMoEConfig(**SHAPE))
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    states = {name: {"exp_avg": torch.rand_like(w), "exp_avg_sq": torch.rand_like(w)} for name, w in weights.items()}
    save({"state_dict": weights, "optimizer_0": {"state": states}}, checkpoint_id=tmp_path / "last.ckpt", no_dist=True)
    rest = {"pathmoe": {"config": model.config.to_dict()}, "global_step": 1}
    torch.save(rest, tmp_path / "last.ckpt" / "meta.pt")
    model_bytes = sum(tensor.nbytes for tensor in weights.values())
    assert model_bytes > 100e6, "large enough to tell"
    used = peak_bytes(tmp_path, "last.ckpt", "exported") - peak_bytes(tmp_path)
    print(f"{used / model_bytes:.2f} times the model's {model_bytes / 1e6:.0f} MB")
    assert used < 1.6 * model_bytes
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    assert all(torch.equal(tensor, weights[f"model.{name}"]) for name, tensor in exported.items())
