"""Export of a checkpoint as a Hugging Face folder: ours, or unrolled into a standard OLMoE."""

import copy
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pathmoe.config import PathMoEConfig
from pathmoe.model import PathMoEForCausalLM
from pathmoe.olmoe import to_olmoe
from pathmoe.training.checkpoint_io import fill_weights, saved_settings
from pathmoe.training.errors import OneLineParser
from pathmoe.training.run_folder import resolve_checkpoint, saved_tokenizer

ExportFormat = Literal["pathmoe", "olmoe"]

EXPORT_MARK = "pathmoe_export.txt"
"""File in each export that lists the others: what makes the folder one of ours, which may be replaced."""


def load_model(checkpoint: Path) -> PathMoEForCausalLM:
    """The model of a training checkpoint, on the CPU, with the weights and the configuration that it holds.

    Raises:
        ValueError: no checkpoint of ours.
    """
    model = PathMoEForCausalLM(PathMoEConfig(**saved_settings(checkpoint)["pathmoe"]["config"]))
    fill_weights(checkpoint, {f"model.{name}": tensor for name, tensor in model.state_dict().items()})
    return model.eval()


def export_model(
    model: PathMoEForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path, export_format: ExportFormat = "pathmoe"
) -> None:
    """Write model (safetensors), config and tokenizer into `folder`, which at any moment is whole or not there.

    Args:
        model: what to export; it is left as it is.
        tokenizer: written beside it; its special tokens go into the export's configurations.
        folder: new, or an earlier export, which is replaced.
        export_format: `pathmoe`, for `import pathmoe`, or `olmoe`, for whatever serves `OlmoeForCausalLM`.

    Raises:
        ValueError: a router that OLMoE has no form for, or a folder that holds something else.
    """
    check_export_folder(folder)
    exported: PreTrainedModel = to_olmoe(model) if export_format == "olmoe" else copy.copy(model)
    exported.config = copy.deepcopy(exported.config)
    exported.generation_config = copy.deepcopy(exported.generation_config)
    for settings in (exported.config, exported.generation_config):
        settings.bos_token_id, settings.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    # In generation alone: in the model's configuration it would take a row of the embedding out of further training.
    pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    exported.generation_config.pad_token_id = pad_token_id

    def write(new: Path) -> None:
        exported.save_pretrained(new)
        tokenizer.save_pretrained(new)
        mark = new / EXPORT_MARK
        mark.write_text("\n".join(sorted(_content(new))) + "\n", encoding="utf-8")
        # Safetensors gives its files to their owner alone; that of the mark is what the umask asks for.
        for path in filter(Path.is_file, new.rglob("*")):
            path.chmod(mark.stat().st_mode)

    _replace_folder(folder.resolve(), write)


def check_export_folder(folder: Path, name: str | None = None) -> None:
    """Refuse to replace anything but an earlier export, or to write into one.

    Args:
        folder: where an export is to be.
        name: what errors call it; its path when None.

    Raises:
        ValueError: `folder` is a file, or a folder that holds what no export has written, or inside an export.
    """
    mark = folder / EXPORT_MARK
    ours = [EXPORT_MARK, *mark.read_text(encoding="utf-8").splitlines()] if mark.is_file() else []
    foreign = next((name for name in _content(folder) if name not in ours), None)
    if foreign or folder.is_file():
        found = f"holds {foreign}" if foreign else "is a file"
        raise ValueError(
            f"{name or folder} must be new, or hold an earlier export and nothing else, but {found}; move that away, "
            "or choose another folder to export to"
        )
    around = next((parent for parent in folder.resolve().parents if (parent / EXPORT_MARK).is_file()), None)
    if around:
        raise ValueError(f"{name or folder} must not lie inside the export {around}; choose another folder")


def _content(folder: Path) -> Iterator[str]:
    return (str(path.relative_to(folder)) for path in folder.rglob("*"))


def _replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a new folder, and rename it to `folder`; if that fails, what was there stays."""
    # One name, so that what a killed process left is cleared away by the next.
    beside = folder.with_name(f".{folder.name}.partial")
    _clear(beside, folder)
    try:
        (beside / "new").mkdir(parents=True)
        write(beside / "new")
        if folder.exists():
            os.replace(folder, beside / "old")
        os.replace(beside / "new", folder)
    finally:
        _clear(beside, folder)


def _clear(beside: Path, folder: Path) -> None:
    """Remove the folder `beside`; put back the old one if it was taken away and no new one has come."""
    if (beside / "old").exists() and not folder.exists():
        os.replace(beside / "old", folder)
    if beside.exists():
        shutil.rmtree(beside)


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
    check_export_folder(options.out, f"--out ({options.out})")
    model = load_model(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(saved_tokenizer(checkpoint))
    export_model(model, tokenizer, options.out, options.format)
    print(f"exported {checkpoint} to {options.out} ({options.format})")
