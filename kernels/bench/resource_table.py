"""RESOURCES.md: what every kernel takes on GPUs that need not be there, compiled anew."""

import hashlib
import os
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from cases import CAPABILITIES, Case, cases
from offline import SHARED_LIMITS, Resources, resources

KERNELS = Path(__file__).resolve().parents[1]
TABLE = KERNELS / "RESOURCES.md"

HEAD = """# What the kernels take

Registers and stack of a thread (cuobjdump) and shared memory of a block (the compiled kernel's metadata, bytes), for
sm_80 / sm_90 / sm_100. Written by `make resources`: compiled ahead of time, nothing was run. Stack must be zero, which
means that no register is spilled, and shared memory at most {limits} bytes.
Widths are multiples of 16 bytes. `route` has a bias, a mask, renormalised weights, a probability sum and all gradients.

Triton {triton}, sources {sources}.

| kernel | tokens a tile | experts | choices | dtype | scores | warps | registers | stack | shared memory |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def sources_hash() -> str:
    """Hash of all that decides what is compiled."""
    package = KERNELS / "pathmoe_kernels"
    others = [package / "launch.py", package / "route_tiles.py", KERNELS / "bench" / "cases.py"]
    sources = [*sorted(package.glob("*_triton.py")), *others]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def _compile(case: Case) -> list[Resources]:
    return [only for capability in CAPABILITIES for only in resources(case.launch, capability)]


def compile_all(wanted: list[Case]) -> dict[Case, list[Resources]]:
    """What each case takes on each of the GPUs, compiled in as many processes as there are cores."""
    # Spawned: compilers hold locks and threads that a fork would copy.
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        return dict(zip(wanted, pool.map(_compile, wanted), strict=True))


def row(case: Case, taken: list[Resources]) -> str:
    """A line of the table."""
    grid = [case.name, taken[0].tokens, case.num_experts, case.num_choices, case.dtype, case.scores, taken[0].warps]
    on_each = [" / ".join(str(getattr(one, field)) for one in taken) for field in ("registers", "stack", "shared")]
    return "| " + " | ".join("" if cell is None else str(cell) for cell in [*grid, *on_each]) + " |"


def failures(taken: dict[Case, list[Resources]]) -> list[str]:
    """Rows of kernels that spill, or that ask for more shared memory than there is."""
    return [
        row(case, all_of_it)
        for case, all_of_it in taken.items()
        for one, capability in zip(all_of_it, CAPABILITIES, strict=True)
        if one.stack or one.shared > SHARED_LIMITS[capability]
    ]


def compile_rows(wanted: list[Case]) -> list[str]:
    """The table's lines for these cases.

    Raises:
        ValueError: a kernel spills, or asks for more shared memory than there is.
    """
    taken = compile_all(wanted)
    if unfit := failures(taken):
        raise ValueError("\n".join(["these spill, or ask for more shared memory than there is:", *unfit]))
    return [row(case, all_of_it) for case, all_of_it in taken.items()]


def check_corners() -> str:
    """Compile the corners of the grid and compare them with the table.

    Raises:
        ValueError: they differ.
    """
    rows = compile_rows([case for case in cases() if case.is_corner()])
    kept = TABLE.read_text().splitlines()
    if other := [line for line in rows if line not in kept]:
        raise ValueError("\n".join(["RESOURCES.md has other rows than these; run make resources", *other]))
    return f"{len(rows)} rows of RESOURCES.md hold, for {len(CAPABILITIES)} GPUs"


def write_table() -> str:
    """Compile the whole grid and write the table."""
    rows = compile_rows(cases())
    limits = " / ".join(f"{SHARED_LIMITS[capability]:,}" for capability in CAPABILITIES)
    TABLE.write_text(
        HEAD.format(limits=limits, triton=version("triton"), sources=sources_hash()) + "\n".join(rows) + "\n"
    )
    return f"wrote {TABLE.name}: {len(rows)} rows"
