"""`make bench-kernels`: the kernels and the whole MoE layer on a GPU, beside transformers' experts implementations."""

# Shapes: B batch, S sequence, D hidden.

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathmoe.bench.kernel_ops import Work, ceilings, expert_flops, kernel_ops
from pathmoe.bench.kernel_report import layer_call, markdown, rows_of, speeds_of, targets_of
from pathmoe.bench.kernel_shapes import kernel_shapes
from pathmoe.bench.layer import LayerShape, layer_pass
from pathmoe.bench.layer_peers import PEERS, Layer, Layers, agreeing_layers
from pathmoe.bench.paired import Timer, cuda_timer, paired_seconds
from pathmoe.bench.tests_first import run_tests
from pathmoe.training.config_files import config_folder
from pathmoe.training.errors import OneLineParser, fail, with_one_line_errors
from pathmoe.training.provenance import installed_version, provenance
from pathmoe_kernels.device import runs_triton

FORWARD, BOTH = PASSES = ("forward", "fwd+bwd")

MADE_BY = ("device", "torch", "triton", "transformers", "python", "platform", "git_commit", "git_dirty")
"""What of `provenance` a figure depends on."""

METHOD = (
    "Medians over rounds in which all calls of a table take turns. A random gate",
    "chooses experts for random hidden states. A rate is what a call can't do",
    "without, bytes or FLOPs, over its time, and a fraction is of the rate of `copy`",
    "or `matmul` in the same table. `route` includes the sort, a layer its router.",
)


class Setting(NamedTuple):
    """Where and how calls are timed."""

    device: torch.device
    dtype: torch.dtype
    rounds: int
    seconds_of: Timer
    copied_bytes: int = 1 << 30
    matmul_size: int = 8192


def layer_works(shape: LayerShape, layers: Layers) -> dict[str, Work]:
    """Both passes of each candidate, with the FLOPs of its experts and its router."""
    T, D, _, E, _ = shape.sizes()
    flops = expert_flops(shape) + 2 * T * D * E
    works = {}
    for name, layer in layers.layers.items():
        both = layer_pass(layer.forward, layer.parameters, layers.x_BSD, layers.grad_BSD)
        works[layer_call(FORWARD, name)] = Work(partial(_without_gradients, layer, layers.x_BSD), "matmul", flops)
        works[layer_call(BOTH, name)] = Work(both, "matmul", 3 * flops)
    return works


@torch.no_grad()
def _without_gradients(layer: Layer, x_BSD: Tensor) -> Tensor:
    return layer.forward(x_BSD)


def measure(name: str, shape: LayerShape, setting: Setting, peers: tuple[str, ...] = PEERS) -> dict[str, Any]:
    """All figures of one shape, as plain values."""
    device, dtype, rounds, seconds_of, copied_bytes, matmul_size = setting
    layers = agreeing_layers(shape, device, dtype, peers)
    works = {
        **ceilings(device, dtype, copied_bytes, matmul_size),
        **kernel_ops(shape, device, dtype),
        **layer_works(shape, layers),
    }
    seconds = paired_seconds({key: work.call for key, work in works.items()}, rounds, seconds_of=seconds_of)
    rows, speeds = rows_of(works, seconds), speeds_of(seconds, PASSES, [key for key in layers.layers if key != "ours"])
    return {
        "name": name,
        "sizes": shape.described(),
        "busiest expert over mean": layers.busiest_over_mean,
        "rows": [row._asdict() for row in rows],
        "speeds": [speed._asdict() for speed in speeds],
        "targets": [target._asdict() for target in targets_of(rows, speeds, BOTH)],
        "left out": layers.left_out,
    }


def results_of(shapes: Mapping[str, LayerShape], setting: Setting, peers: tuple[str, ...] = PEERS) -> dict[str, Any]:
    """What made the figures, how, and the figures, as plain values."""
    facts = provenance()
    made_by = {key: facts[key] for key in MADE_BY}
    made_by |= {"driver": driver_version(), "cuda": torch.version.cuda, "kernels": installed_version("kernels")}
    return {
        "made by": made_by | {"dtype": str(setting.dtype), "rounds": setting.rounds},
        "method": METHOD,
        "shapes": [measure(name, shape, setting, peers) for name, shape in shapes.items()],
    }


def driver_version() -> str | None:
    """Of the NVIDIA driver; None where `nvidia-smi` can't be asked."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # A line for each GPU.
    return run.stdout.splitlines()[0].strip() if run.returncode == 0 and run.stdout else None


def write(results: Mapping[str, Any], folder: Path) -> None:
    """`kernels.json` and `kernels.md`."""
    (folder / "kernels.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "kernels.md").write_text(markdown(results))


def no_gpu() -> str | None:
    """Why the kernels can't be timed here; None where they can."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    if not runs_triton(torch.empty(0, device="cuda")):
        return f"{torch.cuda.get_device_name()} does not run the kernels: an NVIDIA GPU of sm_80 or newer does"
    return None


def refuse_the_interpreter() -> None:
    """End where kernels would run in Triton's interpreter."""
    from pathmoe_kernels.launch import interpreting

    if interpreting():
        fail("TRITON_INTERPRET (1) must not be set, as the kernels would run in an interpreter; unset it")


@contextmanager
def one_line_for_too_little_memory(num_tokens: int) -> Iterator[None]:
    """End in one line where the device's memory does not suffice."""
    try:
        yield
    except torch.OutOfMemoryError:
        fail(f"--tokens ({num_tokens}) takes more memory than is free on the device; lower it, or free some")


def main() -> None:
    """Test on the GPU what is timed, time it, and write and print the figures; without a GPU say so."""
    parser = OneLineParser(prog="python -m pathmoe.bench.kernels", description=__doc__)
    parser.add_argument("--tokens", type=int, default=32768, help="Tokens of a call.")
    parser.add_argument("--rounds", type=int, default=30, help="Rounds that are timed.")
    parser.add_argument("--out", default="runs/bench-kernels", help="Folder for kernels.json and kernels.md.")
    options = parser.parse_args()
    for key, value, least in (("tokens", options.tokens, 1), ("rounds", options.rounds, 2)):
        if value < least:
            fail(f"--{key} ({value}) must be at least {least}; raise it")
    folder = Path(options.out)
    if folder.exists() and not folder.is_dir():
        fail(f"--out ({folder}) must be a folder, and is a file; choose another")
    if reason := no_gpu():
        print(f"no figures: {reason}")
        return
    refuse_the_interpreter()
    folder.mkdir(parents=True, exist_ok=True)
    root = config_folder().parent
    run_tests(root, ("kernels", "pathmoe/test_experts.py", "pathmoe/test_moe.py"), ("-m", "not slow"))
    # Without the interpreter, which the tests ask for unless told otherwise.
    run_tests(
        root, ("kernels/test_on_gpu.py", "kernels/test_on_gpu_launches.py"), environment={"TRITON_INTERPRET": "0"}
    )
    with one_line_for_too_little_memory(options.tokens):
        setting = Setting(torch.device("cuda"), torch.bfloat16, options.rounds, cuda_timer())
        results = results_of(kernel_shapes(options.tokens), setting)
    write(results, folder)
    print(markdown(results))


if __name__ == "__main__":
    with_one_line_errors(main)
