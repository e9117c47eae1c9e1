"""The command line as a user has it: a process of its own for the way in, then `main` for every option and error."""

# Shapes: N tokens, L MoE layers.

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OlmoeConfig, OlmoeForCausalLM

from pathmoe import PathMoEConfig, PathMoEForCausalLM
from pathmoe.data import train_bpe
from pathmoe.training.export import export_model
from pathmoe_eval.cli import main, with_underscores
from pathmoe_eval.paths.paths import path_entropy
from pathmoe_eval.traces.trace import open_trace

SHAPE: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "initializer_range": 0.4,
    "max_position_embeddings": 64,
}  # fmt: skip
TEXT = "".join(f"def f{n}(a, b):\n    return a + {n} * b  # the sum\n" for n in range(12))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of models with their tokenizer, and of data."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    bpe = train_bpe([TEXT], 290)
    for name in ("ours", "later"):
        ours = PathMoEConfig(
            **SHAPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, layers_per_router=2
        )
        export_model(PathMoEForCausalLM(ours), bpe, folder / name)
    olmoe = OlmoeConfig(**SHAPE, num_experts=4, num_experts_per_tok=2, intermediate_size=8, pad_token_id=None)
    dense = LlamaConfig(**SHAPE, intermediate_size=8)
    small = OlmoeConfig(**SHAPE | {"vocab_size": 40}, num_experts=4, intermediate_size=8, pad_token_id=None)
    for name, model in {
        "olmoe": OlmoeForCausalLM(olmoe), "dense": LlamaForCausalLM(dense), "small": OlmoeForCausalLM(small)
    }.items():  # fmt: skip
        model.save_pretrained(folder / name)
        bpe.save_pretrained(folder / name)
    torch.save({"weights": torch.zeros(2)}, folder / "other.ckpt")
    lines = [{"text": TEXT[:200], "topic": "one"}, {"text": TEXT[200:], "topic": "two"}]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "empty.jsonl").write_text(json.dumps({"text": ""}))
    return folder


