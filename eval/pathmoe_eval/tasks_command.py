"""What `pathmoe-eval tasks` does: from a model and the names of tasks to a table and `tasks.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pathmoe.training.provenance import installed_version, provenance
from pathmoe.training.run_folder import write_text_atomically
from pathmoe_eval.commands import ModelOptions, now
from pathmoe_eval.downstream.task_mean import task_mean
from pathmoe_eval.evaluation.identity import model_identity
from pathmoe_eval.terminal_tables import task_lines

FORMAT = 1
TASKS_FILE = "tasks.json"

# What makes two evaluations one, so that the tasks of one go on with those of the other.
_IDENTITY = ("model_hash", "dtype", "max_length", "batch_size", "limit", "seed", "lm_eval")


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Which tasks, and how much of them."""

    tasks: str
    """Names of lm_eval's tasks and groups, YAML files of such, or of configs/tasks, with commas between them."""
    batch_size: int = 1
    """Texts of a forward at most; above 1, figures depend in their last bits on which texts meet."""
    limit: int | None = None
    """Documents of each task at most, from the beginning."""
    seed: int = 1234
    """Of the examples before a question, and of completions that a task has drawn; 1234 is the harness's own."""

    def __post_init__(self) -> None:
        """Refuse sizes below 1."""
        for name in ("batch_size", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name} ({value}) must be at least 1; raise it")
        if self.seed < 0:
            raise ValueError(f"--seed ({self.seed}) must be at least 0; raise it")


def tasks_command(model: ModelOptions, options: TaskOptions, out: Path, command: str) -> None:
    """Evaluate a model on tasks, print a table, and write `tasks.json`, anew after each task.

    A command that broke goes on, when it is given again, with the tasks that are not there yet.

    Raises:
        ValueError: lm_eval is not installed; what `load_tasks`, `open_model` and `HarnessModel` refuse; a folder of
            something else, or of another evaluation.
    """
    _check_harness()
    from pathmoe_eval.downstream.harness_model import HarnessModel
    from pathmoe_eval.downstream.task_list import load_tasks, name_of, recipe_of
    from pathmoe_eval.downstream.task_results import evaluate_row

    _refuse_other_files(out)
    named = load_tasks(options.tasks)
    opened = model.open()
    harness_model = HarnessModel(opened, model.windows(opened)["max_length"], options.batch_size)
    run = {
        "command": command,
        "model": opened.name,
        "tokenizer": opened.tokenizer_place,
        **model_identity(opened.model),
        "max_length": harness_model.max_length,
        "batch_size": options.batch_size,
        "limit": options.limit,
        "seed": options.seed,
        "lm_eval": installed_version("lm-eval"),
        "versions": provenance(),
        "created": now(),
    }
    done = _read_tasks(out, run) | {"run": run}
    for row in (row for one in named for row in one.rows):
        name, recipe = name_of(row), recipe_of(row)
        if name in done["tasks"] and done["tasks"][name]["recipe"] == recipe:
            sys.stderr.write(f"note: {name} is in {out / TASKS_FILE}, and is not evaluated again\n")
            continue
        result = evaluate_row(harness_model, row, options.limit, options.seed)
        if result.num_truncated:
            sys.stderr.write(
                f"note: {result.num_truncated:,} of {result.num_requests:,} texts of {name} lost their beginning: they "
                f"exceed --max_length ({harness_model.max_length})\n"
            )
        if name in done["tasks"]:
            done["means"] = {}  # some of which may be of what it was before
        done["tasks"][name] = asdict(result) | {"versions": run["versions"]}
        _write(out, done)
    results = [[done["tasks"][name_of(row)] for row in one.rows] for one in named]
    done["means"] |= {one.name: task_mean(of_one) for one, of_one in zip(named, results, strict=True) if one.is_group}
    _write(out, done)
    mean = done["means"][named[0].name] if len(named) == 1 and named[0].is_group else None
    for line in task_lines([result for of_one in results for result in of_one], mean):
        print(line)
    print(f"{out / TASKS_FILE}: every number")


def _write(out: Path, done: Mapping[str, Any]) -> None:
    write_text_atomically(out / TASKS_FILE, json.dumps({"format": FORMAT, **done}, indent=1, allow_nan=False) + "\n")


def _check_harness() -> None:
    try:
        import lm_eval  # noqa: F401  # whether it is there
    except ModuleNotFoundError as error:
        raise ValueError(f"lm_eval ({error}) must be installed for tasks: pip install 'pathmoe[tasks]'") from error


def _refuse_other_files(out: Path) -> None:
    """Refuse, before the work begins, a folder of something else."""
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.exists() else set()
    if foreign := sorted(names - {TASKS_FILE}):
        raise ValueError(
            f"--out ({out}) must hold nothing but {TASKS_FILE}, but holds {foreign[0]}; choose another folder"
        )


def _read_tasks(out: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """What is there of this evaluation: `tasks` and `means`, by name."""
    path = out / TASKS_FILE
    if not path.exists():
        return {"tasks": {}, "means": {}}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(found["format"])
        theirs, done = dict(found["run"]), {"tasks": dict(found["tasks"]), "means": dict(found["means"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} (of another form) must be what tasks has written; choose another --out") from error
    for key in _IDENTITY:
        if theirs.get(key) != run[key]:
            raise ValueError(
                f"--out ({out}) must hold no other evaluation, but holds one of {key} {theirs.get(key)}, not "
                f"{run[key]}; choose another folder"
            )
    return done
