"""What is kept of a run: read again as it was written, by its name, and damaged."""

# Shapes: M documents.

from dataclasses import replace
from pathlib import Path

import pytest

from pathmoe_eval.studies.run_result import keep_result, kept_result, name_of_result
from pathmoe_eval.studies.study import Evaluation
from tests.eval.studies.conftest import MakeResults


def test_a_result_is_read_as_it_was_written(make_results: MakeResults, tmp_path: Path) -> None:
    (result,) = make_results({"indep": {3: 1.0 / 3}})
    keep_result(tmp_path / "kept.json", result)
    kept = kept_result(tmp_path / "kept.json", "another")
    assert kept is not None and kept.variant == "another"
    assert (kept.nats_M == result.nats_M).all() and (kept.bytes_M == result.bytes_M).all()
    assert replace(kept, variant="indep", nats_M=result.nats_M, bytes_M=result.bytes_M).__dict__ == result.__dict__


def test_what_is_there_already_is_not_written_again(make_results: MakeResults, tmp_path: Path) -> None:
    first, other = make_results({"indep": {0: 1.5, 1: 1.6}})
    keep_result(tmp_path / "kept.json", first)
    written = (tmp_path / "kept.json").stat().st_ino
    keep_result(tmp_path / "kept.json", first)
    assert (tmp_path / "kept.json").stat().st_ino == written
    keep_result(tmp_path / "kept.json", other)
    kept = kept_result(tmp_path / "kept.json", "indep")
    assert kept is not None and kept.seed == 1


def test_results_of_other_evaluations_have_other_names() -> None:
    evaluations = [
        Evaluation(max_tokens=tokens, perturbation_document_tokens=perturbed, geometry_document_tokens=geometry)
        for tokens in (None, 300, 500)
        for perturbed in (None, 300, 500)
        for geometry in (None, 300, 500)
    ]
    names = {name_of_result("abc", evaluation) for evaluation in evaluations}
    assert len(names) == 27 and {"abc.json", "abc-tokens300-perturbed500-geometry300.json"} < names


def test_nothing_kept_is_no_result(tmp_path: Path) -> None:
    assert kept_result(tmp_path / "kept.json", "indep") is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}', '{"format": 0}'])
def test_a_damaged_result_is_one_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    file.write_text(text)
    with pytest.raises(ValueError) as error:
        kept_result(file, "indep")
    assert str(error.value) == f"{file} (damaged) must be a result as this version writes it; remove it"
