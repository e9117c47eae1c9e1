"""Which figures a study reads: of reports as the commands write them, see test_study_command for real ones."""

from typing import Any

import pytest

from pathmoe_eval.studies.figures import FIGURES, PRIMARY, figures_of


def perturbed(
    intervention: str, setting: float | None, rise: float | None, listed: float | None = None
) -> dict[str, Any]:
    return {"intervention": intervention, "setting": setting, "rise_percent": rise, "listed_share": listed}


def test_figures_are_found_where_they_stand() -> None:
    sections = {
        "perplexity": {"total": {"perplexity": 60.0, "bits_per_byte": 1.5}},
        "consistency": {"engagement": {"all_layers": {"observed": {"token_share": [1.0, 0.9, 0.8, 0.7]}}}},
        "perturbation": {
            "perturbed": [
                perturbed("permutation per layer", None, 12.5),
                perturbed("listed paths only", 100, 3.0, 0.9),
                perturbed("listed paths only", 500, None, 0.9),
            ]
        },
    }
    found = figures_of({"seconds": 10, "tokens_per_second": 5.0}, sections)
    assert found == {
        "perplexity": 60.0, PRIMARY: 1.5, "sustained": 0.7, "rise_permuted_per_layer": 12.5, "rise_100_paths": 3.0,
        "tokens_per_second": 5.0, "seconds": 10.0,
    }  # fmt: skip


def test_what_is_not_there_or_undefined_is_left_out() -> None:
    sections = {
        "perplexity": {"total": {"perplexity": None}},
        "consistency": {"engagement": {"all_layers": {"observed": {"token_share": [1.0, 0.9]}}}},
    }
    assert figures_of({}, sections) == {}


def test_keys_and_names_are_each_there_once() -> None:
    assert len({figure.key for figure in FIGURES}) == len({figure.name for figure in FIGURES}) == len(FIGURES)


@pytest.mark.parametrize("value", [0.0, 1.25, 123_456.0])
def test_every_figure_can_be_shown(value: float) -> None:
    for figure in FIGURES:
        assert figure.form(value)
        assert figure.form(None) == "\N{EN DASH}"