@pytest.fixture
def run(models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Calls `pathmoe-eval` with a line of arguments, in which M is the folder of models and OUT one to write to."""

    def call(line: str) -> None:
        words = line.replace("M/", f"{models}/").replace("OUT", str(tmp_path / "out")).split()
        monkeypatch.setattr(sys, "argv", ["pathmoe-eval", *words])
        main()

    return call


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("--max-tokens", "--max_tokens"), ("--text-key=a-b", "--text_key=a-b"), ("a-b", "a-b"), ("-h", "-h"),
        ("--out", "--out"), ("--", "--"),
    ],
)  # fmt: skip
def test_options_may_be_written_with_hyphens(given: str, taken: str) -> None:
    assert with_underscores(given) == taken


def test_help_names_the_commands() -> None:
    command = [sys.executable, "-c", "from pathmoe_eval.cli import main; main()", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(name in shown for name in ("paths", "perplexity", "record", "perturb", "locality", "compare"))


@pytest.mark.parametrize("model", ["ours", "olmoe"])
def test_paths_writes_a_report_and_a_trace_that_gives_the_same_report(
    model: str, run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(f"paths --model M/{model} --data M/data.jsonl --domain_key topic --out OUT --sets true")
    assert "index.html" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (tmp_path / "out" / "index.html").stat().st_size > 1_000_000  # with its library
    trace = open_trace(tmp_path / "out" / "trace")
    chunks = list(trace.chunks())
    top1_NL = np.concatenate([chunk.expert_ids_NLK[..., 0] for chunk in chunks])
    whole = report["sections"]["concentration"]["whole"]
    assert whole["entropy"]["entropy_bits"] == path_entropy(top1_NL).entropy_bits
    assert report["run"]["num_tokens"] == trace.num_tokens == len(top1_NL)
    assert report["run"]["command"].startswith("pathmoe-eval paths --model ")
    assert report["sections"].keys() == {
        "perplexity", "concentration", "consistency", "flow", "load", "vocabulary", "coactivation", "router_scores",
        "domains", "separation", "path_tokens",
    }  # fmt: skip

    run(f"paths --trace {tmp_path}/out/trace --out {tmp_path}/again --sets true")
    again = json.loads((tmp_path / "again" / "report.json").read_text())
    assert again["sections"] == {name: of for name, of in report["sections"].items() if name != "perplexity"}


def test_sketched_paths_are_reported_and_compared(run: Callable[..., None], tmp_path: Path) -> None:
    run(f"paths --model M/ours --data M/data.jsonl --out {tmp_path}/exact")
    run(f"paths --trace {tmp_path}/exact/trace --out {tmp_path}/sketch --sketch true")
    sections = json.loads((tmp_path / "sketch" / "report.json").read_text())["sections"]
    assert {"sketch", "consistency"} <= sections.keys() and not {"concentration", "separation"} & sections.keys()
    assert "Concentration of paths, in fixed memory" in (tmp_path / "sketch" / "index.html").read_text()
    run(f"compare {tmp_path}/exact {tmp_path}/sketch --out OUT")
    assert "standard error" in (tmp_path / "out" / "comparison.md").read_text()


def test_record_then_saturation_against_a_later_checkpoint(run: Callable[..., None], tmp_path: Path) -> None:
    for name in ("ours", "later"):
        run(f"record --model M/{name} --data M/data.jsonl --out {tmp_path}/{name} --logits true")
    run(f"paths --trace {tmp_path}/ours --later {tmp_path}/later --out OUT")
    saturation = json.loads((tmp_path / "out" / "report.json").read_text())["sections"]["saturation"]
    earlier, later = (
        np.concatenate([chunk.expert_ids_NLK for chunk in open_trace(tmp_path / name).chunks()])
        for name in ("ours", "later")
    )
    shared = [
        np.mean([len(set(one) & set(two)) / 2 for one, two in zip(earlier[:, layer], later[:, layer], strict=True)])
        for layer in range(4)
    ]
    assert saturation["all_picks"] == pytest.approx(shared)


def test_perplexity_prints_domains_within_80_columns_and_adds_to_a_report(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "--model M/ours --data M/data.jsonl --domain_key topic"
    run(f"perplexity {arguments} --out OUT")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[1:4]] == ["all", "one", "two"]
    total = json.loads((tmp_path / "out" / "report.json").read_text())["sections"]["perplexity"]["total"]
    assert f"{total['perplexity']:.3f}" in lines[1]
    run(f"paths {arguments} --out OUT")
    sections = json.loads((tmp_path / "out" / "report.json").read_text())["sections"]
    assert sections["perplexity"]["total"] == total


def test_perturb_adds_its_chart_to_the_report(run: Callable[..., None], tmp_path: Path) -> None:
    arguments = "--model M/ours --data M/data.jsonl --out OUT"
    run(f"paths {arguments}")
    run(f"perturb {arguments} --num_seeds 2 --noise_sizes [0.5] --path_numbers [1,null] --expert_numbers [1]")
    sections = json.loads((tmp_path / "out" / "report.json").read_text())["sections"]
    assert {"concentration", "perturbation"} <= sections.keys()
    by_name = {(one["intervention"], one["setting"]): one for one in sections["perturbation"]["perturbed"]}
    free = sections["perturbation"]["free_perplexity"]
    assert free == pytest.approx(sections["perplexity"]["total"]["perplexity"], rel=1e-12)
    assert any(one["perplexity"] != free for one in by_name.values())


def test_compare_puts_runs_in_one_page(run: Callable[..., None], tmp_path: Path) -> None:
    for name in ("ours", "olmoe"):
        run(f"paths --model M/{name} --data M/data.jsonl --out {tmp_path}/{name}")
    run(f"compare {tmp_path}/ours/report.json {tmp_path}/olmoe/report.json --out OUT")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "ours" in page and "olmoe" in page


def test_the_first_tokens_of_a_trace_and_one_without_its_tokenizer(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("record --model M/ours --data M/data.jsonl --out OUT")
    header = tmp_path / "out" / "trace.json"
    named = json.loads(header.read_text())
    run(f"paths --trace OUT --max_tokens 30 --out {tmp_path}/first")
    first = json.loads((tmp_path / "first" / "report.json").read_text())
    assert first["run"]["num_tokens"] == first["sections"]["separation"]["num_tokens"] == 30
    header.write_text(header.read_text().replace(json.dumps(named["tokenizer"]), json.dumps("/not/there")))
    capsys.readouterr()
    run(f"paths --trace OUT --out {tmp_path}/bare")
    assert capsys.readouterr().err.startswith("note: the tokenizer of the trace (/not/there) is not there")
    assert "separation" not in json.loads((tmp_path / "bare" / "report.json").read_text())["sections"]
    with pytest.raises(SystemExit, match="2"):
        run(f"paths --trace OUT --out {tmp_path}/tagged --tagger text")


def damage(folder: Path) -> None:
    tokens = folder / "tokens.arrow"
    tokens.write_bytes(tokens.read_bytes()[:-100])


ERRORS = {
    "paths --model M/dense --data M/data.jsonl --out OUT": "must have routers",
    "record --model M/dense --data M/data.jsonl --out OUT": "must have routers",
    "paths --model M/ours --data M/empty.jsonl --out OUT": "must hold text",
    "perplexity --model M/ours --data M/nothing.jsonl": "--data",
    "paths --model M/small --data M/data.jsonl --out OUT": "below the model's vocabulary",
    "paths --model M/other.ckpt --data M/data.jsonl --out OUT": "other.ckpt",
    "paths --model M/none --data M/data.jsonl --out OUT": "none",
    "paths --data M/data.jsonl --out OUT": "must be given, and not both",
    "paths --model M/ours --trace M/trace --out OUT": "must be given, and not both",
    "paths --trace M/none --out OUT": "none",
    "paths --model M/ours --data M/data.jsonl --out M/ours": "choose another",
    "perplexity --model M/ours --data M/data.jsonl --max_tokens 0": "--max_tokens (0) must be at least 1",
    "perplexity --model M/ours --data M/data.jsonl --max_length 4 --stride 5": "--stride (5)",
    "paths --model M/ours --data M/data.jsonl --out OUT --tagger nothing": "tagger (nothing)",
    "paths --model M/ours --data M/data.jsonl --out OUT --tager text": "--tager",
    "paths --trace M/none --max_length 3 --out OUT": "--max_length (3) must not be given with --trace",
    "compare M/data.jsonl M/empty.jsonl --out OUT": "report.json of a report",
    "record --model M/ours": "--out must be given; add it",
    "paths --trace M/none --out OUT --seed -1": "--seed (-1) must be at least 0; raise it",
    "perplexity --model M/ours --data []": "--data ([]) must name a file at least; add one",
    "perplexity --model M/ours --data": "--data must be followed by a value; add it",
    "perplexity --model M/ours --out M/data.jsonl": "--out (M/data.jsonl) must be a folder, but is a file;",
    "perturb --model M/ours --out M/data.jsonl/x": "/x) must be a folder, but M/data.jsonl is a file; choose another",
    "record --model M/ours --out M/data.jsonl/x/y": "/y) must be a folder, but M/data.jsonl is a file; choose another",
    "compare M/data.jsonl --out M/data.jsonl/x": "/x) must be a folder, but M/data.jsonl is a file; choose another",
    "compare --out OUT": "reports (none) must be two or more",
    "paths --trace M/none --sketch true --sets true --out OUT": "--sets (True) must not be given with --sketch true",
    "paths --trace M/none --sketch true --tagger text --out OUT": "--tagger (text) must not be given with --sketch",
    "show": "show",
}
PERTURB_ERRORS = {
    "--num_seeds 0": "--num_seeds (0) must be at least 1; raise it",
    "--num_seeds -3": "--num_seeds (-3) must be at least 1; raise it",
    "--num_seeds many": "num_seeds (many) must be of type int; change it",
    "--noise_sizes [1,-0.5]": "--noise_sizes (-0.5) must be finite and at least 0; change it",
    "--noise_sizes [.inf]": "--noise_sizes (inf) must be finite and at least 0; change it",
    "--noise_sizes 0.5": "noise_sizes (0.5) must be of type list [...]; change it",
    "--noise_sizes [loud]": "noise_sizes (loud) must be of type float; change it",
    "--noise_sizes": "--noise_sizes must be followed by a value; add it",
    "--path_numbers [0]": "--path_numbers (0) must be at least 1; change it, or give null for all",
    "--path_numbers [null,-1]": "--path_numbers (-1) must be at least 1; change it, or give null for all",
    "--path_numbers all": "path_numbers (all) must be of type list [...]; change it",
    "--expert_numbers [0]": "--expert_numbers (0) must be at least 1; change it",
    "--expert_numbers [1,5]": "--expert_numbers (5) must be at most the model's experts (4); lower it",
    "--expert_numbers 2": "expert_numbers (2) must be of type list [...] or null; change it",
    "--paths_from M/none": "--paths_from: ",
    "--paths_from M/data.jsonl": "(no trace.json) must be the folder of a trace; record one, or check the path",
    "--seeds 3": "--seeds (3) is not a known option; see --help",
    "--max_length 8 --stride 9": "--stride (9)",
}
ERRORS |= {
    f"perturb --model M/ours --data M/data.jsonl --out OUT {line}": PERTURB_ERRORS[line] for line in PERTURB_ERRORS
}


@pytest.mark.parametrize("line", ERRORS)
def test_bad_input_ends_in_one_line_and_status_2(
    line: str, run: Callable[..., None], models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(line)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert ERRORS[line].replace("M/", f"{models}/") in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_folder_that_can_not_be_written_is_refused_before_the_work(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(SystemExit, match="2"):
        run("perplexity --model M/none --out OUT/deeper")
    line = (
        f"--out ({tmp_path}/out/deeper) must be a folder that can be written, but {tmp_path} can't be; choose another"
    )
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.parametrize("again", ["--model M/ours --data M/data.jsonl", "--trace OUT/trace"])
def test_analysing_again_needs_no_recording(again: str, run: Callable[..., None], tmp_path: Path) -> None:
    run("paths --model M/ours --data M/data.jsonl --out OUT")
    written = (tmp_path / "out" / "trace" / "trace.json").stat()
    run(f"paths {again} --out OUT --sets true")
    assert (tmp_path / "out" / "trace" / "trace.json").stat() == written
    sections = json.loads((tmp_path / "out" / "report.json").read_text())["sections"]
    assert "sets" in sections["concentration"] and "perplexity" in sections


def test_recording_to_where_a_trace_is_is_refused(run: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    run("record --model M/ours --data M/data.jsonl --out OUT")
    with pytest.raises(SystemExit, match="2"):
        run("record --model M/ours --data M/data.jsonl --out OUT")
    assert "out (another trace) must be a new or an empty folder" in capsys.readouterr().err


def test_a_trace_that_was_cut_short_and_a_report_of_another_run_are_refused(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("paths --model M/ours --data M/data.jsonl --out OUT")
    with pytest.raises(SystemExit, match="2"):
        run("perplexity --model M/olmoe --data M/data.jsonl --out OUT")
    assert "must hold no other report" in capsys.readouterr().err
    damage(tmp_path / "out" / "trace")
    with pytest.raises(SystemExit, match="2"):
        run(f"paths --trace {tmp_path}/out/trace --out {tmp_path}/again")
    error = capsys.readouterr().err
    assert "tokens.arrow" in error and error.count("\n") == 1
