"""What a process takes of its host's and of its device's memory, in bytes."""

import os
import resource
import sys
from pathlib import Path

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory so far: of the accelerator's allocator, or the process's resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _peak_resident_bytes()


def host_memory_bytes() -> int:
    """Resident set of this process now; where the system does not tell, the highest so far."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        return _peak_resident_bytes()
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def take_device_peaks(device: torch.device) -> tuple[int, int]:
    """Highest bytes that were allocated, and reserved by the allocator, since the last call; zeros on a CPU."""
    if device.type != "cuda":
        return 0, 0
    peaks = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peaks


def _peak_resident_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024
