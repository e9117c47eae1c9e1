"""The export: a Hugging Face folder that computes what the checkpoint does, ours or OLMoE's."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

import pathmoe
from pathmoe.training.export import ExportFormat, export_model, load_model
from pathmoe.training.run_folder import TOKENIZER_FOLDER

CommandLine = Callable[..., Any]

SHAPE = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 4, "moe_intermediate_size": 8, "num_experts": 4}
INPUT_IDS = torch.arange(5, 29).view(2, 12)

# What someone without this project does with an exported OLMoE.
PLAIN_TRANSFORMERS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
assert type(model).__name__ == "OlmoeForCausalLM", type(model)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert not any(name.split(".")[0].startswith("pathmoe") for name in sys.modules)
with torch.inference_mode():
    logits = model(input_ids=torch.arange(5, 29).view(2, 12)).logits
torch.save({"logits": logits, "ids": tokenizer.encode("alpha beta")}, sys.argv[2])
"""

# What someone with this project does with an exported model.
IMPORTED = """
import sys, torch
import pathmoe
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.inference_mode():
    torch.save(model(input_ids=torch.arange(5, 29).view(2, 12)).logits, sys.argv[2])
"""


def build(**changes: Any) -> pathmoe.PathMoEForCausalLM:
    torch.manual_seed(0)
    return pathmoe.PathMoEForCausalLM(pathmoe.PathMoEConfig(**SHAPE | {"initializer_range": 0.3} | changes)).eval()


@pytest.fixture
def tokenizer(finished_run: Any) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(finished_run.folder / TOKENIZER_FOLDER)


@torch.inference_mode()
def logits_of(model: Any) -> torch.Tensor:
    return model(input_ids=INPUT_IDS).logits


def test_the_model_of_a_checkpoint(finished_run: Any) -> None:
    model = load_model(finished_run.folder / "last.ckpt")
    content = torch.load(finished_run.folder / "last.ckpt", weights_only=True)
    assert not model.training
    assert model.config.layers_per_router == 4
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    assert weights.keys() == content["state_dict"].keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in content["state_dict"].items())


@pytest.mark.parametrize("ckpt_path", ["last.ckpt", "best.ckpt", ""])
def test_an_export_computes_what_the_checkpoint_does(
    ckpt_path: str, finished_run: Any, command_line: CommandLine, tmp_path: Path
) -> None:
    ended = command_line("export", "--ckpt_path", finished_run.folder / ckpt_path, "--out", "exports/mine")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.endswith("to exports/mine (pathmoe)\n")
    folder = tmp_path / "exports" / "mine"
    exported = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(exported, pathmoe.PathMoEForCausalLM)
    checkpoint = load_model(finished_run.folder / (ckpt_path or "last.ckpt"))
    assert torch.equal(logits_of(exported), logits_of(checkpoint))
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".txt"}
    assert list(folder.parent.iterdir()) == [folder]


def test_an_export_generates_and_brings_its_tokenizer(
    finished_run: Any, command_line: CommandLine, tmp_path: Path
) -> None:
    assert command_line("export", "--ckpt_path", finished_run.folder, "--out", "mine").status == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "mine")
    exported = AutoTokenizer.from_pretrained(tmp_path / "mine")
    trained = AutoTokenizer.from_pretrained(finished_run.folder / TOKENIZER_FOLDER)
    text = "alpha beta, größer\n\t<|endoftext|>"
    assert exported(text)["input_ids"] == trained(text)["input_ids"]
    assert exported.decode(exported(text)["input_ids"]) == text
    assert model.config.eos_token_id == model.generation_config.eos_token_id == exported.eos_token_id is not None
    assert model.config.bos_token_id == exported.bos_token_id
    prompt = torch.tensor([[exported.bos_token_id, *exported.encode("alpha")]])
    generated = model.generate(prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert generated.shape == (1, prompt.shape[1] + 8)
    again = model.generate(prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=False)
    assert torch.equal(generated, again)


@pytest.mark.slow
def test_plain_transformers_serves_the_olmoe_export(
    finished_run: Any, command_line: CommandLine, tmp_path: Path
) -> None:
    ended = command_line("export", "--ckpt_path", finished_run.folder, "--out", "olmoe", "--format", "olmoe")
    assert (ended.status, ended.err) == (0, "")
    outside = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN_TRANSFORMERS, tmp_path / "olmoe", tmp_path / "result"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert outside.returncode == 0, outside.stderr
    result = torch.load(tmp_path / "result", weights_only=True)
    checkpoint = load_model(finished_run.folder / "last.ckpt")
    torch.testing.assert_close(result["logits"], logits_of(checkpoint), rtol=0, atol=1e-5)
    trained = AutoTokenizer.from_pretrained(finished_run.folder / TOKENIZER_FOLDER)
    assert result["ids"] == trained.encode("alpha beta")


@pytest.mark.parametrize("export_format", ["pathmoe", "olmoe"])
@pytest.mark.parametrize(
    "changes",
    [{"layers_per_router": [1, 3]}, {"layers_per_router": None, "router_rank": 2}, {"tie_word_embeddings": True}],
    ids=str,
)
def test_every_router_that_olmoe_can_hold(
    changes: dict[str, Any], export_format: ExportFormat, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = build(**changes)
    export_model(model, tokenizer, tmp_path / "out", export_format)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits_of(exported), logits_of(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"router_type": "cosine"}, r"router_type \(cosine\)"),
        ({"router_type": "recurrent"}, r"router_type \(recurrent\)"),
        ({"layers_per_decision": 2, "layers_per_router": 2}, r"layers_per_decision \(2\)"),
        ({"router_bias": True}, r"router_bias \(true\)"),
        ({"scoring_func": "sigmoid"}, r"scoring_func \(sigmoid\)"),
        ({"n_shared_experts": 1}, r"n_shared_experts \(1\)"),
        ({"first_k_dense_replace": 1}, r"first_k_dense_replace \(1\)"),
        ({"routed_scaling_factor": 2.0}, r"routed_scaling_factor \(2\.0\)"),
    ],
    ids=str,
)
def test_what_olmoe_has_no_form_for_is_refused_by_name(
    changes: dict[str, Any], key: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=rf"^model\.config\.{key} must .* for the OLMoE format, .*; export with --format"
    ):
        export_model(build(**changes), tokenizer, tmp_path / "out", "olmoe")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("export_format", ["pathmoe", "olmoe"])
