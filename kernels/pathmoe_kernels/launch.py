"""What Triton launches share: compiler options, how many programs stay resident, and the ticket of the last one."""

from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

OPTIONS: dict[str, Any] = {"enable_fp_fusion": False}
"""Triton 3.10 changes the default of fused multiply-add; results are to be the same before and after."""

PROGRAMS_PER_MULTIPROCESSOR = 2


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter: `TRITON_INTERPRET=1`, set before they were imported."""
    return triton.knobs.runtime.interpret


def num_persistent_programs(num_chunks: int, device: torch.device) -> int:
    """Programs that share `num_chunks` chunks of work: as many as stay resident, and one when there is no work."""
    if device.type != "cuda":
        # In the interpreter, or compiling for another machine: few, so that programs share chunks.
        return max(1, min(num_chunks, 3))
    resident = PROGRAMS_PER_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(num_chunks, resident))


def ticket(device: torch.device) -> Tensor:
    """A zero that the programs of one launch count in, and that its last program sets back to zero.

    One for each stream: launches on one stream follow each other. A launch that a CUDA graph captures has one of its
    own, in the graph's memory: graphs may be replayed on several streams.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(1, dtype=torch.int32, device=device)
    return _ticket(device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0)


@cache
def _ticket(device: torch.device, _stream: int) -> Tensor:
    return torch.zeros(1, dtype=torch.int32, device=device)
