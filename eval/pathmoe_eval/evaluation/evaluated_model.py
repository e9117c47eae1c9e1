"""A model opened for evaluation: a run or checkpoint of ours, a transformers folder, or a name on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

import pathmoe  # noqa: F401  # makes our models known to transformers
from pathmoe.data.hub import go_offline_without_hub, looks_like_path
from pathmoe.training.config_files import read_yaml
from pathmoe.training.export import EXPORT_MARK, load_model
from pathmoe.training.run_folder import (
    CHECKPOINT_NAMES,
    CONFIG_FILE,
    has_checkpoint,
    resolve_checkpoint,
    saved_config,
    saved_tokenizer,
)
from pathmoe.training.sharded_checkpoint import is_sharded

DType = Literal["auto", "float32", "bfloat16", "float16"]

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?", re.ASCII)
_ALIGNMENT = 64
_FILE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluatedModel:
    """A model in evaluation mode, and what is needed to feed it as in training."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    """The checkpoint or folder that was opened, or the name on the hub."""
    ends_documents: bool
    """Whether it was trained by this program, on documents between its tokenizer's bos and eos tokens."""
    run_data: dict[str, Any] | None
    """The arguments of the `TokenDataModule` of its run; None where it has no run, or lies outside of its folder."""

    @property
    def vocab_size(self) -> int:
        """Token ids that the model has an embedding for."""
        embedding: Any = self.model.get_input_embeddings()
        return int(embedding.weight.shape[0])

    @property
    def tokenizer_place(self) -> str:
        """The name of the tokenizer, so that it is found from any folder."""
        name = str(self.tokenizer.name_or_path)
        return str(Path(name).resolve()) if Path(name).exists() else name

    @property
    def context_length(self) -> int | None:
        """Tokens of a training sequence: of its run, else `max_position_embeddings`; None where neither is there."""
        if self.run_data is not None:
            return int(self.run_data["sequence_length"])
        length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return None if length is None else int(length)


def open_model(name: str, dtype: DType = "auto", device: str = "auto") -> EvaluatedModel:
    """Open a model and its tokenizer for evaluation; no code that comes with it is run.

    Args:
        name: `last`, `previous` or `best` (of the newest run), a run folder, a checkpoint of ours, a transformers model
            folder (an export of ours is one), or a name on the Hugging Face hub.
        dtype: of the parameters; `auto` keeps that of the checkpoint.
        device: as torch names it; `auto` is cuda where there is one, else cpu.

    Raises:
        ValueError: there is no such model or device, the checkpoint is of another format or lacks weights, or there is
            no tokenizer.
    """
    target = _device(device)
    path = Path(name).expanduser()
    if name in CHECKPOINT_NAMES or path.is_file() or _is_run(path):
        opened = _open_checkpoint(name if name in CHECKPOINT_NAMES else str(path), dtype)
    elif path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(
                f"--model ({name}) must be a run folder, a checkpoint or a transformers model folder, but holds "
                "neither a checkpoint nor config.json; give the folder that does"
            )
        opened = _open_transformers(str(path), dtype, folder=path)
    elif name.endswith(_FILE_SUFFIXES) or looks_like_path(name) or not _HUB_NAME.fullmatch(name):
        raise ValueError(f"--model ({name}) must be a model that is there, but no file or folder is; check the path")
    else:
        opened = _open_transformers(name, dtype, folder=None)
    model: Any = opened.model
    model.to(target).eval()
    _align(model)
    return opened


def _align(model: PreTrainedModel) -> None:
    """Move tensors to addresses as PyTorch allocates them.

    Those of a mapped safetensors file lie as the file has them, and matrix products round otherwise there: the same
    weights from a checkpoint and from an export would give other last bits.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device ({device}) must be a device of this machine; give auto, cpu or cuda") from error
    return target


def _is_run(path: Path) -> bool:
    return (path / CONFIG_FILE).is_file() or has_checkpoint(path) or is_sharded(path)


def _open_checkpoint(name: str, dtype: DType) -> EvaluatedModel:
    with _as_option_model():
        checkpoint = resolve_checkpoint(name, None)
        model = load_model(checkpoint)
        run_data = read_yaml(saved_config(checkpoint))["data"]
        tokenizer = _load_tokenizer(str(saved_tokenizer(checkpoint)))
    if dtype != "auto":
        # Buffers, such as selection biases, keep theirs, as when transformers loads a model.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    return EvaluatedModel(
        model=model, tokenizer=tokenizer, name=str(checkpoint), ends_documents=True, run_data=run_data
    )


@contextmanager
def _as_option_model() -> Iterator[None]:
    """Have errors about a checkpoint name the option that it was given by here."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("--ckpt_path", "--model")) from error


def _open_transformers(name: str, dtype: DType, folder: Path | None) -> EvaluatedModel:
    """Model of a local folder, or of the hub where `folder` is None."""
    has_hub = folder is not None or go_offline_without_hub()
    load: Any = AutoModelForCausalLM.from_pretrained  # its type does not know of the loading info
    options = {"dtype": dtype, "trust_remote_code": False, "output_loading_info": True}
    try:
        with _without_load_report():
            model, info = load(name, ignore_mismatched_sizes=True, **options)
    except Exception as error:
        # Broken files lead readers to errors of every kind.
        if not has_hub and isinstance(error, OSError):
            raise ValueError(
                f"--model ({name}) must be a run, a checkpoint or a folder that is there, or the name of a model on "
                "the hub, which can't be reached; check the path, or the network"
            ) from error
        raise ValueError(
            f"--model ({name}) could not be loaded ({_reason(error)}); give a run, a checkpoint of ours, a folder with "
            "a causal language model of transformers, or the name of one on the hub"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"--model ({name}) must hold all weights of its config.json, but lacks {len(missing)}, such as "
            f"{missing[0]}; give a whole checkpoint"
        )
    if mismatched := sorted(info["mismatched_keys"]):
        key, found, expected = mismatched[0]
        raise ValueError(
            f"--model ({name}) must hold weights of the shapes of its config.json, but {key} is {list(found)}, not "
            f"{list(expected)}; give the config.json that belongs to them"
        )
    is_export = folder is not None and (folder / EXPORT_MARK).is_file()
    # Training writes its export into the folder of the run.
    run_config = folder.resolve().parent / CONFIG_FILE if folder is not None and is_export else None
    return EvaluatedModel(
        model=model,
        tokenizer=_load_tokenizer(name),
        name=name,
        ends_documents=is_export or model.config.model_type == "pathmoe",
        run_data=read_yaml(run_config)["data"] if run_config is not None and run_config.is_file() else None,
    )


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Keep transformers from telling in tables what we say in a line."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise ValueError(f"--model ({name}) must have a tokenizer ({_reason(error)}); save one beside it") from error
    # Where the files are missing, transformers makes an empty tokenizer of the model's kind.
    if not tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys():
        raise ValueError(f"--model ({name}) must have a tokenizer, but there is none; save one beside it")
    return tokenizer


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
