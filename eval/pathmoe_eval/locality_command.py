"""What `pathmoe-eval locality` does: from a model and a prompt, or a stored tree, to a report."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pathmoe.data.hub import go_offline_without_hub
from pathmoe.training.provenance import provenance
from pathmoe_eval.commands import ModelOptions, now
from pathmoe_eval.evaluation.identity import documents_identity, model_identity
from pathmoe_eval.generation.generate import Generation, encode_prompt, generate
from pathmoe_eval.generation.tree_files import StoredTree, read_tree
from pathmoe_eval.locality.study import Comparison, study_tree
from pathmoe_eval.programs.compilation import Compiler
from pathmoe_eval.programs.compilers import LEVELS, open_compiler
from pathmoe_eval.reports.locality_summary import level_name
from pathmoe_eval.reports.report import (
    PAGE_FILE,
    REPORT_FILE,
    TREE_FOLDER,
    facts_of,
    read_report,
    refuse_another_report,
    write_report,
)
from pathmoe_eval.terminal_tables import locality_lines

Language = Literal["c", "c++", "python"]
Level = Literal["O0", "O1", "O2"]

_LANGUAGE_OF_SUFFIX: Mapping[str, Language] = {
    ".c": "c", ".h": "c", ".C": "c++", ".cc": "c++", ".cpp": "c++", ".cxx": "c++", ".c++": "c++", ".hpp": "c++",
    ".hh": "c++", ".hxx": "c++", ".py": "python",
}  # fmt: skip
_COMPILER_OF_LANGUAGE: Mapping[Language, str] = {"c": "gcc", "c++": "g++", "python": "python3"}

# What the study takes from what a tree was made from.
_NEEDED = (
    "model", "model_hash", "dtype", "prompt_ids", "prompt_file", "tokenizer", "method", "sampling", "limits",
    "num_samples", "num_beams", "num_forwarded", "num_read_again", "bytes_per_expert", "layer_names", "router_of_layer",
)  # fmt: skip


def _cpus() -> int:
    return os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class Compiling:
    """By which compiler programs are judged."""

    language: Language | None = None
    """Of the programs; None tells it by the suffix of the prompt's file."""
    compiler: str | None = None
    """A command or path; None takes gcc, g++ or python3."""
    level: Level = "O0"
    """Whose groups pairs are drawn from; the report has the groups of all levels."""
    num_workers: int = field(default_factory=_cpus)
    """Compilers that run beside each other."""

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"--num_workers ({self.num_workers}) must be at least 1; raise it")

    def open(self, prompt_file: Path | None) -> list[Compiler]:
        """The compiler at each level, the chosen one first; programs may include files beside the prompt's."""
        language = self.language
        if language is None:
            suffix = "" if prompt_file is None else prompt_file.suffix
            language = _LANGUAGE_OF_SUFFIX.get(suffix)
            if language is None:
                raise ValueError(
                    f"--language (None) must be c, c++ or python where the prompt's file ({prompt_file}) does not "
                    "tell; give it"
                )
        levels = (self.level, *(level for level in LEVELS if level != self.level))
        folder = None if prompt_file is None else prompt_file.resolve().parent
        if folder is not None and not folder.is_dir():
            sys.stderr.write(
                f"note: {folder}, where the prompt was, is not there: programs can't include what lay in it\n"
            )
            folder = None
        return [
            open_compiler(self.compiler or _COMPILER_OF_LANGUAGE[language], language, level, folder) for level in levels
        ]


class _Prompt(NamedTuple):
    """The prompt as the one document that was read."""

    token_ids: NDArray[np.int32]
    domain: str = ""


def locality_command(
    model: ModelOptions | None,
    prompt_file: Path | None,
    trace: Path | None,
    generation: Generation,
    compiling: Compiling,
    comparison: Comparison,
    seed: int | None,
    out: Path,
    command: str,
) -> None:
    """Write the report of a tree, or of one that a model makes of a prompt, which then lies in the report's folder.

    Segments that are decoded lie in the tree's folder, so that the same command, or one with higher limits, goes on
    from them. The seed is of the draws of the comparison; None takes that of the tree.
    """
    refuse_another_report(out, {})
    if model is None:
        assert trace is not None
        stored = read_tree(trace)
        _check_stored(trace, stored)
        if (named := stored.made_from["prompt_file"]) is not None:
            prompt_file = Path(named)
        compilers = compiling.open(prompt_file)
        tokenizer = _tokenizer_of(trace, stored)
        refuse_another_report(out, _identity(stored.made_from))
        _refuse_another_search(out, _sampling(stored.made_from))
    else:
        assert prompt_file is not None
        text, compilers = _read_prompt(prompt_file), compiling.open(prompt_file)
        opened = model.open()
        tokenizer = opened.tokenizer
        prompt = {"model": opened.name, "prompt_file": str(prompt_file), "prompt_ids": encode_prompt(opened, text)}
        identity = model_identity(opened.model)
        refuse_another_report(out, _identity(prompt | identity))
        _refuse_another_search(out, _sampling(_options(generation)))
        generate(opened, text, generation, out / TREE_FOLDER, prompt_file, identity)
        stored = read_tree(out / TREE_FOLDER)
    if seed is None:
        seed = int(stored.made_from["sampling"]["seed"])
    sections = study_tree(
        stored.tree,
        stored.made_from,
        tokenizer,
        compilers,
        comparison,
        num_workers=compiling.num_workers,
        seed=seed,
    )
    _note_without_programs(sections["equivalence"]["levels"][0], comparison)
    write_report(
        out,
        {"run": _run(stored, compilers[0], sections["equivalence"]["levels"][0], seed, command), "sections": sections},
    )
    for line in locality_lines(sections):
        print(line)
    number = len(stored.tree.completions())
    completions = f"{number:,} completion{'' if number == 1 else 's'}"
    print(f"{out / PAGE_FILE}: {completions}; every number is in {out / REPORT_FILE}")


