"""What is kept of a run: read again as it was written, for whom it answers, and damaged."""

# Shapes: M documents.

from dataclasses import replace
from pathlib import Path

import pytest

from pathmoe_eval.studies.run_result import keep_result, kept_result
from pathmoe_eval.studies.study import Evaluation
from tests.eval.studies.conftest import MakeResults


def test_a_result_is_read_as_it_was_written(make_results: MakeResults, tmp_path: Path) -> None:
    (result,) = make_results({"indep": {3: 1.0 / 3}})
    keep_result(tmp_path / "kept.json", result, Evaluation())
    kept = kept_result(tmp_path / "kept.json", "another", Evaluation())
    assert kept is not None and kept.variant == "another"
    assert (kept.nats_M == result.nats_M).all() and (kept.bytes_M == result.bytes_M).all()
    assert replace(kept, variant="indep", nats_M=result.nats_M, bytes_M=result.bytes_M).__dict__ == result.__dict__


@pytest.mark.parametrize(
    ("kept", "asked", "answers"),
    [
        (Evaluation(), Evaluation(), True),
        (Evaluation(perturbation_tokens=50), Evaluation(), True),
        (Evaluation(perturbation_tokens=50), Evaluation(perturbation_tokens=50), True),
        (Evaluation(perturbation_tokens=50), Evaluation(perturbation_tokens=60), False),
        (Evaluation(), Evaluation(perturbation_tokens=50), False),
        (Evaluation(max_tokens=90), Evaluation(), False),
        (Evaluation(), Evaluation(max_tokens=90), False),
    ],
)
def test_a_result_answers_what_it_was_evaluated_for(
    kept: Evaluation, asked: Evaluation, answers: bool, make_results: MakeResults, tmp_path: Path
) -> None:
    (result,) = make_results({"indep": {0: 1.5}})
    keep_result(tmp_path / "kept.json", result, kept)
    assert (kept_result(tmp_path / "kept.json", "indep", asked) is not None) == answers


def test_nothing_kept_is_no_result(tmp_path: Path) -> None:
    assert kept_result(tmp_path / "kept.json", "indep", Evaluation()) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}'])
def test_a_damaged_result_is_one_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    file.write_text(text)
    with pytest.raises(ValueError) as error:
        kept_result(file, "indep", Evaluation())
    assert str(error.value) == f"{file} (damaged) must be a result as a study writes it; remove it"