def test_every_token_of_an_export_can_be_trained_on(
    export_format: ExportFormat, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    export_model(build(), tokenizer, tmp_path / "out", export_format)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").train()
    input_ids = torch.tensor([[tokenizer.eos_token_id, 5, 7, 5]])
    model(input_ids=input_ids, labels=input_ids).loss.backward()
    trained = model.model.embed_tokens.weight.grad.abs().sum(dim=-1).nonzero().flatten().tolist()
    assert trained == sorted({5, 7, tokenizer.eos_token_id})


@pytest.mark.parametrize("export_format", ["pathmoe", "olmoe"])
def test_an_export_generates_from_prompts_of_several_lengths(
    export_format: ExportFormat, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    export_model(build(), tokenizer, tmp_path / "out", export_format)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    pad_token_id = model.generation_config.pad_token_id
    assert pad_token_id is not None
    prompts = [[5, 9, 200, 31, 77], [42, 7]]
    padded = torch.tensor([prompts[0], [pad_token_id] * 3 + prompts[1]])
    mask = torch.tensor([[1] * 5, [0] * 3 + [1] * 2])
    both = model.generate(padded, attention_mask=mask, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    for prompt, row in zip(prompts, both, strict=True):
        alone = model.generate(torch.tensor([prompt]), max_new_tokens=6, min_new_tokens=6, do_sample=False)
        assert torch.equal(row[-6:], alone[0, -6:])


@pytest.mark.parametrize("export_format", ["pathmoe", "olmoe"])
def test_the_model_that_is_exported_is_left_as_it_is(
    export_format: ExportFormat, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = build().train()
    before = model.config.to_dict(), model.generation_config.to_dict()
    export_model(model, tokenizer, tmp_path / "out", export_format)
    assert (model.config.to_dict(), model.generation_config.to_dict()) == before
    assert model.training


@pytest.mark.slow
def test_importing_pathmoe_is_all_that_loading_an_export_takes(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = build()
    export_model(model, tokenizer, tmp_path / "out")
    outside = subprocess.run(
        [sys.executable, "-I", "-c", IMPORTED, tmp_path / "out", tmp_path / "result"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert outside.returncode == 0, outside.stderr
    assert torch.equal(torch.load(tmp_path / "result", weights_only=True), logits_of(model))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "--ckpt_path must be given; add it"),
        (["--ckpt_path", "x"], "--out must be given; add it"),
        (["--out", "x"], "--ckpt_path must be given; add it"),
        (["--ckpt_path"], "--ckpt_path must be followed by a value; add it"),
        (["--ckpt_path", "x", "--out", "y", "--format", "gguf"], "format (gguf) must be one of 'pathmoe', 'olmoe'; ch"),
        (
            ["--ckpt_path", "x", "--out", "y", "--frmat", "olmoe"],
            "--frmat (olmoe) is not a known option; did you mean ",
        ),
        (["--ckpt_path", "x", "--out", "y"], "--ckpt_path (x) must be an existing checkpoint, a file or a sharded f"),
        (["--ckpt_path", "last", "--out", "y"], "--ckpt_path (last) must name a run, but runs holds no */last.ckpt; "),
        (
            ["--ckpt_path", "{run}", "--out", "{run}"],
            "--out ({run}) must be new, or hold an earlier export and nothing else, but ",
        ),
        (
            ["--ckpt_path", "{run}", "--out", "{run}/export/inside"],
            "--out ({run}/export/inside) must not lie inside the export {run}/export; choose another folder",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_command(
    arguments: list[str], line: str, finished_run: Any, command_line: CommandLine, tmp_path: Path
) -> None:
    before = sorted(os.listdir(finished_run.folder))
    ended = command_line("export", *(argument.format(run=finished_run.folder) for argument in arguments))
    assert ended.status == 2
    assert ended.err.startswith(f"error: {line.format(run=finished_run.folder)}")
    assert ended.err.count("\n") == 1
    assert sorted(os.listdir(finished_run.folder)) == before
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_without_its_tokenizer(run_copy: Path, command_line: CommandLine) -> None:
    (run_copy / "tokenizer").rename(run_copy / "elsewhere")
    ended = command_line("export", "--ckpt_path", run_copy, "--out", "out")
    assert ended.status == 2
    assert ended.err == f"error: {run_copy}/tokenizer must lie beside the checkpoint last.ckpt; copy it there " + (
        "from the run's folder\n"
    )
