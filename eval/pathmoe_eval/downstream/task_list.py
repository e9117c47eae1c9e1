"""Tasks by name: those of lm-evaluation-harness and YAML files of its form, with their data, or refused in a line."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import lm_eval.api.task as harness_task
from datasets import disable_progress_bars
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from pathmoe.data.hub import go_offline_without_hub
from pathmoe.training.config_files import config_folder

_SHIPPED = "tasks"
_DIGITS = 16
_TASKS_OF_THE_HARNESS = (
    "a list of names of lm_eval's tasks or groups, and of YAML files of such, with commas between them"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class NamedTasks:
    """What one name of a list stands for."""

    name: str
    rows: tuple[Task | Group, ...]
    """Tasks, and groups whose tasks count together as one: those that say how to aggregate."""
    is_group: bool
    """Whether the rows belong together, so that their mean says something."""


def load_tasks(listed: str, manager: TaskManager | None = None) -> list[NamedTasks]:
    """Load the tasks that a list names, with their data.

    Args:
        listed: names of the harness, files (a `task` or a `group`, as the harness has them), or names of files in
            `configs/tasks`, with commas between them.
        manager: of the tasks with names; None reads those of the harness where a name or a group asks for them, which
            takes seconds.

    Raises:
        ValueError: no name or an unknown one, a task that occurs twice, one whose data can't be had, one that runs code
            which models have written, one of images or sound, or one with fewer examples than it is to show.
    """
    names = [name.strip() for name in listed.split(",")]
    if not all(names):
        raise ValueError(f"--tasks ({listed}) must be {_TASKS_OF_THE_HARNESS}; name some")
    files = {name: _file(name) for name in names}
    contents = {name: _read(name, file) for name, file in files.items() if file is not None}
    if manager is None:
        # A group names its tasks.
        needs_names = len(contents) < len(files) or any("group" in content for content in contents.values())
        manager = TaskManager(include_defaults=needs_names)
    for name in files:
        for known in _names_in(contents[name]) if name in contents else [name]:
            _check_name(known, manager)
    has_hub = go_offline_without_hub()
    with quietly():
        loaded = [
            _load(name, _known(name, files[name], contents.get(name), manager), manager, has_hub) for name in names
        ]
    tasks = [task for named in loaded for row in named.rows for task in tasks_of(row)]
    if not tasks:
        raise ValueError(f"--tasks ({listed}) must hold tasks, but its groups hold none; add some to them")
    _check_once(tasks)
    for task in tasks:
        _check_kind(task)
        _check_shots(task)
    return loaded


def recipe_of(row: Task | Group) -> str:
    """Hash of the configuration, version and documents of each task of a row, but for where its file lies."""
    digest = hashlib.sha256()
    for task in tasks_of(row):
        config = task.dump_config() | {"metadata": None}
        examples = task.fewshot_docs() if config.get("num_fewshot") else ()
        for part in (config, str(task.VERSION), *task.eval_docs, "examples", *examples):
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:_DIGITS]


def name_of(row: Task | Group) -> str:
    """What a row is called."""
    return str(row.name if isinstance(row, Group) else row.task_name)


def tasks_of(row: Task | Group) -> list[Task]:
    """The tasks of a row."""
    return row.get_all_tasks() if isinstance(row, Group) else [row]


def _file(name: str) -> Path | None:
    """The file that a name stands for, also one that is shipped; None where it is the name of a task."""
    if Path(name).is_file():
        return Path(name)
    shipped = config_folder() / _SHIPPED / f"{Path(name).name.removesuffix('.yaml')}.yaml"
    is_named = name == shipped.stem or name.removesuffix(".yaml") == f"configs/{_SHIPPED}/{shipped.stem}"
    if is_named and shipped.is_file():
        return shipped
    if "/" in name or name.endswith((".yaml", ".yml")):
        raise ValueError(f"--tasks ({name}) must be a file that is there; check the path")
    return None


def _read(name: str, file: Path) -> dict[str, Any]:
    """What a file of a task or a group holds, functions as their names."""
    try:
        return load_yaml(file, resolve_func=False)
    except Exception as error:
        raise ValueError(f"--tasks ({name}) could not be read ({_reason(error)}); mend it") from error


def _names_in(content: Mapping[str, Any]) -> Iterator[str]:
    """The tasks and groups that a group takes from the harness; those that it defines itself are not among them."""
    for member in (content.get("task") or []) if "group" in content else []:
        if isinstance(member, str):
            yield member
        elif not {"dataset_path", "custom_dataset", "class"} & member.keys() and not isinstance(
            member.get("task"), list
        ):
            yield str(member.get("group") or member.get("task"))


def _check_name(name: str, manager: TaskManager) -> None:
    if name in manager.task_index:
        return
    close = get_close_matches(name, manager.all_tasks, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`lm_eval ls tasks` lists them"
    raise ValueError(f"--tasks ({name}) must be {_TASKS_OF_THE_HARNESS}; {hint}")


def _known(name: str, file: Path | None, content: Mapping[str, Any] | None, manager: TaskManager) -> str:
    """A name or file as `load` of the manager takes it: of files by itself only those of tasks, and groups by name."""
    if file is None or content is None:
        return name
    if "group" not in content:
        return str(file)
    group = str(content["group"])
    manager.task_index[group] = Entry(name=group, kind=Kind.GROUP, yaml_path=file.resolve(), cfg=dict(content))
    return group


def _load(name: str, known: str, manager: TaskManager, has_hub: bool) -> NamedTasks:
    try:
        loaded = manager.load([known])
    except Exception as error:
        # Whatever a task, its data and the code beside it may raise.
        if not has_hub and isinstance(error, ConnectionError):
            raise ValueError(
                f"--tasks ({name}) must have its data on this machine where the hub can't be reached "
                f"({_reason(error)}); run it once where it can be, and bring the cache (HF_HOME) from there"
            ) from error
        raise ValueError(
            f"--tasks ({name}) could not be loaded ({_reason(error)}); mend it, or leave it out"
        ) from error
    # The group that was asked for comes before those in it.
    group = next(iter(loaded.get("groups", {}).values()), None)
    if group is None:
        return NamedTasks(name=name, rows=tuple(loaded["tasks"].values()), is_group=False)
    return NamedTasks(name=str(group.name), rows=tuple(_rows(group)), is_group=True)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _rows(item: Task | Group) -> Iterator[Task | Group]:
    if isinstance(item, Group) and not item.has_aggregation:
        for child in item:
            yield from _rows(child)
    else:
        yield item


@contextmanager
def quietly() -> Iterator[None]:
    """Keep the harness from warning of what it takes for granted, and from bars where no terminal shows them."""
    logger, bar = logging.getLogger("lm_eval"), harness_task.tqdm
    level = logger.level
    logger.setLevel(logging.ERROR)
    harness_task.tqdm = partial(bar, disable=None)
    disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        harness_task.tqdm = bar


def _check_once(tasks: list[Task]) -> None:
    name, times = Counter(task.task_name for task in tasks).most_common(1)[0]
    if times > 1:
        raise ValueError(f"--tasks ({name}) must name each task once, but it is there {times} times; leave one out")


def _check_kind(task: Task) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise ValueError(f"--tasks ({task.task_name}) must not run code that a model has written; leave it out")
    if getattr(task, "MULTIMODAL", False):
        raise ValueError(f"--tasks ({task.task_name}) must be of text alone, not of images or sound; leave it out")


def _check_shots(task: Task) -> None:
    shots = task.get_config("num_fewshot") or 0
    if shots:
        # The harness shows no question its own answer where it takes both from one split.
        number = len(task.sampler.df) - (task.fewshot_cfg.split == task.get_config("test_split"))
        if shots > number:
            raise ValueError(
                f"--tasks ({task.task_name}): num_fewshot ({shots}) must be at most the {number} examples that it has; "
                "lower it"
            )