def _note_without_programs(level: Mapping[str, Any], comparison: Comparison) -> None:
    """Say what to do where nothing compiles, so that no pair is of a group."""
    if level["num_compiled"] == 0 and "any" not in comparison.pairs:
        sys.stderr.write(
            f"note: none of {level['num_completed']:,} completions compiles, so that no pairs are of groups; --pairs "
            "[any] compares all\n"
        )


def _read_prompt(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"--prompt ({file}: {error.strerror}) must be a file of text; check the path") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompt ({file}: not UTF-8) must be a file of text; save it as UTF-8") from error


def _check_stored(folder: Path, stored: StoredTree) -> None:
    missing = [key for key in _NEEDED if key not in stored.made_from]
    if missing:
        raise ValueError(f"--trace ({folder}) must say its {missing[0]}, as trees of locality do; search it again")


def _tokenizer_of(folder: Path, stored: StoredTree) -> PreTrainedTokenizerBase:
    name = stored.made_from["tokenizer"]
    if not Path(name).is_dir():
        go_offline_without_hub()
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--trace ({folder}) needs its tokenizer ({name}), which is not there; bring it back to that place"
        ) from error


def _identity(made_from: Mapping[str, Any]) -> dict[str, Any]:
    """Of the model and of the prompt: a report is of what one model makes of one prompt."""
    file = made_from["prompt_file"]
    prompt = _Prompt(np.array(made_from["prompt_ids"], dtype=np.int32))
    return {
        "model": made_from["model"],
        "data": "a prompt" if file is None else Path(file).name,
        "num_tokens": len(prompt.token_ids),
        "dtype": made_from["dtype"],
        "model_hash": made_from["model_hash"],
        **documents_identity([prompt]),
    }


def _refuse_another_search(out: Path, sampling: str) -> None:
    """Refuse the folder of a report of another search, but for its limits."""
    if (out / REPORT_FILE).exists():
        theirs = facts_of(read_report(out / REPORT_FILE)).get("sampling", sampling)
        if theirs != sampling:
            raise ValueError(
                f"--out ({out}) must hold no report of another search, but holds one of {theirs}, not {sampling}; "
                "choose another folder"
            )


def _options(generation: Generation) -> dict[str, Any]:
    return {"method": generation.method, **asdict(generation)}


def _sampling(options: Mapping[str, Any]) -> str:
    """How sequences were drawn, as words: what applies to the method."""
    sampling, method = dict(options["sampling"]), options["method"]
    if method == "beams":
        sampling = {"max_new_tokens": sampling["max_new_tokens"]} | {"num_beams": options["num_beams"]}
    if method == "samples":
        sampling = {name: sampling[name] for name in ("temperature", "max_new_tokens", "seed")}
    return ", ".join([method, *(f"{name} {value}" for name, value in sampling.items())])


def _limits(options: Mapping[str, Any]) -> str:
    limits = options["limits"] if options["method"] == "tree" else {"num_samples": options["num_samples"]}
    return ", ".join(f"{name} {value}" for name, value in limits.items())


def _run(stored: StoredTree, compiler: Compiler, level: Mapping[str, Any], seed: int, command: str) -> dict[str, Any]:
    """What a report says of its run."""
    tree, made_from = stored
    return {
        "command": command,
        **_identity(made_from),
        "num_generated": tree.num_nodes - tree.prompt_length,
        "num_layers": tree.num_layers,
        "num_experts": tree.num_experts,
        "num_experts_per_tok": tree.num_experts_per_tok,
        "router_of_layer": made_from["router_of_layer"],
        "layer_names": made_from["layer_names"],
        "sampling": _sampling(made_from),
        **({} if made_from["method"] == "beams" else {"limits": _limits(made_from)}),
        "compiler": f"{compiler.version}, {compiler.language}, {level_name(level)}",
        "seed": seed,
        "versions": provenance(),
        "created": now(),
    }
