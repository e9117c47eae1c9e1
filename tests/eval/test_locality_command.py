"""`pathmoe-eval locality` as a user has it, with a tiny run and real compilers; and what it refuses."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OlmoeConfig, OlmoeForCausalLM

from pathmoe.data import train_bpe
from pathmoe_eval.cli import main
from pathmoe_eval.generation.tree_files import read_tree, write_tree

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here")

PROMPT = "int f(int n) {\n"
SEARCH = "--top_tokens 3 --max_mass 0.1 --num_children 2 --max_new_tokens 80 --temperature 1.0 --max_forks 30"
CHEAP = "--num_permutations 9 --num_resamples 20 --num_workers 1"
# What depends on how many sequences a forward had.
COUNTED = ("num_forwarded", "num_read_again")


@pytest.fixture(scope="module")
def models(fit_tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a dense model, prompts and a tree that the run made."""
    folder = tmp_path_factory.mktemp("models")
    fit_tiny(folder / "run")
    (folder / "f.c").write_text(PROMPT)
    (folder / "other.c").write_text("void g(int n) {\n")
    (folder / "f.txt").write_text(PROMPT)
    (folder / "latin.c").write_bytes(b"// \xe9\n")
    (folder / "long.c").write_text(PROMPT * 200)
    (folder / "nothing").mkdir()
    bpe = train_bpe([PROMPT], 290)
    shape: dict[str, Any] = {
        "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8
    }  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder / "dense")
    olmoe = OlmoeConfig(**shape, num_experts=6, num_experts_per_tok=2, pad_token_id=None)
    OlmoeForCausalLM(olmoe).save_pretrained(folder / "olmoe")
    for name in ("dense", "olmoe"):
        bpe.save_pretrained(folder / name)
    return folder


