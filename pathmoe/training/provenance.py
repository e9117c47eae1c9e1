"""What made a run: versions, commit and machine, to lie beside its checkpoints."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = (
    "pathmoe", "torch", "lightning", "transformers", "datasets", "tokenizers", "numpy", "pyarrow", "triton", "einops",
    "jsonargparse", "huggingface-hub", "safetensors", "pyyaml", "wandb", "scipy", "plotly",
)  # fmt: skip


def provenance() -> dict[str, str | int | bool | None]:
    """Versions of what computes, the source's commit (None outside a checkout) and the machine, as plain values."""
    facts: dict[str, str | int | bool | None] = {name: installed_version(name) for name in _PACKAGES}
    facts |= {"python": platform.python_version(), "platform": platform.platform(), "threads": torch.get_num_threads()}
    facts["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"
    # An installed package may lie inside a repository that knows nothing of it, such as that of the user's project.
    is_tracked = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    facts["git_commit"] = _git("rev-parse", "HEAD") if is_tracked else None
    changes = _git("status", "--porcelain", "--untracked-files=no") if is_tracked else None
    facts["git_dirty"] = None if changes is None else bool(changes)
    return facts


def installed_version(package: str) -> str | None:
    """The version of an installed package; None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    source = Path(__file__).resolve().parent
    try:
        run = subprocess.run(["git", "-C", str(source), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None
