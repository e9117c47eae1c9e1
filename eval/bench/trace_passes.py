"""One pass over a trace on disk, alone in its process: python eval/bench/trace_passes.py exact trace/ 1000000

`exact` is everything that a report says of the concentration of paths and of cross-layer consistency, `sketch` is paths
in fixed memory; `analysis` is all that a report says of a trace, with classes, and `sketched` what it says with paths
in fixed memory. What a pass finds is printed as JSON, with the memory that it took.
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

from pathmoe_eval.experts.token_ids import with_next_ids
from pathmoe_eval.path_and_layer_counts import PathAndLayerCounts
from pathmoe_eval.paths.path_sketch import PathSketch
from pathmoe_eval.traces.trace import RoutingTrace, open_trace

MAX_CORES = 2
NUM_CLASSES = 12


def exact(trace: RoutingTrace) -> dict[str, Any]:
    """Concentration of whole paths and of blocks, and consistency; some of its figures."""
    counts = PathAndLayerCounts(trace.header)
    for chunk in trace.chunks():
        counts.update(chunk.expert_ids_NLK)
    sections = counts.sections()
    whole, consistency = sections["concentration"]["whole"]["entropy"], sections["consistency"]
    return {
        "num_tokens": whole["num_tokens"],
        "num_paths": whole["num_paths"],
        "entropy_bits": whole["entropy_bits"],
        "block_entropy_bits": [block["entropy_bits"] for block in sections["concentration"]["blocks"]],
        "adjacent_agreement": consistency["agreement_means"]["adjacent"],
        "adjacent_jaccard": consistency["overlap"]["jaccard_means"]["adjacent"],
        "adjacent_information_bits": consistency["information"]["corrected_bits_means"]["adjacent"],
    }


def analysis(trace: RoutingTrace) -> dict[str, Any]:
    """Every section, with classes that token ids decide in the place of those of a text; some figures."""
    return _analysis(trace, is_sketched=False)


def sketched(trace: RoutingTrace) -> dict[str, Any]:
    """Every section that there is with paths in fixed memory; some figures."""
    return _analysis(trace, is_sketched=True)


def _analysis(trace: RoutingTrace, *, is_sketched: bool) -> dict[str, Any]:
    # Here, so that the memory of the other passes is without torch and transformers, which come with it.
    from pathmoe_eval.analysis import Options, TraceCounts
    from pathmoe_eval.intervals.document_intervals import document_intervals

    counts = TraceCounts(trace, Options(sketch=is_sketched), has_classes=not is_sketched)
    for chunk, next_ids_N in with_next_ids(trace.chunks()):
        counts.update(chunk, next_ids_N, None if is_sketched else chunk.token_ids_N % NUM_CLASSES)
    document_intervals(trace, counts.routing_counts())
    sections = counts.sections()
    paths = sections["sketch" if is_sketched else "concentration"]["whole"]["entropy"]
    return {
        "num_tokens": paths["num_tokens"],
        "num_paths": paths["num_paths"],
        "entropy_bits": paths["entropy_bits"],
        "sections": sorted(sections),
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


PASSES: dict[str, Callable[[RoutingTrace], dict[str, Any]]] = {
    "exact": exact,
    "sketch": sketch,
    "analysis": analysis,
    "sketched": sketched,
}


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
