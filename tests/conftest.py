"""What every test runs in: offline, one thread a process, seeded, and with caches that are the session's own."""

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import register_random, settings

IS_XDIST_WORKER = "PYTEST_XDIST_WORKER" in os.environ


def _set_environment(session_dir: str) -> None:
    """Libraries read these when they are first imported, so this runs before any test module does."""
    os.environ.update(
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        DO_NOT_TRACK="1",
        WANDB_MODE="offline",
        WANDB_SILENT="true",
        # Workers and the processes that tests start run beside each other, and sums depend on the number of threads.
        OMP_NUM_THREADS="1",
        MKL_NUM_THREADS="1",
        TOKENIZERS_PARALLELISM="false",
    )
    # Triton's kernels run in its interpreter, which looks here when a kernel is defined, so before any import. Only who
    # asks for tests/kernels/test_on_gpu.py sets 0.
    os.environ.setdefault("TRITON_INTERPRET", "1")
    # One place for all workers, so that what a test prepares is prepared once.
    cache_variables = {
        "XDG_CACHE_HOME": "cache",
        "HF_HOME": "huggingface",
        "HYPOTHESIS_STORAGE_DIRECTORY": "hypothesis",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "TRITON_CACHE_DIR": "triton",
        "WANDB_DIR": "wandb",
        "WANDB_CACHE_DIR": "wandb-cache",
        "WANDB_CONFIG_DIR": "wandb-config",
        "WANDB_DATA_DIR": "wandb-data",
    }
    for variable, name in cache_variables.items():
        os.environ[variable] = os.path.join(session_dir, name)
        os.makedirs(os.environ[variable], exist_ok=True)
    for variable in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_TOKEN", "WANDB_API_KEY"):
        os.environ.pop(variable, None)


if not IS_XDIST_WORKER:  # workers are its children and inherit what it sets
    SESSION_DIR = tempfile.mkdtemp(prefix="pathmoe-tests-")
    _set_environment(SESSION_DIR)

settings.register_profile("pathmoe", deadline=None, derandomize=True, max_examples=50, print_blob=True)
settings.load_profile("pathmoe")


def pytest_unconfigure() -> None:
    """Remove the session's caches once every worker has ended."""
    if not IS_XDIST_WORKER:
        shutil.rmtree(SESSION_DIR, ignore_errors=True)


@dataclass(eq=False)
class _Rng:
    """A random state under the method names that hypothesis asks for."""

    seed: Callable[[int], Any]
    getstate: Callable[[], Any]
    setstate: Callable[[Any], None]


@pytest.fixture(scope="session", autouse=True)
def _seed_every_example() -> Iterator[None]:
    """Hypothesis replays an example that failed: without this, torch's state would differ from the first time."""
    import torch

    torch_rng = _Rng(torch.manual_seed, torch.get_rng_state, torch.set_rng_state)
    register_random(torch_rng)
    yield  # hypothesis keeps a weak reference only


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random state, whichever tests ran before it."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
