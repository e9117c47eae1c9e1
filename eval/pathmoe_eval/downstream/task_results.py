"""A task evaluated by lm-evaluation-harness, and what it found as figures with intervals beside chance."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lm_eval import evaluate
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from scipy.stats import binomtest

from pathmoe_eval.downstream.harness_model import HarnessModel
from pathmoe_eval.downstream.task_list import name_of, quietly, recipe_of, tasks_of

CONFIDENCE = 0.95
_DIGITS = 16

# Metrics that one choice of several decides.
_OF_A_CHOICE = {"acc", "acc_norm", "acc_bytes", "acc_mutual_info"}


@dataclass(frozen=True, kw_only=True)
class MetricResult:
    """One figure of a task."""

    metric: str
    filter: str
    """Of the harness: what was done to completions before they were judged; none as a rule."""
    value: float | None
    """None where it is not finite."""
    interval: tuple[float, float] | None
    """Of a share of documents: Wilson's, at 95%, over the draw of documents. None of anything else."""
    value_null: float | None
    """What a choice at random is expected to have; None where there is no choice."""
    of_document: str | None
    """A character for each document in the task's order, 1 where it is right and 0 where not, for paired comparisons;
    None where the value is not their mean."""


@dataclass(frozen=True, kw_only=True)
class TaskPart:
    """One of the tasks that are evaluated together."""

    task: str
    num_fewshot: int
    num_documents: int
    metrics: tuple[MetricResult, ...]


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """A task, or a group whose tasks count as one."""

    task: str
    num_fewshot: int | None
    """None where the tasks of a group differ."""
    num_documents: int
    num_requests: int
    """Texts that the model scored or completed."""
    num_truncated: int
    """Those whose beginning was cut off, since they exceeded `max_length`."""
    recipe: str
    """Hash of the configuration of the task."""
    prompts_hash: str
    """Hash of all documents, prompts and targets: equal where two models were asked the very same."""
    metrics: tuple[MetricResult, ...]
    parts: tuple[TaskPart, ...] = ()
    """The tasks of a group."""


def evaluate_row(model: HarnessModel, row: Task | Group, limit: int | None, seed: int) -> TaskResult:
    """Evaluate a row of `load_tasks`.

    Args:
        model: to evaluate.
        row: a task, or a group whose tasks count as one.
        limit: documents of each task at most, from the beginning.
        seed: of the examples that stand before a question, and of completions that a task has drawn.
    """
    tasks = {str(task.task_name): task for task in tasks_of(row)}
    groups = {group.name: group for group in (row, *row.get_all_groups())} if isinstance(row, Group) else {}
    recipe = recipe_of(row)
    num_requests, num_truncated = model.num_requests, model.num_truncated
    for task in tasks.values():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    with quietly():
        found: Any = evaluate(model, {"tasks": tasks, "groups": groups}, limit=limit, bootstrap_iters=0)
    parts = tuple(_part(task, found) for task in tasks.values())
    shots = {part.num_fewshot for part in parts}
    return TaskResult(
        task=name_of(row),
        num_fewshot=shots.pop() if len(shots) == 1 else None,
        num_documents=sum(part.num_documents for part in parts),
        num_requests=model.num_requests - num_requests,
        num_truncated=model.num_truncated - num_truncated,
        recipe=recipe,
        prompts_hash=_prompts_hash([sample for samples in found["samples"].values() for sample in samples]),
        metrics=_joined(row, found, parts) if isinstance(row, Group) else parts[0].metrics,
        parts=parts if isinstance(row, Group) else (),
    )


def _prompts_hash(samples: Sequence[dict[str, Any]]) -> str:
    asked = [[sample[key] for key in ("doc_hash", "prompt_hash", "target_hash")] for sample in samples]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:_DIGITS]


def _metric_names(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Metric and filter of each figure, which the harness keeps as `metric,filter`."""
    pairs = [key.split(",", 1) for key in figures if "," in key]
    return [(metric, filter_) for metric, filter_ in pairs if not metric.endswith("_stderr")]


def _part(task: Task, found: dict[str, Any]) -> TaskPart:
    figures, samples = found["results"][task.task_name], found["samples"][task.task_name]
    metrics = []
    for metric, filter_ in _metric_names(figures):
        values = [sample[metric] for sample in samples if sample["filter"] == filter_ and metric in sample]
        chance = _chance(task, samples) if metric in _OF_A_CHOICE else None
        metrics.append(_metric(metric, filter_, figures[f"{metric},{filter_}"], values, chance))
    return TaskPart(
        task=str(task.task_name),
        num_fewshot=found["n-shot"][task.task_name],
        num_documents=found["n-samples"][task.task_name]["effective"],
        metrics=tuple(metrics),
    )


def _joined(group: Group, found: dict[str, Any], parts: Sequence[TaskPart]) -> tuple[MetricResult, ...]:
    """Figures of a group; where it weighs its tasks by their documents, they are of all of these."""
    figures = found["results"][group.name]
    pooled = {of_metric.metric for of_metric in group.aggregate_metric_list or () if of_metric.weight_by_size}
    joined = []
    for metric, filter_ in _metric_names(figures):
        of_parts = [one for part in parts for one in part.metrics if (one.metric, one.filter) == (metric, filter_)]
        digits = "".join(one.of_document or "" for one in of_parts) if metric in pooled else ""
        right_by_chance = [
            one.value_null * len(one.of_document) for one in of_parts if one.value_null and one.of_document
        ]
        chance = sum(right_by_chance) / len(digits) if digits and len(right_by_chance) == len(of_parts) else None
        value = figures[f"{metric},{filter_}"]
        joined.append(_metric(metric, filter_, value, [int(digit) for digit in digits], chance))
    return tuple(joined)


def _metric(metric: str, filter_: str, value: Any, values: Sequence[Any], chance: float | None) -> MetricResult:
    is_share = bool(values) and all(isinstance(one, int | float) and one in (0, 1) for one in values)
    is_share = is_share and math.isclose(sum(values) / len(values), value, abs_tol=1e-9)
    return MetricResult(
        metric=metric,
        filter=filter_,
        value=float(value) if isinstance(value, int | float) and math.isfinite(value) else None,
        interval=wilson_interval(int(sum(values)), len(values)) if is_share else None,
        value_null=chance if is_share else None,
        of_document="".join(str(int(one)) for one in values) if is_share else None,
    )


def wilson_interval(num_right: int, num_documents: int) -> tuple[float, float]:
    """Interval of a share (Wilson, Probable inference, the law of succession, and statistical inference, 1927)."""
    ends = binomtest(num_right, num_documents).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return float(ends.low), float(ends.high)


def _chance(task: Task, samples: Sequence[dict[str, Any]]) -> float | None:
    """Mean over documents of the right choices' share of all choices; None where the task has no choices."""
    if task.get_config("output_type") != "multiple_choice":
        return None
    # A metric has one sample of each document for each filter; documents with several count alike.
    shares = [_right_choices(sample["target"]) / len(task.doc_to_choice(sample["doc"])) for sample in samples]
    return sum(shares) / len(shares)


def _right_choices(target: Any) -> int:
    return len(target) if isinstance(target, list) else 1
