"""`pathmoe-eval tasks` as a user has it: the table, `tasks.json`, going on, and what is refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pathmoe import PathMoEConfig, PathMoEForCausalLM
from pathmoe.data import train_bpe
from pathmoe.training.export import export_model
from pathmoe_eval.cli import main
from tests.eval.downstream.test_task_list import task

QUESTIONS = [{"context": f"{n} + 1 =", "choices": [str(n + 1), str(n + 2)], "answer": 0} for n in range(8)]


def save_model(folder: Path, seed: int = 0) -> None:
    shape = {
        "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 8, "max_position_embeddings": 64, "initializer_range": 0.4,
    }  # fmt: skip
    torch.manual_seed(seed)
    export_model(PathMoEForCausalLM(PathMoEConfig(**shape)), train_bpe(["1 + 1 = 2"], 290), folder)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Calls `pathmoe-eval tasks` in a folder with a model and two tasks; what it says on stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    save_model(Path("model"))
    Path("questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    for name in ("sums", "more"):
        Path(f"{name}.yaml").write_text(yaml.safe_dump(task(name)))
    # One group whose tasks are written out, so that no name of the harness is needed.
    Path("both.yaml").write_text(yaml.safe_dump({"group": "both", "task": [task("sums"), task("more")]}))

    def call(line: str) -> Any:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["pathmoe-eval", "tasks", *line.split()])
        main()
        return capsys.readouterr()

    return call


def read(folder: str = "tasks") -> dict[str, Any]:
    return json.loads((Path(folder) / "tasks.json").read_text())


def test_a_table_and_a_file_say_the_same(run: Callable[..., Any]) -> None:
    out = run("--model model --tasks sums.yaml,more.yaml --limit 6 --seed 3").out.splitlines()
    found = read()
    acc = found["tasks"]["sums"]["metrics"][0]
    assert acc["value"] == acc["of_document"].count("1") / 6
    low, high = acc["interval"]
    words = ["sums", "acc", "0", f"{acc['value']:.4f}", f"{low:.4f}", "to", f"{high:.4f}", "0.5000", "6"]
    assert out[1].split() == words
    assert out[2].split()[0] == "more"
    assert out[-1] == "tasks/tasks.json: every number"
    run_ = found["run"]
    assert run_["command"] == "pathmoe-eval tasks --model model --tasks sums.yaml,more.yaml --limit 6 --seed 3"
    assert (run_["model"], run_["dtype"], run_["max_length"]) == ("model", "float32", 64)
    assert (run_["limit"], run_["seed"], run_["batch_size"], run_["lm_eval"]) == (6, 3, 1, "0.4.13")
    assert len(run_["model_hash"]) == 16
    assert run_["versions"]["torch"] and "git_commit" in run_["versions"]
    assert found["means"] == {}


def test_the_same_command_does_not_evaluate_again_what_is_there(run: Callable[..., Any]) -> None:
    run("--model model --tasks sums.yaml")
    first = read()["tasks"]["sums"]
    captured = run("--model model --tasks sums.yaml,more.yaml")
    assert captured.err == "note: sums is in tasks/tasks.json, and is not evaluated again\n"
    assert captured.out.splitlines()[1].startswith("sums ")
    assert list(read()["tasks"]) == ["sums", "more"] and read()["tasks"]["sums"] == first
    Path("sums.yaml").write_text(yaml.safe_dump(task("sums", description="Sums. ")))
    assert run("--model model --tasks sums.yaml").err == ""
    assert read()["tasks"]["sums"]["prompts_hash"] != first["prompts_hash"]
    with Path("questions.jsonl").open("a") as questions:
        questions.write("\n" + json.dumps(QUESTIONS[0] | {"context": "2 + 3 ="}))
    assert run("--model model --tasks sums.yaml").err == "", "its file is as it was, and its questions are not"
    assert len(read()["tasks"]["sums"]["metrics"][0]["of_document"]) == 9
    assert read()["tasks"]["sums"]["versions"] == read()["run"]["versions"]


@pytest.mark.slow
def test_a_group_has_a_mean(run: Callable[..., Any]) -> None:
    out = run("--model model --tasks both.yaml").out.splitlines()
    found = read()
    (of_group,) = found["means"].values()
    values = [one["metrics"][0]["value"] for one in found["tasks"].values()]
    assert list(found["means"]) == ["both"]
    assert of_group["value"] == pytest.approx(sum(values) / 2)
    assert out[3].split()[:5] == ["mean", "of", "the", "tasks", f"{of_group['value']:.4f}"]
    Path("questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS[:5])))
    run("--model model --tasks both.yaml")
    values = [one["metrics"][0]["of_document"].count("1") / 5 for one in read()["tasks"].values()]
    assert read()["means"]["both"]["value"] == pytest.approx(sum(values) / 2), "of the questions as they are now"


def test_texts_that_are_too_long_are_told_of(run: Callable[..., Any]) -> None:
    assert run("--model model --tasks sums.yaml --max_length 4").err == (
        "note: 16 of 16 texts of sums lost their beginning: they exceed --max_length (4)\n"
    )


BAD_INPUT = {
    "--tasks sums.yaml": "--model must be given; add it",
    "--model model": "--tasks must be given; add it",
    "--model model --tasks ,": "--tasks (,) must be a list of names of lm_eval's tasks or groups, and of YAML files",
    "--model model --tasks none.yaml": "--tasks (none.yaml) must be a file that is there; check the path",
    "--model none/such --tasks sums.yaml": "--model (none/such) must be a run, a checkpoint or a folder that is there",
    "--model sums.yaml --tasks sums.yaml": "sums.yaml",
    "--model model --tasks sums.yaml --limit 0": "--limit (0) must be at least 1; raise it",
    "--model model --tasks sums.yaml --limit 0.5": "limit (0.5) must be of type int or null; change it",
    "--model model --tasks sums.yaml --batch_size 0": "--batch_size (0) must be at least 1; raise it",
    "--model model --tasks sums.yaml --seed -1": "--seed (-1) must be at least 0; raise it",
    "--model model --tasks sums.yaml --max_length 0": "--max_length (0) must be at least 1; raise it",
    "--model model --tasks sums.yaml --stride 3": "--stride (3) is not a known option; see --help",
    "--model model --tasks sums.yaml --device no": "--device (no) must be a device of this machine",
    "--model model --tasks sums.yaml --out model": "--out (model) must hold nothing but tasks.json, but holds ",
    "--model model --tasks sums.yaml --out sums.yaml": "--out (sums.yaml) must be a folder, but is a file; choose",
}


@pytest.mark.parametrize("line", BAD_INPUT)
def test_bad_input_ends_in_one_line_and_status_2(
    line: str, run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(line)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert BAD_INPUT[line] in error
    assert not Path("tasks").exists()


def test_another_evaluation_is_refused(run: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    run("--model model --tasks sums.yaml")
    before = read()
    save_model(Path("other"), seed=1)
    refused = {
        "--model other": f"holds one of model_hash {before['run']['model_hash']}, not ",
        "--model model --limit 2": "holds one of limit None, not 2;",
        "--model model --max_length 32": "holds one of max_length 64, not 32;",
        "--model model --dtype bfloat16": "holds one of model_hash ",
    }
    for line, message in refused.items():
        with pytest.raises(SystemExit, match="2"):
            run(f"{line} --tasks more.yaml")
        assert message in capsys.readouterr().err
    assert read() == before


@pytest.mark.parametrize("content", ["", "[]", '{"format": 0}', '{"format": 1, "run": 3}'])
def test_a_file_of_another_form_is_refused(
    content: str, run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tasks").mkdir()
    Path("tasks/tasks.json").write_text(content)
    with pytest.raises(SystemExit, match="2"):
        run("--model model --tasks sums.yaml")
    line = "tasks/tasks.json (of another form) must be what tasks has written; choose another --out"
    assert capsys.readouterr().err == f"error: {line}\n"
    assert Path("tasks/tasks.json").read_text() == content


def test_without_the_harness_it_says_what_to_install(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SystemExit, match="2"):
        run("--model model --tasks sums.yaml")
    error = capsys.readouterr().err
    assert error.startswith("error: lm_eval (") and error.endswith("pip install 'pathmoe[tasks]'\n")
    assert error.count("\n") == 1
