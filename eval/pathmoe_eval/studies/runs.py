"""The runs of a study: where each lies, by what it is of, and how far it has come."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathmoe.data.sources import C_FUNCTIONS, PYTHON_STDLIB
from pathmoe.training.checkpoint_io import saved_step
from pathmoe.training.run_folder import RUNS, has_checkpoint, resolve_checkpoint
from pathmoe_eval.closing import SUMMARY_FILE
from pathmoe_eval.evaluation.evaluated_data import HELD_OUT
from pathmoe_eval.reports.report import REPORT_FILE, TRACE_FOLDER
from pathmoe_eval.studies.plan import PlannedVariant
from pathmoe_eval.studies.run_key import Origin, kept_origins, prepared_origin, run_key
from pathmoe_eval.studies.run_result import RunResult, kept_result, name_of_result
from pathmoe_eval.studies.study import Evaluation, Study

STUDIES = RUNS / "studies"
STUDY_RUNS = RUNS / "study-runs"
"""Runs of all studies, each in a folder that is named after its content key, so that studies share them."""
STUDY_RESULTS = RUNS / "study-results"
"""What is kept of finished runs, each in a file of that name."""

FINISHED = "finished"


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """A variant with a seed."""

    variant: PlannedVariant
    seed: int
    evaluation: Evaluation
    key: str
    """Of its content; equal keys are the same run."""
    results: Path = STUDY_RESULTS
    """Folder of what is kept of finished runs."""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.variant.name}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Of the run."""
        return STUDY_RUNS / self.key

    @property
    def evaluation_folder(self) -> Path:
        """Of the report of its paths."""
        return self.folder / _limited("evaluation", self.evaluation.max_tokens)

    @property
    def perturbation_folder(self) -> Path | None:
        """Of the report of its perturbations; None where none are asked for."""
        tokens = self.evaluation.perturbation_document_tokens
        return None if tokens is None else self.folder / _limited("perturbation", tokens)

    @property
    def geometry_folder(self) -> Path | None:
        """Of the report of the geometry of its routers; None where none is asked for."""
        tokens = self.evaluation.geometry_document_tokens
        return None if tokens is None else self.folder / _limited("geometry", tokens)

    @property
    def is_trained(self) -> bool:
        """Whether it has all its steps and no more, and the summary that follows them."""
        return bool(_content(self.folder / SUMMARY_FILE).get("steps") == self.variant.steps)

    @property
    def is_complete(self) -> bool:
        """Whether its folder has all that the study asks for."""
        return self.is_trained and not self._reports_to_write()

    @property
    def result_file(self) -> Path:
        """What is kept of it once it is finished."""
        return self.results / name_of_result(self.key, self.evaluation)

    def kept(self) -> RunResult | None:
        """The result that was kept of it, see `kept_result`."""
        return kept_result(self.result_file, self.variant.name)

    @property
    def is_finished(self) -> bool:
        """Whether it is trained, and evaluated as the study asks, here or where its result was kept, undamaged."""
        try:
            return self.is_complete or self.kept() is not None
        except ValueError:
            return False

    def _reports_to_write(self) -> list[list[str]]:
        """Arguments of Python for the reports that are not there, or that lack what comes last."""
        limits, commands = self.evaluation, []
        if not _has_section(self.evaluation_folder, "load"):
            # Logits of all experts would be most of the bytes, and no figure of a study is of them.
            limit = [] if limits.max_tokens is None else [f"--max_tokens={limits.max_tokens}"]
            commands.append(self._evaluate("paths", self.evaluation_folder, *limit, "--logits=false"))
        folder = self.perturbation_folder
        if folder is not None and not _has_section(folder, "perturbation"):
            options = (
                f"--max_document_tokens={limits.perturbation_document_tokens}",
                # The paths of all evaluated documents: those of so few tokens would be known to the list alone.
                f"--paths_from={self.evaluation_folder / TRACE_FOLDER}",
                "--noise_sizes=[]", "--expert_numbers=[]",
            )  # fmt: skip
            commands.append(self._evaluate("perturb", folder, *options))
        folder = self.geometry_folder
        if folder is not None and not _has_section(folder, "geometry"):
            of_each = f"--max_document_tokens={limits.geometry_document_tokens}"
            commands.append(self._evaluate("geometry", folder, of_each))
        return commands

    def state(self) -> str:
        """How far it has come, in words."""
        if self.is_finished:
            return FINISHED
        if self.is_trained:
            return "trained, not evaluated"
        if has_checkpoint(self.folder):
            try:
                step = saved_step(resolve_checkpoint("last", self.folder))
            except ValueError as error:
                return f"damaged: {error}"
            return f"at step {step:,} of {self.variant.steps:,}"
        return "not begun"

    def commands(self) -> list[list[str]]:
        """Arguments of Python for all that it still lacks, in order."""
        fit = [
            "-m", "pathmoe", "fit", *self.variant.arguments, f"--seed_everything={self.seed}",
            f"--run_dir={self.folder}", "--ckpt_path=last",
        ]  # fmt: skip
        return [*([] if self.is_trained else [fit]), *self._reports_to_write()]

    def _evaluate(self, command: str, out: Path, *options: str) -> list[str]:
        data = self.variant.resolved["data"]
        is_built_in = data["source"] in (PYTHON_STDLIB, C_FUNCTIONS) and not data.get("mixture")
        documents = data["source"] if is_built_in else HELD_OUT
        return [
            "-m", "pathmoe_eval", command, f"--model={self.folder}", f"--data={documents}", *options, f"--out={out}",
        ]  # fmt: skip


