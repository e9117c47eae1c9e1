"""Studies in files, planned runs that take no time, and results that nobody has trained."""

# Shapes: M documents.

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from docstring_parser.attrdoc import AttributeDocstrings

from pathmoe_eval.studies.figures import FIGURES
from tests.training.conftest import attribute_docstrings

STUDY: dict[str, Any] = {
    "base": ["tiny", "mini.yaml"],
    "variants": {"indep": {"configs": ["indep"]}, "path_b4": {"configs": ["path_b4"]}},
    "seeds": [0, 1],
    "baseline": "indep",
    "tokens": 640,
}
DATA = {
    "source": "mine.jsonl",
    "train": {"targets": 5000, "content_sha256": "1" * 64},
    "validation": {"documents": 4, "content_sha256": "2" * 64},
}
MINI = {
    "checkpoint_every_n_steps": 2,
    "model": {
        "config": {
            "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
            "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2,
        },
        "schedule": {"name": "constant", "warmup_steps": 1},
    },
    "data": {"source": "short.jsonl", "validation_fraction": 0.3, "sequence_length": 32, "micro_batch_size": 2},
    "trainer": {"val_check_interval": 5, "limit_val_batches": 2, "log_every_n_steps": 1},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _parse_docstrings_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each plan has a parser, which would read the source of all classes that it shows docstrings of."""
    monkeypatch.setattr(AttributeDocstrings, "get_attr_docs", staticmethod(attribute_docstrings))


WriteStudy = Callable[..., Path]
"""From the keys that differ from `STUDY` to its file; a key that is None is left out."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: data, and a configuration of the user's."""
    texts = [" ".join(f"{number * place % 97}" for place in range(number % 11)) for number in range(1, 400)]
    (tmp_path / "short.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (tmp_path / "mini.yaml").write_text(yaml.safe_dump(MINI))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write_study(folder: Path) -> WriteStudy:
    """Writes a study into the folder."""

    def write(**changes: Any) -> Path:
        content = {key: value for key, value in (STUDY | changes).items() if value is not None}
        (folder / "mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return folder / "mine.yaml"

    return write


MakeResults = Callable[..., list[Any]]
"""From bits per byte of each variant and seed to results."""


@pytest.fixture
def make_results() -> MakeResults:
    """Results of runs whose other figures follow from their bits per byte."""
    from pathmoe_eval.studies.run_result import RunResult

    def make(bits_per_byte: dict[str, dict[int, float]], data_hash: str = "0" * 16) -> list[Any]:
        bytes_M = np.array([100.0, 250.0, 50.0, 400.0])
        return [
            RunResult(
                variant=variant,
                seed=seed,
                figures={figure.key: value + place for place, figure in enumerate(FIGURES)}
                | {"bits_per_byte": value, "seconds": 10 * value},
                curve={tokens: 2 * value - tokens / 1000 for tokens in (64, 128, 192)},
                monitored={"entropy_bits": {64: value, 128: 2 * value}, "load_entropy": {128: value / 3}},
                num_tokens=500,
                data_hash=data_hash,
                nats_M=value * np.log(2) * bytes_M,
                bytes_M=bytes_M,
                circumstances={"commit": ["abc"], "torch": ["2.13"], "threads": ["1"]},
                data=DATA,
            )
            for variant, by_seed in bits_per_byte.items()
            for seed, value in by_seed.items()
        ]

    return make


WriteReport = Callable[..., Path]
"""From bits per byte of each variant and seed, and changes of all results or of the study, to a report's folder."""


@pytest.fixture
def write_report(write_study: WriteStudy, make_results: MakeResults) -> WriteReport:
    """Writes the report of results by variant and seed."""

    from pathmoe_eval.studies.comparison import compare_variants
    from pathmoe_eval.studies.plan import plan_variants
    from pathmoe_eval.studies.run_result import RunResult
    from pathmoe_eval.studies.runs import FINISHED, study_runs
    from pathmoe_eval.studies.study import read_study
    from pathmoe_eval.studies.study_report import StudyReport, write_study_report

    def write(bits: dict[str, dict[int, float]], **changes: Any) -> Path:
        of_results = {field.name for field in fields(RunResult)} & changes.keys()
        study = read_study(str(write_study(**{key: changes[key] for key in changes.keys() - of_results})))
        results = [replace(result, **{key: changes[key] for key in of_results}) for result in make_results(bits)]
        variants = plan_variants(study)
        runs = study_runs(study, variants)
        finished = {(name, seed) for name, by_seed in bits.items() for seed in by_seed}
        report = StudyReport(
            study=study, variants=variants, runs=runs, results=results,
            states={
                run.key: FINISHED if (run.variant.name, run.seed) in finished else "at step 4 of 10, last error: <why>"
                for run in runs
            },
            command="pathmoe-eval study --config mine.yaml", created="2026-01-01T00:00:00",
        )  # fmt: skip
        write_study_report(Path("out"), report, compare_variants(report.results, list(study.variants), study.baselines))
        return Path("out")

    return write
