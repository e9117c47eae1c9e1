"""`pathmoe-eval geometry` as a user has it: the table, the report, and what is refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OlmoeConfig, OlmoeForCausalLM

from pathmoe.data import train_bpe
from pathmoe_eval.cli import main
from pathmoe_eval.geometry_command import default_layers

TEXT = "int f(int n) {\n    return n + 1;\n}\n"


@pytest.fixture(scope="module")
def models(fit_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a model of another family, a dense one, and documents of two domains."""
    folder = tmp_path_factory.mktemp("models")
    fit_tiny(folder / "run", layers_per_router=4)
    shape: dict[str, Any] = {
        "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 8
    }  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder / "dense")
    olmoe = OlmoeConfig(**shape, num_experts=6, num_experts_per_tok=2, pad_token_id=None)
    OlmoeForCausalLM(olmoe).save_pretrained(folder / "olmoe")
    for name in ("dense", "olmoe"):
        train_bpe([TEXT], 290).save_pretrained(folder / name)
    rows = [{"text": TEXT * (2 + number), "topic": "ab"[number % 2], "problem": number // 3} for number in range(6)]
    (folder / "topics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def run(models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Calls `pathmoe-eval geometry` with a line of arguments, in which M is the folder of models and OUT a new one."""

    def call(line: str) -> None:
        words = line.replace("M/", f"{models}/").replace("OUT", str(tmp_path / "out")).split()
        monkeypatch.setattr(sys, "argv", ["pathmoe-eval", "geometry", *words])
        main()

    return call


def test_a_run_has_a_table_and_a_report(
    run: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--model M/run --data c-functions --num_pairs 200 --num_token_classes 8 --out OUT")
    *table, last = capsys.readouterr().out.splitlines()[-11:]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    section = report["sections"]["geometry"]
    assert last.startswith(f"{tmp_path}/out/index.html: {section['num_tokens']:,} tokens;")
    assert max(map(len, table)) <= 80 and [line.split()[0] for line in table[2:]] == list("01234567")
    energy = section["layers"][3]["shared_direction"]["state_energy"]
    assert table[5].split()[1] == f"{energy:.1%}"
    shared = {(one["first_layer"], one["second_layer"]): one["shares_router"] for one in section["drift"]}
    assert [shared[layer, layer + 1] for layer in range(7)] == [True, True, True, False, True, True, True]
    assert all(shared[pair] for pair in ((0, 2), (0, 3), (4, 6), (4, 7))) and len(shared) == 11
    page = (tmp_path / "out" / "index.html").read_text()
    for title in ("Pairs of tokens", "Pairs of sequences", "The shared direction, and alignment", "Control and content",
                  "From layer to layer", "Along a block", "Geometry of routing of "):  # fmt: skip
        assert title in page
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.html", "report.json"]


def test_interventions_are_added(run: Callable[[str], None], tmp_path: Path) -> None:
    options = "--domain_key topic --layers [1] --num_pairs 150 --num_token_classes 5"
    changed = "--interventions true --prompt_tokens 8 --completion_tokens 6 --kept_share 0.5"
    run(f"--model M/olmoe --data M/topics.jsonl {options} {changed} --out OUT")
    sections = json.loads((tmp_path / "out" / "report.json").read_text())["sections"]
    assert sections["geometry_interventions"]["num_sequences"] == 6
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Geometry of routing of " in page and "Pruned experts" in page


def test_another_model_with_domains_and_chosen_layers(run: Callable[[str], None], tmp_path: Path) -> None:
    options = "--domain_key topic --layers [2,0] --num_pairs 150 --num_token_classes 5"
    run(f"--model M/olmoe --data M/topics.jsonl {options} --out OUT")
    section = json.loads((tmp_path / "out" / "report.json").read_text())["sections"]["geometry"]
    assert [layer["layer"] for layer in section["layers"]] == [0, 2] and section["drift"] == []
    sequences = section["layers"][0]["sequences"]
    assert sequences["domains"] == ["a", "b"] and sequences["across"]["usage_cosine"]["value"] is not None
    assert "across domains" in (tmp_path / "out" / "index.html").read_text()
    assert "trajectories" not in section["layers"][0]


def test_texts_of_several_authors_on_problems(run: Callable[[str], None], tmp_path: Path) -> None:
    options = "--domain_key topic --problem_key problem --num_pairs 150 --num_token_classes 5"
    run(f"--model M/olmoe --data M/topics.jsonl {options} --out OUT")
    layers = json.loads((tmp_path / "out" / "report.json").read_text())["sections"]["geometry"]["layers"]
    assert len(layers[0]["trajectories"]) == 4
    assert "by who wrote them" in (tmp_path / "out" / "index.html").read_text()


def test_it_is_added_to_the_report_of_paths_and_stays(
    run: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, models: Path, tmp_path: Path
) -> None:
    def paths() -> None:
        words = ["--model", f"{models}/olmoe", "--data", f"{models}/topics.jsonl", "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["pathmoe-eval", "paths", *words])
        main()

    paths()
    run("--model M/olmoe --data M/topics.jsonl --num_pairs 150 --num_token_classes 5 --out OUT")
    paths()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {"load", "concentration", "geometry"} <= report["sections"].keys()


BAD_INPUT = {
    "": "--model must be given; add it",
    "--model M/olmoe --data M/topics.jsonl --layers [3]": "--layers (3) must be from 0 to 2, the model's last; change",
    "--model M/olmoe --data M/topics.jsonl --num_pairs 5": "--num_pairs (5) must be at least 100; raise it",
    "--model M/olmoe --data M/topics.jsonl --max_documents 1": "--data (1 sequences) must hold at least 2; give more",
    "--model M/olmoe --data M/topics.jsonl --kept_share 0": "--kept_share (0.0) must be above 0 and at most 1; change",
    "--model M/olmoe --data M/topics.jsonl --problem_key x": "--problem_key (x) must be one of the keys of M/topics",
    "--model M/dense --data M/topics.jsonl": "model (LlamaForCausalLM) must have routers; pass a mixture-of-experts",
    "--model M/none": "--model (M/none) must be a model that is there, but no file or folder is; check the path",
}


@pytest.mark.parametrize("line", BAD_INPUT)
def test_bad_input_ends_in_one_line_and_status_2(
    line: str, run: Callable[[str], None], models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(f"{line} --out OUT")
    err = capsys.readouterr().err.replace(f"{models}/", "M/")
    assert end.value.code == 2 and err.startswith(f"error: {BAD_INPUT[line]}") and err.count("\n") == 1
    assert not (tmp_path / "out" / ".states").exists(), "nothing is left behind"


def test_few_layers_are_all_taken_and_many_are_sampled_with_neighbours() -> None:
    assert default_layers(range(8)) == list(range(8))
    assert default_layers(range(48)) == [0, 1, 24, 25, 46, 47]
    assert default_layers(range(9)) == [0, 1, 4, 5, 7, 8]
    blocks = [layer // 4 for layer in range(24)]
    assert default_layers(blocks) == [*range(4), *range(12, 16), *range(20, 24)]