def _has_section(folder: Path, section: str) -> bool:
    return section in _content(folder / REPORT_FILE).get("sections", {})


def _content(file: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where there is none, or a damaged one."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _limited(name: str, max_tokens: int | None) -> str:
    return name if max_tokens is None else f"{name}-{max_tokens}"


def study_runs(study: Study, variants: Sequence[PlannedVariant], results: Path = STUDY_RESULTS) -> list[StudyRun]:
    """All runs of a study, seed by seed, so that an early end leaves whole pairs.

    Prepares the data, whose content is a part of the keys.

    Args:
        study: as its file has it.
        variants: as planned.
        results: folder of what is kept of finished runs.
    """
    origins: dict[str, Origin] = {}

    def origin_of(data: dict[str, Any]) -> Origin:
        named = json.dumps(data, sort_keys=True)
        if named not in origins:
            origins[named] = prepared_origin(data)
        return origins[named]

    return _runs(study, variants, results, origin_of)


def kept_runs(study: Study, variants: Sequence[PlannedVariant], results: Path) -> list[StudyRun]:
    """The same on the data and of the version of which most results are kept, with no data at hand.

    Another interpreter has another library, and a release another version, so that results that came with a checkout
    are of no run that would be trained there.

    Returns:
        All runs of the study; none where no result is one of its runs.
    """

    def of_one(origin: Origin) -> list[StudyRun]:
        return _runs(study, variants, results, lambda _: origin)

    of_each = [of_one(origin) for origin in kept_origins(results)]
    most = max(of_each, key=_num_kept, default=[])
    return most if _num_kept(most) else []


def _num_kept(runs: Sequence[StudyRun]) -> int:
    return sum(run.result_file.is_file() for run in runs)


def _runs(
    study: Study,
    variants: Sequence[PlannedVariant],
    results: Path,
    origin_of: Callable[[dict[str, Any]], Origin],
) -> list[StudyRun]:
    runs = []
    for seed in study.seeds:
        for variant in variants:
            data = {**variant.resolved["data"], "vocab_size": variant.resolved["model"]["config"]["vocab_size"]}
            key = run_key(variant.resolved, seed, origin_of(data))
            runs.append(StudyRun(variant=variant, seed=seed, evaluation=study.evaluation, key=key, results=results))
    return runs
