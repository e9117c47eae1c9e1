"""`pathmoe-eval`: perplexity and expert paths of a checkpoint, from the command line."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence, Set
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import Namespace, set_parsing_settings
from transformers.utils.logging import disable_progress_bar

from pathmoe.training.errors import OneLineParser, fail, with_one_line_errors
from pathmoe_eval.analysis import Options
from pathmoe_eval.commands import ModelOptions, paths_command, perplexity_command, perturb_command, record_command
from pathmoe_eval.evaluation.evaluated_data import EvaluatedData
from pathmoe_eval.generation.generate import Generation
from pathmoe_eval.generation.search import Limits
from pathmoe_eval.generation.segments import Sampling
from pathmoe_eval.geometry.analysis import GeometryOptions
from pathmoe_eval.geometry.interventions import InterventionOptions
from pathmoe_eval.geometry_command import geometry_command
from pathmoe_eval.locality.study import Comparison
from pathmoe_eval.locality_command import Compiling, locality_command
from pathmoe_eval.perturbations.perturbing import Perturbations
from pathmoe_eval.reports.compare import compare_command
from pathmoe_eval.studies.runs import STUDY_RESULTS
from pathmoe_eval.studies.study import read_study
from pathmoe_eval.studies.study_command import Execution, Mode, study_command
from pathmoe_eval.tasks_command import TaskOptions, tasks_command

# The docstrings of fields are the help of their options.
set_parsing_settings(docstring_parse_attribute_docstrings=True)

Settings = TypeVar("Settings", bound=Any)


def main() -> None:
    """Run the command that the arguments name."""
    with_one_line_errors(_main)


def evaluation_parser() -> OneLineParser:
    """The parser of the command line."""
    parser = OneLineParser(
        prog="pathmoe-eval", description="Perplexity, expert paths and tasks of any MoE of transformers."
    )
    parsers = {
        "paths": _paths_parser(),
        "perplexity": _perplexity_parser(),
        "perturb": _perturb_parser(),
        "record": _record_parser(),
        "geometry": _geometry_parser(),
        "locality": _locality_parser(),
        "tasks": _tasks_parser(),
        "compare": _compare_parser(),
        "study": _study_parser(),
    }
    commands = parser.add_subcommands(dest="command", required=True)
    for name, of_command in parsers.items():
        commands.add_subcommand(name, of_command, help=of_command.description)
    return parser


def _main() -> None:
    options = evaluation_parser().parse_args([with_underscores(word) for word in sys.argv[1:]])
    if (out := options[options.command].get("out")) is not None:
        _refuse_a_place_without_room(out)
    disable_progress_bar()  # of transformers, which loads models in less time than it takes to read it
    run = {
        "paths": _paths, "perplexity": _perplexity, "perturb": _perturb, "record": _record, "locality": _locality,
        "geometry": _geometry,
        "tasks": _tasks, "compare": _compare, "study": _study,
    }  # fmt: skip
    run[options.command](options[options.command], shlex.join(["pathmoe-eval", *sys.argv[1:]]))


def with_underscores(word: str) -> str:
    """An option's name as the parser has it: `--max-tokens` is `--max_tokens`. Values stay as they are."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _refuse_a_place_without_room(out: Path) -> None:
    """Refuse, before the work begins, a folder that could not be written to at its end."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        found = "is a file" if there == out else f"{there} is a file"
        fail(f"--out ({out}) must be a folder, but {found}; choose another")
    if not os.access(there, os.W_OK | os.X_OK):
        fail(f"--out ({out}) must be a folder that can be written, but {there} can't be; choose another")


def _paths_parser() -> OneLineParser:
    parser = OneLineParser(description="Every statistic of expert paths, as a page and as numbers.")
    parser.add_argument("--model", type=str | None, default=None, help="As for record; or --trace.")
    _add_reading(parser)
    parser.add_argument("--trace", type=Path | None, default=None, help="A trace that record has written.")
    parser.add_argument("--out", type=Path, default=Path("report"), help="Folder of the report.")
    parser.add_argument("--later", type=Path | None, default=None, help="Trace of a later checkpoint, for saturation.")
    parser.add_argument(
        "--tagger", type=str | None, default=None, help="Classes of tokens: python, text, or module:function."
    )
    parser.add_argument("--logits", type=bool, default=True, help="Record router logits, for the scores of routers.")
    parser.add_argument("--sets", type=bool, default=False, help="Also take the sets of all chosen experts as paths.")
    parser.add_argument("--olmoe_script", type=bool, default=False, help="Count as the scripts of OLMoE do.")
    parser.add_argument("--seed", type=int, default=0, help="Of the permutations behind nulls.")
    parser.add_argument(
        "--sketch", type=bool, default=False, help="Estimate paths in fixed memory, for billions of tokens; no classes."
    )
    return parser


def _perplexity_parser() -> OneLineParser:
    parser = OneLineParser(description="Perplexity and bits per byte, by document and domain, with intervals.")
    parser.add_argument("--model", type=str, required=True, help="As for record.")
    _add_reading(parser)
    parser.add_argument("--out", type=Path | None, default=None, help="Folder of a report to write, too.")
    return parser


def _perturb_parser() -> OneLineParser:
    parser = OneLineParser(description="Perplexity under permuted, noisy, restricted and other routing.")
    parser.add_argument("--model", type=str, required=True, help="As for record.")
    _add_reading(parser)
    parser.add_class_arguments(Perturbations, as_group=False)
    parser.add_argument(
        "--out", type=Path, default=Path("report"), help="Folder of the report; that of paths gets the chart."
    )
    return parser


def _compare_parser() -> OneLineParser:
    parser = OneLineParser(description="Reports side by side, in one page and one table.")
    parser.add_argument("reports", type=Path, nargs="*", help="Two report.json or more.")
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="Folder of the page.")
    return parser


def _study_parser() -> OneLineParser:
    parser = OneLineParser(description="Variants trained on equal terms over seeds, evaluated and compared.")
    parser.add_argument("--config", type=str, required=True, help="File of the study, or the name of a shipped one.")
    parser.add_argument(
        "--report", action="store_true", help="Only report what is there, kept results first; train nothing."
    )
    parser.add_argument("--slurm", action="store_true", help="Print a script for sbatch, which carries out the runs.")
    parser.add_class_arguments(Execution, as_group=False)
    parser.add_argument(
        "--baseline",
        type=str | None,
        default=None,
        help="The only variant to compare with, in the place of the file's.",
    )
    parser.add_argument(
        "--results", type=Path, default=STUDY_RESULTS, help="Folder of what is kept of finished runs, a file each."
    )
    parser.add_argument(
        "--out", type=Path | None, default=None, help="Folder of the report; by default runs/studies/NAME."
    )
    return parser


def _record_parser() -> OneLineParser:
    parser = OneLineParser(description="The routing of every token, written as a trace.")
    parser.add_argument(
        "--model", type=str, required=True, help="A run folder, a checkpoint, last, a transformers folder, a hub name."
    )
    _add_reading(parser)
    parser.add_argument("--out", type=Path, required=True, help="Folder of the trace.")
    parser.add_argument("--logits", type=bool, default=False, help="Also record router logits.")
    return parser


def _geometry_parser() -> OneLineParser:
    parser = OneLineParser(description="How much of routing is the geometry of hidden states, as routers see it.")
    parser.add_argument("--model", type=str, required=True, help="As for record.")
    _add_reading(parser, has_problems=True)
    parser.add_argument(
        "--layers", type=list[int] | None, default=None, help="MoE layers, from 0; by default all of up to 8, else six."
    )
    parser.add_class_arguments(GeometryOptions, as_group=False)
    parser.add_class_arguments(InterventionOptions, as_group=False)
    parser.add_argument("--out", type=Path, default=Path("report"), help="Folder of the report; that of paths will do.")
    return parser


def _locality_parser() -> OneLineParser:
    parser = OneLineParser(
        description="How alike the routing of one prompt's completions is, and what a cache has of it."
    )
    parser.add_argument("--model", type=str | None, default=None, help="As for record; or --trace.")
    parser.add_class_arguments(ModelOptions, as_group=False, skip=_NOT_OF_GENERATION)
    parser.add_argument("--prompt", type=Path | None, default=None, help="File whose text is gone on from, as it is.")
    parser.add_argument("--trace", type=Path | None, default=None, help="Folder of a tree that locality has written.")
    parser.add_argument("--out", type=Path, default=Path("locality"), help="Folder of the report and of the tree.")
    parser.add_class_arguments(Sampling, as_group=False)
    parser.add_class_arguments(Limits, as_group=False)
    parser.add_class_arguments(Generation, as_group=False, skip={"sampling", "limits"})
    parser.add_class_arguments(Compiling, as_group=False)
    parser.add_class_arguments(Comparison, as_group=False)
    return parser


def _tasks_parser() -> OneLineParser:
    parser = OneLineParser(description="Downstream tasks of lm-evaluation-harness, beside chance, with intervals.")
    parser.add_argument("--model", type=str, required=True, help="As for record.")
    parser.add_class_arguments(TaskOptions, as_group=False)
    parser.add_class_arguments(ModelOptions, as_group=False, skip={"model", "stride"})
    parser.add_argument("--out", type=Path, default=Path("tasks"), help="Folder of tasks.json.")
    return parser


# Windows are for documents.
_NOT_OF_GENERATION = {"model", "max_length", "stride"}


def _add_reading(parser: OneLineParser, has_problems: bool = False) -> None:
    """Options of what is read, and of how the model reads it."""
    parser.add_class_arguments(EvaluatedData, as_group=False, skip=set() if has_problems else {"problem_key"})
    parser.add_class_arguments(ModelOptions, as_group=False, skip={"model"})


def _settings(kind: type[Settings], options: Namespace) -> Settings:
    return kind(**{field.name: options[field.name] for field in fields(kind) if field.name in options})


def _paths(options: Namespace, command: str) -> None:
    if (options.model is None) == (options.trace is None):
        fail(f"--model ({options.model}) or --trace ({options.trace}) must be given, and not both; give one of them")
    if options.seed < 0:
        fail(f"--seed ({options.seed}) must be at least 0; raise it")
    if options.trace is not None:
        _refuse_what_a_trace_has(options)
    if options.sketch:
        _refuse_what_a_sketch_lacks(options)
    paths_command(
        None if options.model is None else _settings(ModelOptions, options),
        _settings(EvaluatedData, options),
        options.trace,
        options.out,
        options.later,
        options.tagger,
        options.logits,
        Options(options.sets, options.olmoe_script, options.seed, options.sketch),
        command,
    )


def _refuse_what_a_sketch_lacks(options: Namespace) -> None:
    """Refuse options of what needs each path."""
    for name, given in (("sets", options.sets), ("tagger", options.tagger is not None)):
        if given:
            fail(
                f"--{name} ({options[name]}) must not be given with --sketch true, which keeps no paths; leave one out"
            )


def _refuse_what_a_trace_has(options: Namespace) -> None:
    """Refuse options of a recording that is there already; --max_tokens takes the first tokens of it."""
    _refuse_what_it_has(options, (EvaluatedData, ModelOptions), but={"model", "max_tokens"})


def _refuse_what_it_has(options: Namespace, kinds: Sequence[type[Any]], but: Set[str]) -> None:
    for field in (field for kind in kinds for field in fields(kind)):
        if field.name in options and field.name not in but and options[field.name] != field.default:
            fail(f"--{field.name} ({options[field.name]}) must not be given with --trace, which has it; leave it out")


def _perplexity(options: Namespace, command: str) -> None:
    perplexity_command(_settings(ModelOptions, options), _settings(EvaluatedData, options), options.out, command)


def _perturb(options: Namespace, command: str) -> None:
    model, data = _settings(ModelOptions, options), _settings(EvaluatedData, options)
    perturb_command(model, data, _settings(Perturbations, options), options.out, command)


def _locality(options: Namespace, command: str) -> None:
    if (options.model is None) == (options.trace is None):
        fail(f"--model ({options.model}) or --trace ({options.trace}) must be given, and not both; give one of them")
    model = None
    if options.trace is not None:
        if options.prompt is not None:
            fail(f"--prompt ({options.prompt}) must not be given with --trace, which has it; leave it out")
        _refuse_what_it_has(options, (ModelOptions, Sampling, Limits, Generation), but={"model", "seed"})
    elif options.prompt is None:
        fail("--prompt (None) must be a file whose text the model goes on from; give one")
    else:
        model = ModelOptions(model=options.model, dtype=options.dtype, device=options.device)
    generation = Generation(
        sampling=_settings(Sampling, options),
        limits=_settings(Limits, options),
        batch_size=options.batch_size,
        num_samples=options.num_samples,
        num_beams=options.num_beams,
    )
    compiling, comparison = _settings(Compiling, options), _settings(Comparison, options)
    # A stored tree knows its own.
    seed = None if model is None and options.seed == Sampling.seed else options.seed
    locality_command(
        model, options.prompt, options.trace, generation, compiling, comparison, seed, options.out, command
    )


def _tasks(options: Namespace, command: str) -> None:
    model = ModelOptions(model=options.model, dtype=options.dtype, device=options.device, max_length=options.max_length)
    tasks_command(model, _settings(TaskOptions, options), options.out, command)


def _geometry(options: Namespace, command: str) -> None:
    model, data = _settings(ModelOptions, options), _settings(EvaluatedData, options)
    analysis, interventions = _settings(GeometryOptions, options), _settings(InterventionOptions, options)
    geometry_command(model, data, options.layers, analysis, interventions, options.out, command)


def _compare(options: Namespace, command: str) -> None:
    compare_command(options.reports, options.out, command)


def _study(options: Namespace, command: str) -> None:
    if options.report and options.slurm:
        fail("--slurm (true) must not be given with --report, which carries out nothing; leave one out")
    mode: Mode = "report" if options.report else "script" if options.slurm else "carry out"
    study = read_study(options.config, options.baseline)
    study_command(study, _settings(Execution, options), mode, options.results, options.out, command)


def _record(options: Namespace, command: str) -> None:
    model, data = _settings(ModelOptions, options), _settings(EvaluatedData, options)
    record_command(model, data, options.out, options.logits, command)


if __name__ == "__main__":
    main()
