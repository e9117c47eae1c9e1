"""Some of many, evenly spread."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def even_choice(number: int, at_most: int) -> NDArray[np.int64]:
    """Places among `number`, ascending: all, or `at_most` of them, the first and the last included from 2 on."""
    return np.linspace(0, max(number - 1, 0), min(number, at_most)).round().astype(np.int64)
