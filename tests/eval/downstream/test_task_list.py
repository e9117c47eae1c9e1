"""Names and files to tasks with their data, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.tasks import TaskManager

from pathmoe_eval.downstream.task_list import load_tasks, name_of, recipe_of, tasks_of

QUESTION = {"context": "1 + 1 =", "choices": ["2", "3"], "answer": 0}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a file of questions."""
    monkeypatch.chdir(tmp_path)
    Path("questions.jsonl").write_text(json.dumps(QUESTION) + "\n")
    return tmp_path


def task(name: str, file: str = "questions.jsonl", **changes: Any) -> dict[str, Any]:
    """Settings of a task that has one of several choices to a context for its answer, in a file of JSON lines."""
    return {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": file},
        "test_split": "train", "output_type": "multiple_choice", "doc_to_text": "context", "doc_to_choice": "choices",
        "doc_to_target": "answer", "metric_list": [{"metric": "acc"}],
    } | changes  # fmt: skip


def write(file: str, content: dict[str, Any]) -> None:
    Path(file).write_text(yaml.safe_dump(content))


@pytest.mark.usefixtures("folder")
def test_files_are_tasks_in_the_order_of_their_list() -> None:
    write("sums.yaml", task("sums"))
    write("more.yaml", task("more_sums"))
    found = load_tasks("more.yaml, sums.yaml")
    assert [one.name for one in found] == ["more.yaml", "sums.yaml"]
    assert [[name_of(row) for row in one.rows] for one in found] == [["more_sums"], ["sums"]]
    assert not any(one.is_group for one in found)


def test_a_group_has_rows_of_its_tasks_and_of_groups_that_count_as_one(folder: Path) -> None:
    (folder / "tasks").mkdir()
    for name in ("a", "b", "c", "d"):
        write(f"tasks/{name}.yaml", task(name))
    write("tasks/pair.yaml", {"group": "pair", "task": ["b", "c"], "aggregate_metric_list": [{"metric": "acc"}]})
    write("tasks/tagged.yaml", task("tagged", tag=["marked"]))
    write("all.yaml", {"group": "all", "task": ["d", {"group": "pair"}, {"task": "a", "num_fewshot": 1}]})
    manager = TaskManager(include_path="tasks", include_defaults=False)
    group, tagged = load_tasks("all.yaml,marked", manager)
    assert (group.name, group.is_group) == ("all", True)
    assert [[name_of(task) for task in tasks_of(row)] for row in group.rows] == [["d"], ["b", "c"], ["a"]]
    assert [name_of(row) for row in group.rows] == ["d", "pair", "a"]
    assert group.rows[2].get_config("num_fewshot") == 1
    assert [name_of(row) for row in tagged.rows] == ["tagged"]


@pytest.mark.usefixtures("folder")
def test_a_recipe_knows_what_was_asked_for() -> None:
    for number, changes in enumerate(({}, {"description": "Sums. "}, {"doc_to_text": "{{context}} "}, {})):
        write(f"{number}.yaml", task("sums", **changes))
    first, described, text, same = (recipe_of(load_tasks(f"{number}.yaml")[0].rows[0]) for number in range(4))
    assert first == same
    assert len({first, described, text}) == 3


@pytest.fixture(scope="module")
def harness_tasks() -> TaskManager:
    """The tasks of the harness, which are many files."""
    return TaskManager()


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("", r"--tasks \(\) must be a list of names of lm_eval's tasks .*; name some$"),
        ("arc_easy,,piqa", r"--tasks \(arc_easy,,piqa\) must be a list of names"),
        ("arc_esy", r"--tasks \(arc_esy\) must be a list of .*; did you mean arc_easy( or \w+)*\?$"),
        ("of_unknown.yaml", r"--tasks \(arc_esy\) must be a list of .*; did you mean arc_easy"),
        ("of_unknown_group.yaml", r"--tasks \(mmlu_\) must be a list of .*; did you mean mmlu"),
        ("qqqqqqqqqqqqqq", r"--tasks \(qqqqqqqqqqqqqq\) must be a list of .*; `lm_eval ls tasks` lists them$"),
        ("no/such.yaml", r"--tasks \(no/such.yaml\) must be a file that is there; check the path$"),
        ("piqa", r"--tasks \(piqa\) must have its data on this machine where the hub can't be reached \(.*\); run it "),
        ("paper_0.9b", r"--tasks \(paper_0.9b\) must have its data on this machine .*allenai/ai2_arc"),
    ],
)
def test_a_list_that_can_not_be_had(listed: str, message: str, folder: Path, harness_tasks: TaskManager) -> None:
    write("of_unknown.yaml", {"group": "g", "task": ["arc_easy", {"task": "arc_esy", "num_fewshot": 3}]})
    write("of_unknown_group.yaml", {"group": "g", "task": [{"group": "mmlu_", "num_fewshot": 3}]})
    with pytest.raises(ValueError, match=f"^{message}") as refused:
        load_tasks(listed, harness_tasks)
    assert "\n" not in str(refused.value)


BAD_FILES = {
    "group: g\ntask: []": r"--tasks \(bad.yaml\) must hold tasks, but its groups hold none; add some to them$",
    "group: g\ntask: [a, {task: b}, {group: c}]": r"--tasks \(a\) must be a list of names",
    "task: [": r"--tasks \(bad.yaml\) could not be read \(\w+Error: .*\); mend it$",
    "[]": r"--tasks \(bad.yaml\) could not be read \(ValueError: .*\); mend it$",
    "x: 1": r"--tasks \(bad.yaml\) could not be loaded \(ValueError: Unknown config shape",
    yaml.safe_dump(task("a", doc_to_text="{{nothing}}")): r"--tasks \(bad.yaml\) could not be loaded \(UndefinedError",
    yaml.safe_dump(task("a", dataset_kwargs={"data_files": "no.jsonl"})): r"--tasks \(bad.yaml\) could not be loaded",
    yaml.safe_dump(task("a", num_fewshot=2)): r"--tasks \(a\): num_fewshot \(2\) must be at most the 1 examples that",
    yaml.safe_dump(task("a", unsafe_code=True)): r"--tasks \(a\) must not run code that a model has written; leave it",
    yaml.safe_dump(task("a", doc_to_image="context")): r"--tasks \(a\) must be of text alone",
}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("content", BAD_FILES)
def test_a_file_that_is_no_task_for_us(content: str) -> None:
    Path("bad.yaml").write_text(content)
    with pytest.raises(ValueError, match=f"^{BAD_FILES[content]}") as refused:
        load_tasks("bad.yaml")
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("folder")
def test_a_task_that_is_named_twice() -> None:
    write("one.yaml", task("sums"))
    write("two.yaml", task("sums"))
    with pytest.raises(ValueError, match=r"^--tasks \(sums\) must name each task once, but it is there 2 times; leave"):
        load_tasks("one.yaml,two.yaml")
    with pytest.raises(ValueError, match=r"^--tasks \(sums\) must name each task once"):
        load_tasks("one.yaml,one.yaml")
