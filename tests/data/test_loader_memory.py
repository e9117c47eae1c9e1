"""Reading more blocks takes no more memory: what is mapped is the file's."""

import gc
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pathmoe.bench.loader import anonymous_bytes, peak_of_reading, write_blocks
from pathmoe.data.order import BatchGeometry, block_indices

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MIB = 2**20
LENGTH = 4096


def test_memory_does_not_grow_with_the_blocks(tmp_path: Path) -> None:
    geometry = BatchGeometry(micro_batch_size=4)
    peaks = []
    for number in (1000, 4000):  # 8 and 33 MB of tokens
        (tmp_path / str(number)).mkdir()
        blocks = write_blocks(tmp_path / str(number), 10, number // 10, LENGTH)
        order = partial(block_indices, num_blocks=number, seed=0)
        peak_of_reading(blocks, 20, geometry, order)
        gc.collect()
        before = anonymous_bytes()
        peaks.append(peak_of_reading(blocks, number // 4, geometry, order) - before)
    assert max(peaks) < 3 * MIB
    assert peaks[1] - peaks[0] < 2 * MIB


def test_what_a_process_holds_itself_is_seen() -> None:
    before = anonymous_bytes()
    held = np.ones(128 * MIB, dtype=np.uint8)  # more than an allocator takes from what was freed before
    assert anonymous_bytes() - before > 126 * MIB
    assert held.sum() == 128 * MIB
