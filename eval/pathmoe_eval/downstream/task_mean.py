"""The mean of several tasks, with an interval from theirs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def task_mean(results: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The mean of tasks that have one metric each, every task weighing the same; None where one has another number.

    Its interval joins those of the tasks, whose documents are drawn independently: an end lies as far from the mean as
    the root of the summed squares of the ends' distances from their values, over the number of tasks (Zou and Donner,
    Construction of confidence limits about effect measures, 2008).

    Args:
        results: `TaskResult` as `tasks.json` has them.

    Returns:
        `value`, `interval`, and what chance has as `value_null`; None for one of the latter that a task lacks.
    """
    if not results or any(len(result["metrics"]) != 1 or result["metrics"][0]["value"] is None for result in results):
        return None
    metrics = [result["metrics"][0] for result in results]
    number = len(metrics)
    value = sum(one["value"] for one in metrics) / number
    interval = None
    if all(one["interval"] is not None for one in metrics):
        below = math.hypot(*(one["value"] - one["interval"][0] for one in metrics)) / number
        above = math.hypot(*(one["interval"][1] - one["value"] for one in metrics)) / number
        interval = (value - below, value + above)
    chances = [one["value_null"] for one in metrics]
    return {"value": value, "interval": interval, "value_null": None if None in chances else sum(chances) / number}
