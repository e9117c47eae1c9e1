"""The mean of tasks: its value by hand, its interval against draws of the tasks' documents."""

import math
from typing import Any

import numpy as np
import pytest

from pathmoe_eval.downstream.task_mean import task_mean
from pathmoe_eval.downstream.task_results import wilson_interval


def result(num_right: int, num_documents: int, chance: float | None = 0.25, **changes: Any) -> dict[str, Any]:
    metric = {
        "metric": "acc", "value": num_right / num_documents, "interval": wilson_interval(num_right, num_documents),
        "value_null": chance,
    }  # fmt: skip
    return {"metrics": [metric | changes]}


def test_every_task_weighs_the_same() -> None:
    found = task_mean([result(10, 20), result(900, 1000, chance=0.75)])
    assert found is not None
    assert found["value"] == pytest.approx(0.7)
    assert found["value_null"] == pytest.approx(0.5)


def test_the_mean_of_one_task_is_that_task() -> None:
    one = result(13, 40)
    found = task_mean([one])
    assert found is not None
    assert found["interval"] == pytest.approx(one["metrics"][0]["interval"])


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng, shares, sizes = np.random.default_rng(0), (0.3, 0.55, 0.9), (60, 200, 40)
    held = 0
    for _ in range(400):
        found = task_mean([result(int(rng.binomial(n, p)), n) for p, n in zip(shares, sizes, strict=True)])
        assert found is not None
        low, high = found["interval"]
        held += low <= sum(shares) / 3 <= high
    assert held / 400 == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 400))


@pytest.mark.parametrize("missing", ["interval", "value_null"])
def test_what_one_task_lacks_the_mean_lacks(missing: str) -> None:
    found = task_mean([result(1, 2), result(1, 2, **{missing: None})])
    assert found is not None
    assert [key for key in found if found[key] is None] == [missing]


def test_tasks_of_several_metrics_or_without_a_value_have_no_mean() -> None:
    two = {"metrics": result(1, 2)["metrics"] * 2}
    assert task_mean([]) is None
    assert task_mean([result(1, 2), two]) is None
    assert task_mean([result(1, 2, value=None)]) is None
