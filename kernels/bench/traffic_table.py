"""Two tables: the bytes that launches touch in the interpreter, and what a layer's launches take on a GPU at best."""

from bounds import Shape, Step, backward, forward
from one_layer import counted_layer, shape_of

COUNTED = shape_of(num_tokens=150, num_experts=60, num_choices=2, hidden_size=80, width=24, itemsize=2)
"""With a ragged last tile; the interpreter takes a second for it."""

MODELS = {
    "OLMoE": shape_of(num_tokens=32768, num_experts=64, num_choices=8, hidden_size=2048, width=1024, itemsize=2),
    "PathMoE 16B": shape_of(num_tokens=16384, num_experts=64, num_choices=6, hidden_size=2048, width=1408, itemsize=2),
}

BYTES_PER_SECOND = 3.35e12
"""An H100's (SXM, data sheet)."""
FLOPS_PER_SECOND = {2: 989e12, 4: 989e12 / 2 / 3}
"""An H100's, dense, by the bytes of a number: in bf16, and in fp32 as three products in TF32 at half of that rate."""


def counted_table() -> str:
    """Bytes of each argument: on paper, and those that loads and stores touch, once and as often as they do."""
    head = f"{'launch':28}{'argument':20}{'':6}{'bound':>8}{'distinct':>9}{'touched':>9}"
    lines = [f"Bytes in the interpreter, {_sizes(COUNTED)}", head]
    for step, launch in counted_layer(COUNTED):
        name = step.name
        for side in ("reads", "writes"):
            for argument, (distinct, touched) in getattr(launch, side).items():
                bound = getattr(step, side)[argument]
                lines.append(f"{name:28}{argument:20}{side:6}{bound:8}{distinct:9}{touched:9}")
                name = ""
    return "\n".join(lines)


def roofline_table(model: str) -> str:
    """Bytes, operations and least times of each launch of a layer."""
    shape = MODELS[model]
    bandwidth, rate = f"at {BYTES_PER_SECOND / 1e12:.2f} TB/s", f"at {FLOPS_PER_SECOND[shape.b] / 1e12:.0f} TFLOP/s"
    lines = [f"{model}, {_sizes(shape)}", f"{'launch':28}{'MB':>9}{bandwidth:>15}{'GFLOP':>9}{rate:>18}"]
    for name, steps in [("forward", forward(shape)), ("backward", backward(shape))]:
        lines += [_row(step, shape.b) for step in steps]
        least = sum(max(_seconds(step, shape.b)) for step in steps)
        lines.append(f"{name}, {len(steps)} launches, the longer time of each: {least * 1e6:.0f} us")
    return "\n".join(lines)


def gate_balance() -> str:
    """When the gate GEMM waits for memory."""
    bf16, fp32 = memory_bound_experts(2), memory_bound_experts(4)
    return f"The gate GEMM is memory-bound up to {bf16} experts in bf16, {fp32} in fp32."


def memory_bound_experts(itemsize: int) -> int:
    """The most experts for which 2 T D E operations take no longer than the T D b bytes of x."""
    return int(itemsize / 2 * FLOPS_PER_SECOND[itemsize] / BYTES_PER_SECOND)


def _sizes(shape: Shape) -> str:
    return " ".join(f"{field}={getattr(shape, field)}" for field in ("T", "E", "K", "D", "F", "b", "tile"))


def _seconds(step: Step, itemsize: int) -> tuple[float, float]:
    """For the bytes, and for the operations."""
    return step.bytes / BYTES_PER_SECOND, step.flops / FLOPS_PER_SECOND[itemsize]


def _row(step: Step, itemsize: int) -> str:
    memory, compute = (f"{seconds * 1e6:.1f} us" for seconds in _seconds(step, itemsize))
    operations = f"{step.flops / 1e9:9.1f}{compute:>18}" if step.flops else ""
    return f"{step.name:28}{step.bytes / 1e6:9.1f}{memory:>15}{operations}"
