"""One pass over a trace on disk, alone in its process: python eval/bench/trace_passes.py exact trace/ 1000000

`exact` is everything that a report says of the concentration of paths and of cross-layer consistency, `sketch` is paths
in fixed memory. What it finds is printed as JSON, with the memory that it took.
"""

# Shapes: N tokens, L MoE layers, K experts per token.

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pathmoe_eval.layer_blocks import layer_blocks
from pathmoe_eval.layers.consistency import ConsistencyCounts
from pathmoe_eval.paths.concentration import concentration
from pathmoe_eval.paths.path_blocks import BlockCounts
from pathmoe_eval.paths.path_sketch import PathSketch
from pathmoe_eval.paths.paths import PathCounts
from pathmoe_eval.traces.trace import RoutingTrace, open_trace

MAX_CORES = 2


def exact(trace: RoutingTrace) -> dict[str, Any]:
    """Concentration of whole paths and of blocks, and consistency; some of its figures."""
    header = trace.header
    layers = {"num_layers": header.num_layers, "num_experts": header.num_experts}
    paths = PathCounts(**layers)
    blocks = BlockCounts(blocks=layer_blocks(header.router_of_layer), **layers)
    consistency = ConsistencyCounts(
        **layers, num_experts_per_tok=header.num_experts_per_tok, router_of_layer=header.router_of_layer
    )
    for chunk in trace.chunks():
        top1_NL = chunk.expert_ids_NLK[..., 0]
        paths.update(top1_NL)
        blocks.update(top1_NL)
        consistency.update(chunk.expert_ids_NLK)
    whole, parts, across = concentration(paths), blocks.result(), consistency.result()
    return {
        "num_tokens": whole.entropy.num_tokens,
        "num_paths": whole.entropy.num_paths,
        "entropy_bits": whole.entropy.entropy_bits,
        "block_entropy_bits": [block.entropy_bits for block in parts],
        "adjacent_agreement": across.agreement_means.adjacent,
        "adjacent_jaccard": across.overlap.jaccard_means.adjacent,
        "adjacent_information_bits": across.information.corrected_bits_means.adjacent,
    }


def sketch(trace: RoutingTrace) -> dict[str, Any]:
    """Paths in fixed memory: distinct ones, entropy, their standard errors, and the bytes of what is remembered."""
    counts = PathSketch(num_layers=trace.header.num_layers, num_experts=trace.header.num_experts)
    most_bytes = 0
    for chunk in trace.chunks():
        counts.update(chunk.expert_ids_NLK[..., 0])
        arrays = [value for value in vars(counts).values() if isinstance(value, np.ndarray)]
        most_bytes = max(most_bytes, sum(array.nbytes for array in arrays))
    result = counts.result()
    return {
        "num_tokens": result.num_tokens,
        "num_paths": result.num_paths,
        "num_paths_standard_error": result.num_paths_standard_error,
        "entropy_bits": result.entropy_bits,
        "entropy_standard_error_bits": result.entropy_standard_error_bits,
        "array_bytes": most_bytes,
    }


PASSES: dict[str, Callable[[RoutingTrace], dict[str, Any]]] = {"exact": exact, "sketch": sketch}


def peak_bytes() -> int:
    """The most memory that was resident in this process at a time, mapped pages of files included."""
    status = Path("/proc/self/status")
    if status.exists():
        # What Linux gives as ru_maxrss begins with that of the process that started this one.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    unit = 1 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Run the pass that the arguments name over the first tokens of a trace, and print what it found."""
    name, folder, num_tokens = sys.argv[1:]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:MAX_CORES])
    found = PASSES[name](open_trace(folder).first(int(num_tokens)))
    print(json.dumps(found | {"peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main()
