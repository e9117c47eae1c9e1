"""Export of a checkpoint as a Hugging Face folder: ours, or unrolled into a standard OLMoE."""

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pathmoe.config import PathMoEConfig
from pathmoe.model import PathMoEForCausalLM
from pathmoe.olmoe import to_olmoe
from pathmoe.training.checkpoint_io import read_checkpoint
from pathmoe.training.errors import OneLineParser
from pathmoe.training.run_folder import resolve_checkpoint, saved_tokenizer

ExportFormat = Literal["pathmoe", "olmoe"]


def load_model(checkpoint: Path) -> PathMoEForCausalLM:
    """The model of a training checkpoint, on the CPU, with the weights and the configuration that it holds.

    Raises:
        ValueError: no checkpoint of ours.
    """
    content = read_checkpoint(checkpoint)
    model = PathMoEForCausalLM(PathMoEConfig(**content["pathmoe"]["config"]))
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in content["state_dict"].items()})
    return model.eval()


def export_model(
    model: PathMoEForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path, export_format: ExportFormat = "pathmoe"
) -> None:
    """Write model (safetensors), config and tokenizer into `folder`, which is whole or not there.

    Args:
        model: what to export.
        tokenizer: written beside it; its special tokens go into the model's and the generation's configuration.
        folder: new, or an earlier export, which is replaced.
        export_format: `pathmoe`, for `import pathmoe`, or `olmoe`, for whatever serves `OlmoeForCausalLM`.

    Raises:
        ValueError: a router that OLMoE has no form for, or a folder that holds something else.
    """
    if folder.exists() and not _is_empty_or_export(folder):
        raise ValueError(f"--out ({folder}) must be new, or the folder of an earlier export; choose another")
    exported: PreTrainedModel = to_olmoe(model) if export_format == "olmoe" else model
    for settings in (exported.config, exported.generation_config):
        settings.bos_token_id, settings.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        settings.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        exported.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        beside.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _is_empty_or_export(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return not names or {"config.json", "generation_config.json", "tokenizer_config.json"} <= names


def export_command(arguments: Sequence[str]) -> None:
    """`export --ckpt_path P --out DIR [--format olmoe]`."""
    program = f"{Path(sys.argv[0]).name} export"
    parser = OneLineParser(prog=program, description="Write a checkpoint as a Hugging Face folder.")
    parser.add_argument("--ckpt_path", type=str, required=True, help="A checkpoint, a run folder, or last.")
    parser.add_argument("--out", type=Path, required=True, help="Folder to write.")
    parser.add_argument(
        "--format", type=ExportFormat, default="pathmoe", help="pathmoe, or olmoe for a standard OLMoE."
    )
    options = parser.parse_args(list(arguments))
    checkpoint = resolve_checkpoint(options.ckpt_path, None)
    model = load_model(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(saved_tokenizer(checkpoint))
    export_model(model, tokenizer, options.out, options.format)
    print(f"exported {checkpoint} to {options.out} ({options.format})")
