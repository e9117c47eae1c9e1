"""Means of a model's geometry: against plain means over the layers of real sections."""

import math
from pathlib import Path
from typing import Any

import pytest

from pathmoe_eval.geometry.model_means import model_means
from tests.eval.conftest import BuildMoE
from tests.eval.geometry.test_analysis import section_of


@pytest.fixture
def section(build_moe: BuildMoE, tmp_path: Path) -> dict[str, Any]:
    return section_of("path_b4", build_moe, tmp_path / "states")[1]


def test_layers_are_averaged(section: dict[str, Any]) -> None:
    means = model_means(section)
    layers = section["layers"]
    assert means["directions"]["alignment"] == pytest.approx(
        math.fsum(layer["alignment"]["total"] for layer in layers) / len(layers)
    )
    shares = [layer["token_pairs"]["explained"]["share"]["row"] for layer in layers]
    assert means["pairs"]["explained_row"] == pytest.approx(math.fsum(shares) / len(shares))
    assert means["pairs"]["tightness"] == pytest.approx(
        math.fsum(layer["token_pairs"]["bound"]["tightness_row"][2] for layer in layers) / len(layers)
    )
    # The last layer has no next one.
    following = [layer["probes"]["accuracy"]["next expert"]["control"]["accuracy"] for layer in layers[:-1]]
    assert means["probes"]["next_control"] == pytest.approx(math.fsum(following) / len(following))
    assert None not in {value for group in means.values() for value in group.values()}, "each place is one"


def test_agreement_is_of_layers_that_share_a_router(section: dict[str, Any]) -> None:
    neighbours = [step for step in section["drift"] if step["second_layer"] == step["first_layer"] + 1]
    within = [step for step in neighbours if step["shares_router"]]
    assert len(within) < len(neighbours) < len(section["drift"])
    steps = model_means(section)["steps"]
    errors = [abs(step["agreement"] - step["predicted_agreement"]) for step in within]
    assert steps["prediction_error"] == pytest.approx(math.fsum(errors) / len(errors))
    assert steps["agreement"] == pytest.approx(math.fsum(step["agreement"] for step in within) / len(within))
    every = [step["step_row"] for step in neighbours]
    assert steps["step_row"] == pytest.approx(math.fsum(every) / len(every))


def test_violations_are_counted(section: dict[str, Any]) -> None:
    assert model_means(section)["pairs"]["violations"] == 0
    section["layers"][1]["token_pairs"]["bound"]["violations_row"] = 3
    section["layers"][2]["token_pairs"]["bound"]["violations_below"] = 2
    assert model_means(section)["pairs"]["violations"] == 5


def test_what_no_layer_has_is_none(build_moe: BuildMoE, tmp_path: Path) -> None:
    means = model_means(section_of("recurrent", build_moe, tmp_path / "states", router_dim=7)[1])
    assert means["pairs"]["violations"] is None and means["directions"]["alignment"] is None
    assert means["directions"]["shared_state_energy"] is not None


def test_pairs_that_are_nowhere_apart_have_no_tightness(section: dict[str, Any]) -> None:
    for layer in section["layers"]:
        layer["token_pairs"]["bound"]["tightness_row"] = ()
    assert model_means(section)["pairs"]["tightness"] is None
