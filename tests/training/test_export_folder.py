"""The folder of an export: whole or not there, and never written over what is no export."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import pathmoe
from pathmoe.training.export import ExportFormat, export_model
from pathmoe.training.run_folder import TOKENIZER_FOLDER


def build(num_experts: int = 4) -> pathmoe.PathMoEForCausalLM:
    shape = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "moe_intermediate_size": 8}
    torch.manual_seed(num_experts)
    return pathmoe.PathMoEForCausalLM(pathmoe.PathMoEConfig(**shape, num_experts=num_experts)).eval()


@pytest.fixture
def tokenizer(finished_run: Any) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(finished_run.folder / TOKENIZER_FOLDER)


@torch.inference_mode()
def logits_of(model: Any) -> torch.Tensor:
    return model(input_ids=torch.arange(5, 29).view(2, 12)).logits


def test_an_earlier_export_is_replaced(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_model(build(), tokenizer, tmp_path / "out")
    export_model(build(), tokenizer, tmp_path / "out", "olmoe")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "olmoe"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize(
    ("name", "found"), [("file", "is a file"), ("work", "holds notes.txt"), ("project", "holds config.json")]
)
def test_what_is_no_export_is_not_replaced(
    name: str, found: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    for folder, file in (("work", "notes.txt"), ("project", "config.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("mine")
    message = rf"/{name} must be new, or hold an earlier export and nothing else, but {found}; move that away, or "
    with pytest.raises(ValueError, match=message):
        export_model(build(), tokenizer, tmp_path / name)
    assert [path.read_text() for path in sorted(tmp_path.rglob("*")) if path.is_file()] == ["mine"] * 3


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_who_may_read_an_export_is_for_the_umask_to_say(
    umask: int, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        export_model(build(), tokenizer, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in modes
    assert set(modes.values()) == {0o666 & ~umask}


def test_an_export_does_not_go_into_another(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    export_model(build(), tokenizer, tmp_path / "out")
    before = contents(tmp_path)
    for folder in (tmp_path / "out" / "inside", tmp_path / "out" / "far" / "inside"):
        with pytest.raises(ValueError, match=r"inside must not lie inside the export .*/out; choose another folder"):
            export_model(build(), tokenizer, folder)
    assert contents(tmp_path) == before
    export_model(build(), tokenizer, tmp_path / "beside")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_that_others_saved_is_not_replaced(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    shape = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1}
    models: list[PreTrainedModel] = [OlmoeForCausalLM(OlmoeConfig(**shape, num_attention_heads=2)), build()]
    for model in models:
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        assert {"config.json", "generation_config.json", "tokenizer_config.json"} <= set(os.listdir(folder))
        before = contents(folder)
        with pytest.raises(ValueError, match="must be new, or hold an earlier export and nothing else, but holds "):
            export_model(build(), tokenizer, folder)
        assert contents(folder) == before


@pytest.mark.parametrize("export_format", ["pathmoe", "olmoe"])
def test_an_export_to_which_something_was_added_is_not_replaced(
    export_format: ExportFormat, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    export_model(build(), tokenizer, tmp_path / "out", export_format)
    (tmp_path / "out" / "results").mkdir()
    (tmp_path / "out" / "results" / "scores.json").write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"but holds results(/scores\.json)?; move that away"):
        export_model(build(), tokenizer, tmp_path / "out")
    assert contents(tmp_path) == before
    shutil.rmtree(tmp_path / "out" / "results")
    export_model(build(), tokenizer, tmp_path / "out")


def test_an_export_that_fails_leaves_the_earlier_one(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    export_model(model, tokenizer, tmp_path / "out")
    monkeypatch.setattr(type(tokenizer), "save_pretrained", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_model(build(num_experts=8), tokenizer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits_of(model))


RENAME = os.replace


class Renames:
    """Renames, up to one at which something happens instead."""

    def __init__(self, left: int, then: Callable[[], Any]) -> None:
        self.left = left
        self.then = then

    def __call__(self, source: Path, target: Path) -> None:
        if self.left == 0:
            self.then()
        self.left -= 1
        RENAME(source, target)


def test_an_export_that_fails_between_its_renames_puts_the_earlier_one_back(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(build(), tokenizer, tmp_path / "out")
    before = contents(tmp_path)

    def fail_once() -> None:
        monkeypatch.setattr(os, "replace", RENAME)
        raise OSError("no")

    monkeypatch.setattr(os, "replace", Renames(1, fail_once))
    with pytest.raises(OSError, match="no"):
        export_model(build(num_experts=8), tokenizer, tmp_path / "out")
    assert contents(tmp_path) == before
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="forks, which CUDA does not survive")
@pytest.mark.parametrize("renames", [0, 1, 2])
def test_an_export_that_is_killed_leaves_a_whole_one_or_none(
    renames: int, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = build(), build(num_experts=8)
    export_model(old, tokenizer, tmp_path / "out")

    def killed_export() -> None:
        os.replace = Renames(renames, lambda: os.kill(os.getpid(), signal.SIGKILL))
        shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        export_model(new, tokenizer, tmp_path / "out")

    process = multiprocessing.get_context("fork").Process(target=killed_export)
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / ".out.partial").exists()
    assert (tmp_path / "out").exists() == (renames != 1)
    if renames != 1:
        left = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert torch.equal(logits_of(left), logits_of([old, None, new][renames]))
    # The next one that can't be written still leaves the earlier one, and one that can leaves nothing else.
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(type(tokenizer), "save_pretrained", lambda *_, **__: 1 / 0)
        export_model(new, tokenizer, tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    export_model(new, tokenizer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
