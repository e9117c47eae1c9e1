"""Texts by several models are what these generate, and can be told apart by author and problem."""

# Shapes: V vocabulary.

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import trajectories

from pathmoe.config import PathMoEConfig
from pathmoe.data import train_bpe
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.export import export_model
from pathmoe_eval.cli import main
from pathmoe_eval.commands import ModelOptions

TEXTS = ["one and two and three " * 9, "def f(x):\n    return x + 1\n" * 9, "a, b, c = 1, 2, 3; " * 9]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with one tokenizer, `first` and `second`, and the texts."""
    folder = tmp_path_factory.mktemp("trajectories")
    shape = {
        "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 8, "max_position_embeddings": 256, "initializer_range": 0.4,
    }  # fmt: skip
    tokenizer = train_bpe(TEXTS, 290)
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        export_model(PathMoEForCausalLM(PathMoEConfig(**shape)), tokenizer, folder / name)
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return folder


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["trajectories.py", *arguments])
    try:
        trajectories.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_each_model_goes_on_from_each_prompt_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert call(monkeypatch, "--models", "first", "second", "--data", "texts.jsonl", "--out", "out.jsonl") == 0
    assert capsys.readouterr().out.endswith("out.jsonl: 12 texts\n")
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [(row["author"], row["problem"]) for row in rows] == [
        (author, problem) for author in ("first", "second") for _ in range(2) for problem in "012"
    ]
    assert len({row["text"] for row in rows}) == 12
    # The second draw of the first model for the last text, by hand.
    opened = ModelOptions(model="first").open()
    prompt = torch.tensor([opened.tokenizer.bos_token_id, *opened.tokenizer.encode(TEXTS[2])])[None, :21]
    torch.manual_seed(1 * 3 + 2)
    for _ in range(128):
        logits_V = opened.model(input_ids=prompt).logits[0, -1].detach()
        logits_V[opened.tokenizer.eos_token_id] = -torch.inf
        prompt = torch.cat([prompt, torch.multinomial(logits_V.softmax(dim=-1), 1)[None]], dim=1)
    assert rows[5]["text"] == opened.tokenizer.decode(prompt[0, 21:].tolist())


def test_models_draw_with_seeds_of_their_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    shutil.copytree("first", "again")
    assert call(monkeypatch, "--models", "first", "again", "--data", "texts.jsonl", "--out", "out.jsonl") == 0
    assert len({json.loads(line)["text"] for line in Path("out.jsonl").read_text().splitlines()}) == 12


def test_they_are_told_apart_by_author_and_problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert call(monkeypatch, "--models", "first", "second", "--data", "texts.jsonl", "--out", "out.jsonl") == 0
    command = "geometry --model first --data out.jsonl --domain_key author --problem_key problem --out report"
    monkeypatch.setattr(sys, "argv", ["pathmoe-eval", *command.split()])
    main()
    (first, *_) = json.loads(Path("report/report.json").read_text())["sections"]["geometry"]["layers"]
    assert all(0 < one["value"] <= 1 for one in first["trajectories"].values()) and len(first["trajectories"]) == 4


@pytest.mark.parametrize(
    ("models", "out", "line"),
    [
        ("first first", "x.jsonl", "error: --models (first first) must be different ones; take one out\n"),
        ("nowhere", "x.jsonl", "error: --model (nowhere)"),
        ("first", "none/x.jsonl", "error: --out (none/x.jsonl) must be a file in a folder that is there; make none"),
    ],
)
def test_wrong_input_is_one_line(
    models: str, out: str, line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert call(monkeypatch, "--models", *models.split(), "--data", "texts.jsonl", "--out", out) == 2
    error = capsys.readouterr().err
    assert error.startswith(line) and error.count("\n") == 1
