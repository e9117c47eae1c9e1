"""Memory of a process, against what it is known to take."""

import torch

from pathmoe.training.memory_use import host_memory_bytes, peak_memory_bytes, take_device_peaks

CPU = torch.device("cpu")


def test_peak_memory_is_in_bytes_and_never_falls() -> None:
    before = peak_memory_bytes(CPU)
    assert 2**25 < before < 2**42, "a process with torch in it takes more than 32 MiB"
    held = torch.ones(2**24)  # 64 MiB, touched
    during = peak_memory_bytes(CPU)
    del held
    assert before <= during <= peak_memory_bytes(CPU)


def test_memory_of_the_host_is_what_is_held_now() -> None:
    before = host_memory_bytes()
    held = torch.ones(2**26)  # 256 MiB, touched
    during = host_memory_bytes()
    del held
    assert 0.9 * 2**28 < during - before < 1.1 * 2**28
    assert host_memory_bytes() < during


def test_a_cpu_has_no_memory_of_its_own() -> None:
    assert take_device_peaks(CPU) == (0, 0)
