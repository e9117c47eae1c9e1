"""Opening a model: every form that one may have gives the same model, and what is none is refused in a line."""

# Shapes: E experts.

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from pathmoe.data import train_bpe
from pathmoe.olmoe import to_olmoe
from pathmoe.training.export import EXPORT_MARK, export_model, load_model
from pathmoe_eval.evaluation.evaluated_model import EvaluatedModel, open_model
from pathmoe_eval.evaluation.identity import model_identity

IDS = torch.arange(12)[None]


@pytest.fixture(scope="module")
def run(fit_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With selection biases, in `runs` of its folder."""
    folder = tmp_path_factory.mktemp("work") / "runs" / "first"
    return fit_tiny(folder, num_hidden_layers=2, router_bias_update_rate=0.1, scoring_func="sigmoid")


@torch.inference_mode()
def logits(model: PreTrainedModel) -> Tensor:
    return model(IDS).logits


def check(opened: EvaluatedModel, run: Path) -> None:
    """It is the run's last model, ready for evaluation."""
    assert not opened.model.training
    assert torch.equal(logits(opened.model), logits(load_model(run / "last.ckpt")))
    assert opened.tokenizer.get_vocab().keys() >= {"<|endoftext|>"} and len(opened.tokenizer) > 257
    assert opened.ends_documents and opened.vocab_size == 300
    # Matrix products round as the addresses of their operands make them.
    assert all(tensor.data_ptr() % 64 == 0 for tensor in opened.model.state_dict().values())


def test_a_run_is_opened_by_its_folder_its_checkpoint_its_export_and_last(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[1])
    for name in (run, run / "last.ckpt", run / "export", "last", "runs/first"):
        opened = open_model(str(name))
        check(opened, run)
        assert opened.run_data is not None
        assert (opened.run_data["source"], opened.run_data["num_documents"]) == ("c-functions", 60)
        assert opened.context_length == 32
    assert open_model("last").name == "runs/first/last.ckpt"
    assert open_model("best").name == "runs/first/best.ckpt"
    shutil.copy(run / "last.ckpt", run / "previous.ckpt")
    assert open_model("previous").name == "runs/first/previous.ckpt"


def test_a_checkpoint_and_its_export_are_one_model_by_their_weights(run: Path) -> None:
    names = (run / "last.ckpt", run / "export")
    identities = [model_identity(open_model(str(name)).model) for name in names]
    assert identities[0] == identities[1]
    narrow = [model_identity(open_model(str(name), dtype="bfloat16").model) for name in names]
    assert narrow[0] == narrow[1] and narrow[0]["model_hash"] != identities[0]["model_hash"]


def test_an_export_away_from_its_run_has_no_data_of_a_run(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "export", tmp_path / "export")
    opened = open_model(str(tmp_path / "export"))
    check(opened, run)
    assert opened.run_data is None
    assert opened.context_length == load_model(run / "last.ckpt").config.max_position_embeddings


def test_an_export_as_olmoe_is_still_fed_as_in_training(tmp_path: Path, run: Path) -> None:
    opened = open_model(str(run))
    model: Any = opened.model
    # OLMoE has no selection biases, and no sigmoid.
    model.config.router_bias_update_rate, model.config.scoring_func = 0.0, "softmax"
    for layer in model.model.layers:
        layer.mlp.selection_bias_E = None
    export_model(model, opened.tokenizer, tmp_path / "olmoe", "olmoe")
    again = open_model(str(tmp_path / "olmoe"))
    assert again.model.config.model_type == "olmoe" and again.ends_documents
    with torch.inference_mode():
        assert torch.allclose(logits(again.model), to_olmoe(model).eval()(IDS).logits, atol=1e-6)


@pytest.mark.parametrize("form", ["last.ckpt", "export"])
def test_dtypes(run: Path, form: str) -> None:
    opened = open_model(str(run / form), dtype="bfloat16")
    expected = AutoModelForCausalLM.from_pretrained(run / "export", dtype=torch.bfloat16).eval()
    assert opened.model.dtype == torch.bfloat16
    assert torch.equal(logits(opened.model), logits(expected))
    # Selection biases and rotary frequencies stay in fp32.
    assert {buffer.dtype for buffer in opened.model.buffers()} == {torch.float32}
    assert open_model(str(run / form)).model.dtype == torch.float32


@pytest.fixture
def mixtral(tmp_path: Path) -> Path:
    """A model of transformers with a tokenizer, in bf16."""
    config = MixtralConfig(
        vocab_size=300, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, max_position_embeddings=77, head_dim=8,
    )  # fmt: skip
    folder = tmp_path / "mixtral"
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    train_bpe(["some words and more words"], 280).save_pretrained(str(folder))
    return folder


def test_a_transformers_folder(mixtral: Path) -> None:
    opened = open_model(str(mixtral))
    assert type(opened.model) is MixtralForCausalLM and not opened.model.training
    assert opened.model.dtype == torch.bfloat16
    assert (opened.ends_documents, opened.run_data, opened.context_length) == (False, None, 77)
    assert opened.model.config._attn_implementation == "sdpa"
    assert open_model(str(mixtral), dtype="float32").model.dtype == torch.float32


class Other(LightningModule):
    """A Lightning module of somebody else."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)


def write_other_checkpoint(path: Path) -> None:
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                      accelerator="cpu", devices=1, default_root_dir=path.parent)  # fmt: skip
    trainer.strategy.connect(Other())
    trainer.save_checkpoint(path)


WRITERS: dict[str, Any] = {
    "lightning.ckpt": write_other_checkpoint,
    "bare.ckpt": lambda path: torch.save(Other().state_dict(), path),
    "module.ckpt": lambda path: torch.save(Other(), path),
    "empty.ckpt": lambda path: path.write_bytes(b""),
    "pickle.ckpt": lambda path: path.write_bytes(pickle.dumps({"state_dict": {}})),
    "text.txt": lambda path: path.write_text("hello"),
}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("lightning.ckpt", r"must be a checkpoint that this program wrote, but it holds no model\.config; look"),
        ("bare.ckpt", r"must be a checkpoint that this program wrote, but it holds no model\.config; look"),
        ("module.ckpt", r"must be a whole checkpoint, but it can't be read \(UnpicklingError.*\); use"),
        ("empty.ckpt", r"must be a whole checkpoint, but it can't be read \(.*\); use"),
        ("pickle.ckpt", r"must be a checkpoint, but is a file of another kind; give the last\.ckpt of a run"),
        ("text.txt", r"must be a checkpoint, but is a file of another kind; give the last\.ckpt of a run"),
    ],
)
def test_a_file_of_another_format_is_refused(name: str, line: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    with pytest.raises(ValueError, match=rf"^--model \(.*/{name}\) {line}") as caught:
        open_model(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def with_other_weights(folder: Path) -> None:
    without_weights(folder)
    torch.save({"layer.weight": torch.zeros(2)}, folder / "pytorch_model.bin")


def with_half_the_weights(folder: Path) -> None:
    half = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(half[: len(half) // 2])


def with_config_of_another_size(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 290}))


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


def of_another_kind(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "nothing-known"}))


def with_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (without_weights, r"could not be loaded \(OSError: Error no file named model\.safetensors.*\); give"),
        (with_other_weights, r"must hold all weights of its config\.json, but lacks \d+, such as lm_head\.weight; giv"),
        (with_half_the_weights, r"could not be loaded \(SafetensorError: .*\); give"),
        (
            with_config_of_another_size,
            r"must hold weights of the shapes of its config\.json, but lm_head\.weight is \[300, 16\], not \[290, 16\]",
        ),
        (without_tokenizer, r"must have a tokenizer"),
        (of_another_kind, r"could not be loaded \(ValueError: .*nothing-known.*\); give"),
        (with_broken_config, r"could not be loaded \(OSError: .*not a valid JSON file.*\); give"),
        (without_config, r"must be a run folder, .*, but holds neither a checkpoint nor config\.json; give the folder"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_folder_that_lacks_something_is_refused(spoil: Any, line: str, mixtral: Path) -> None:
    spoil(mixtral)
    with pytest.raises(ValueError, match=rf"^--model \({mixtral}\) {line}") as caught:
        open_model(str(mixtral))
    assert "\n" not in str(caught.value)


def test_an_export_without_its_tokenizer_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "export", tmp_path / "export")
    without_tokenizer(tmp_path / "export")
    assert (tmp_path / "export" / EXPORT_MARK).is_file()
    with pytest.raises(ValueError, match=rf"^--model \({tmp_path}/export\) must have a tokenizer"):
        open_model(str(tmp_path / "export"))


@pytest.mark.parametrize(
    "name", ["no/such/folder", "./nothing", "missing.ckpt", "~/no-such-run", "a b", "runs/path_b4", "here/nothing"]
)
def test_what_is_not_there_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(
        ValueError, match=r"^--model \(.*\) must be a model that is there, but no file or folder is; ch"
    ):
        open_model(name)


def test_last_without_a_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^--model \(last\) must name a run, but runs holds no \*/last\.ckpt; train"):
        open_model("last")


def test_a_checkpoint_without_what_lies_beside_it_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "last.ckpt", tmp_path)
    with pytest.raises(ValueError, match=r"config\.yaml must lie beside the checkpoint last\.ckpt; copy it there"):
        open_model(str(tmp_path / "last.ckpt"))


def test_a_name_on_the_hub_without_a_network_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"^--model \(nobody/nothing\) must be a run, .* or the name of a model on the hub, which can't be reach",
    ) as caught:
        open_model("nobody/nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^--device \({device}\) must be a device of this machine; give auto, cpu or"
    ):
        open_model("last", device=device)