@pytest.fixture
def run(models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Calls `pathmoe-eval locality` with a line of arguments, in which M is the folder of models and OUT a new one."""

    def call(line: str) -> None:
        words = line.replace("M/", f"{models}/").replace("OUT", str(tmp_path / "out")).split()
        monkeypatch.setattr(sys, "argv", ["pathmoe-eval", "locality", *words])
        main()

    return call


def sections(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "report.json").read_text())["sections"]
    for name in COUNTED:
        del found["tree"][name]
    return found


def test_a_prompt_becomes_a_report_and_a_tree_that_gives_the_same_report(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(f"--model M/run --prompt M/f.c {SEARCH} {CHEAP} --out OUT")
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines[:-1]) and "every number is in" in lines[-1]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (tmp_path / "out" / "index.html").stat().st_size > 1_000_000
    assert set(report["sections"]) == {"tree", "equivalence", "decomposition", "union_growth", "caches", "phases"}
    tree, made_from = read_tree(tmp_path / "out" / "tree")
    found = report["sections"]["tree"]
    assert found["num_completions"] == len(tree.completions()) > 5
    assert made_from["prompt"] == PROMPT and Path(made_from["prompt_file"]).name == "f.c"
    # Every token of the tree was forwarded once, and few of what the limit then left out.
    assert found["num_forwarded"] - int(tree.has_routing_N.sum()) < 200
    facts = report["run"]
    assert (facts["data"], facts["num_tokens"]) == ("f.c", tree.prompt_length)
    assert facts["num_generated"] == tree.num_nodes - tree.prompt_length
    assert "max_mass 0.1" in facts["sampling"] and "max_forks 30" in facts["limits"] and "-O0" in facts["compiler"]
    assert facts["command"].startswith("pathmoe-eval locality --model ")
    # An expert of 16 x 8: gate, up and down, in float32.
    assert report["sections"]["caches"][0]["bytes_per_expert"] == 3 * 16 * 8 * 4

    run(f"--trace {tmp_path}/out/tree {CHEAP} --out {tmp_path}/again")
    assert sections(tmp_path / "again") == sections(tmp_path / "out")


def test_a_tree_is_analysed_again_with_its_own_seed_and_with_another(run: Callable[..., None], tmp_path: Path) -> None:
    run(f"--model M/run --prompt M/f.c {SEARCH} {CHEAP} --pairs [any,siblings_any] --seed 3 --out OUT")
    run(f"--trace {tmp_path}/out/tree {CHEAP} --pairs [any,siblings_any] --out {tmp_path}/again")
    assert sections(tmp_path / "again") == sections(tmp_path / "out")
    run(f"--trace {tmp_path}/out/tree {CHEAP} --pairs [any,siblings_any] --seed 4 --out {tmp_path}/other")
    report = json.loads((tmp_path / "other" / "report.json").read_text())
    assert report["run"]["seed"] == 4 and "seed 3" in report["run"]["sampling"]
    assert {one["seed"] for one in report["sections"]["decomposition"]} == {4}


def test_the_report_does_not_depend_on_the_batch_size(run: Callable[..., None], tmp_path: Path) -> None:
    for batch_size in (1, 16):
        run(f"--model M/run --prompt M/f.c {SEARCH} {CHEAP} --batch_size {batch_size} --out {tmp_path}/{batch_size}")
    one, many = sections(tmp_path / "1"), sections(tmp_path / "16")
    # Sums of a batch round otherwise.
    of_one, of_many = (found["tree"].pop("mean_completion_log_probability") for found in (one, many))
    assert of_one == pytest.approx(of_many, abs=1e-3)
    assert one == many


def test_the_same_again_decodes_nothing_and_higher_limits_take_the_place_of_the_report(
    run: Callable[..., None], tmp_path: Path
) -> None:
    line = f"--model M/run --prompt M/f.c {SEARCH} {CHEAP} --out OUT --max_completions"
    run(f"{line} 2")
    first = sections(tmp_path / "out")
    forwarded = json.loads((tmp_path / "out" / "report.json").read_text())["sections"]["tree"]["num_forwarded"]
    run(f"{line} 2")
    assert sections(tmp_path / "out") == first
    again = json.loads((tmp_path / "out" / "report.json").read_text())["sections"]["tree"]
    assert again["num_forwarded"] == forwarded > again["num_prompt_tokens"]
    run(f"{line} 5")
    assert sections(tmp_path / "out")["tree"]["num_completions"] >= 5 > first["tree"]["num_completions"]


@pytest.mark.parametrize("model", ["run", "olmoe"])
def test_independent_samples_of_any_model_are_studied_as_trees_are(
    run: Callable[..., None], tmp_path: Path, model: str
) -> None:
    search = "--num-samples 40 --max-new-tokens 60 --temperature 1"
    run(f"--model M/{model} --prompt M/f.c {search} {CHEAP} --out OUT")
    found = sections(tmp_path / "out")
    assert found["tree"]["method"] == "samples" and found["tree"]["num_completions"] > 1
    assert found["tree"]["num_completions"] + found["tree"]["num_cut"] == 40 and found["tree"]["num_forks"] == 1


def test_other_languages_and_levels(run: Callable[..., None], tmp_path: Path, models: Path) -> None:
    run(f"--model M/run --prompt M/f.txt {SEARCH} {CHEAP} --language python --level O1 --out OUT")
    levels = sections(tmp_path / "out")["equivalence"]["levels"]
    assert [(level["language"], level["level"]) for level in levels] == [
        ("python", "O1"), ("python", "O0"), ("python", "O2")
    ]  # fmt: skip
    if shutil.which("g++"):
        run(f"--trace OUT/tree {CHEAP} --language c++ --out {tmp_path}/again")
        assert {level["language"] for level in sections(tmp_path / "again")["equivalence"]["levels"]} == {"c++"}


def test_where_nothing_compiles_it_is_said_how_to_compare_all(
    run: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    run(f"--model M/run --prompt M/f.txt {SEARCH} {CHEAP} --language python --out OUT")
    note = capsys.readouterr().err
    assert note.startswith("note: none of ") and "--pairs [any]" in note and note.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--prompt M/other.c", "must hold no other report"),
        (
            "--prompt M/f.c --temperature 0.5",
            "must hold no report of another search, but holds one of tree, temperature",
        ),
        ("--prompt M/f.c --num_samples 3", "not samples, temperature 1.0, max_new_tokens 80, seed 0; choose another"),
    ],
)
def test_another_search_in_the_folder_is_refused(
    run: Callable[..., None], capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    run(f"--model M/run --prompt M/f.c {SEARCH} {CHEAP} --out OUT")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        run(f"--model M/run {SEARCH} {CHEAP} --out OUT {options}")
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


ERRORS = {
    "--prompt M/f.c": "--model (None) or --trace (None) must be given, and not both",
    "--model M/run --trace M/nothing": "must be given, and not both",
    "--model M/run": "--prompt (None) must be a file whose text the model goes on from; give one",
    "--model M/run --prompt M/none.c": "none.c: No such file or directory) must be a file of text; check the path",
    "--model M/run --prompt M/nothing": "nothing: Is a directory) must be a file of text; check the path",
    "--model M/run --prompt M/latin.c": "latin.c: not UTF-8) must be a file of text; save it as UTF-8",
    "--model M/run --prompt M/f.txt": "--language (None) must be c, c++ or python where the prompt's file (M/f.txt)",
    "--model M/run --prompt M/f.c --language rust": "language (rust) must be",
    "--model M/run --prompt M/f.c --compiler nothing": "--compiler (nothing) must be a compiler that is installed;",
    "--model M/run --prompt M/f.c --compiler false": "--compiler (false) must be a compiler of c that works here",
    "--model M/run --prompt M/f.c --level O9": "level (O9) must be",
    "--model M/run --prompt M/f.c --num_workers 0": "--num_workers (0) must be at least 1; raise it",
    "--model M/run --prompt M/f.c --pairs []": "--pairs ([]) must name one or more, each once; change it",
    "--model M/run --prompt M/f.c --pairs [near]": "near",
    "--model M/run --prompt M/f.c --alignments [lines,lines]": "--alignments (['lines', 'lines']) must name one or",
    "--model M/run --prompt M/f.c --pairs [across,any] --alignments [lines]": "must hold diff or position for --pairs",
    "--model M/run --prompt M/f.c --max_mass 2": "--max_mass (2.0) must be between 0 and 1; change it",
    "--model M/run --prompt M/f.c --max_completions 0": "--max_completions (0) must be at least 1; raise it",
    "--model M/run --prompt M/f.c --num_beams 2 --num_samples 2": "--num_beams (2) must be 0 with --num_samples (2)",
    "--model M/run --prompt M/f.c --batch_size 0": "--batch_size (0) must be at least 1; raise it",
    "--model M/run --prompt M/long.c --max_new_tokens 4000": "--max_new_tokens (4000) must leave room for the prompt",
    "--model M/run --prompt M/f.c --max_new_tokens 1": "--max_new_tokens (1) must let a completion end after some",
    "--model M/dense --prompt M/f.c": "must have routers",
    "--model M/none --prompt M/f.c": "none",
    "--trace M/nothing": "nothing (no tree.arrow) must be the folder of a tree; search one, or check the path",
    "--trace M/nothing --prompt M/f.c": "--prompt (M/f.c) must not be given with --trace, which has it; leave it out",
    "--trace M/nothing --temperature 0.5": "--temperature (0.5) must not be given with --trace, which has it;",
    "--trace M/nothing --num_samples 3": "--num_samples (3) must not be given with --trace, which has it;",
    "--trace M/nothing --dtype float16": "--dtype (float16) must not be given with --trace, which has it;",
    "--model M/run --prompt M/f.c --max_length 5": "--max_length",
}


@pytest.mark.parametrize("line", ERRORS)
def test_bad_input_ends_in_one_line_and_status_2(
    line: str, run: Callable[..., None], models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(f"{line} --out OUT")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert ERRORS[line].replace("M/", f"{models}/") in error
    assert error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bytes_per_expert": ...}, "must say its bytes_per_expert, as trees of locality do; search it again"),
        ({"tokenizer": "/not/there"}, "needs its tokenizer (/not/there), which is not there; bring it back"),
    ],
)
def test_a_tree_that_does_not_say_what_is_needed_is_refused(
    run: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    program_tree,
    changed: dict,
    message: str,
) -> None:
    tree, tokenizer, made_from = program_tree
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    made_from = made_from | {"tokenizer": str(tmp_path / "tokenizer"), "prompt_file": str(tmp_path / "f.c")} | changed
    made_from = {name: value for name, value in made_from.items() if value is not ...}
    write_tree(tmp_path / "tree", tree, made_from)
    with pytest.raises(SystemExit, match="2"):
        run(f"--trace {tmp_path}/tree --out OUT")
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_report_of_a_tree_stands_beside_another_in_a_comparison(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        run(f"--model M/run --prompt M/f.c {SEARCH} {CHEAP} --seed {seed} --out {tmp_path}/{seed}")
    reports = [f"{tmp_path}/{seed}/report.json" for seed in (0, 1)]
    monkeypatch.setattr(sys, "argv", ["pathmoe-eval", "compare", *reports, "--out", f"{tmp_path}/both"])
    main()
    assert "Programs that compile" in capsys.readouterr().out
    assert (tmp_path / "both" / "index.html").is_file()
