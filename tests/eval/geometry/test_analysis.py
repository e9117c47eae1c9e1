"""The whole section, of real models: what is there for which router, and that no bound is violated."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pathmoe_eval.geometry.analysis import GeometryOptions, alternating, analyse_geometry
from pathmoe_eval.geometry.router_map import router_maps
from pathmoe_eval.geometry.state_files import record_states
from pathmoe_eval.traces.moe_layers import moe_layers
from tests.eval.conftest import BuildMoE
from tests.eval.geometry.test_state_files import documents_of

OPTIONS = GeometryOptions(num_pairs=300, num_token_classes=10)


def section_of(name: str, build_moe: BuildMoE, folder: Path, **fields: Any) -> tuple[Any, dict[str, Any]]:
    model = build_moe(name, **fields)
    layers = list(range(len(moe_layers(model))))
    files = record_states(
        SimpleNamespace(model=model), documents_of([30, 25, 40, 8]), layers, folder, max_length=16, stride=8
    )
    index = [layer.router_index for layer in moe_layers(model)]
    return model, analyse_geometry(files, router_maps(model), index, torch.finfo(torch.float32).eps, OPTIONS)


@pytest.mark.parametrize("name", ["path_b4", "low_rank", "olmoe", "gpt_oss", "deepseek_v3", "qwen3_moe"])
def test_linear_routers_have_every_part_and_keep_the_bound(name: str, build_moe: BuildMoE, tmp_path: Path) -> None:
    model, found = section_of(name, build_moe, tmp_path / "states")
    assert found["num_tokens"] == 103
    assert [one["layer"] for one in found["layers"]] == list(range(len(moe_layers(model))))
    neighbours = [one for one in found["drift"] if one["second_layer"] == one["first_layer"] + 1]
    assert [one["first_layer"] for one in neighbours] == list(range(len(moe_layers(model)) - 1))
    for one in found["layers"]:
        assert {"shared_direction", "token_pairs", "sequences", "alignment", "truncation", "probes"} < one.keys()
        assert (one["kind"], one["hidden_size"], one["visible_dimensions"]) == ("linear", 32, 5)
        bound = one["token_pairs"]["bound"]
        assert bound["violations_row"] == bound["violations_full"] == bound["violations_below"] == 0
        assert one["truncation"]["agreement"][-1][0] > 0.97, "all directions give the router's own logits"
        assert set(one["probes"]["accuracy"]) == {"expert", "token", "next expert"} or one is found["layers"][-1]
        assert one["sequences"]["domains"] == ("a", "b")
    if name == "path_b4":
        shared = [one["shares_router"] for one in neighbours]
        assert shared == [True, True, True, False, True, True, True, False]
        assert all((one["router_overlap"] > 1 - 1e-9) == one["shares_router"] for one in found["drift"])


@pytest.mark.parametrize(("name", "kind"), [("x_moe", "cosine"), ("recurrent", "recurrent")])
def test_other_routers_have_what_can_be_said_of_them(name: str, kind: str, build_moe: BuildMoE, tmp_path: Path) -> None:
    _, found = section_of(name, build_moe, tmp_path / "states", router_dim=7)
    for one in found["layers"]:
        assert (one["kind"], one["visible_dimensions"]) == (kind, 7)
        assert one["token_pairs"]["bound"] is None and "truncation" not in one
        assert ("alignment" in one) == (kind == "cosine")
        assert (one["shared_direction"]["logit_energy"] is None) == (kind == "recurrent")
        assert one["token_pairs"]["explained"]["share"].keys() == {"full", "row", "null", "logits"}


def test_a_router_that_sees_nothing_has_no_neighbours(build_moe: BuildMoE, tmp_path: Path) -> None:
    model = build_moe("olmoe")
    torch.nn.init.zeros_(model.model.layers[1].mlp.gate.weight)
    layers = [0, 1, 2]
    folder = tmp_path / "states"
    files = record_states(SimpleNamespace(model=model), documents_of([30, 25]), layers, folder, max_length=16, stride=8)
    found = analyse_geometry(files, router_maps(model), layers, 1e-7, OPTIONS)
    assert [one["visible_dimensions"] for one in found["layers"]] == [5, 0, 5] and found["drift"] == []
    blind = found["layers"][1]
    assert blind["token_pairs"]["bound"] is None and blind["token_pairs"]["explained"]["share"]["row"] is None
    assert "alignment" not in blind and blind["shared_direction"]["logit_energy"] is None


def test_layers_that_follow_are_left_out(build_moe: BuildMoE, tmp_path: Path) -> None:
    _, found = section_of("mono_b8", build_moe, tmp_path / "states")
    assert [one["layer"] for one in found["layers"]] == [0, 8] and found["drift"] == []


@pytest.mark.parametrize("field", ["num_pairs", "num_token_classes", "seed"])
def test_numbers_out_of_range_are_one_line(field: str) -> None:
    with pytest.raises(ValueError, match=rf"^--{field} \(-1\) must be at least \d+; raise it$"):
        GeometryOptions(**{field: -1})


def test_blocks_are_followed_from_their_first_layer(build_moe: BuildMoE, tmp_path: Path) -> None:
    _, found = section_of("path_b4", build_moe, tmp_path / "states")
    pairs = [(one["first_layer"], one["second_layer"]) for one in found["drift"]]
    neighbours = [(layer, layer + 1) for layer in range(8)]
    assert sorted(pairs) == sorted([*neighbours, (0, 2), (0, 3), (4, 6), (4, 7)])
    _, found = section_of("olmoe", build_moe, tmp_path / "others")
    assert all(one["second_layer"] == one["first_layer"] + 1 for one in found["drift"])


def test_every_other_document_of_a_domain() -> None:
    assert alternating(["a", "b", "a", "b", "a", "b"]).tolist() == [True, False, False, True, True, False]
    halves = alternating(["a"] * 5 + ["b"] * 4)
    assert halves.sum() == 5 and halves[5:].sum() == 2


def test_layers_that_decide_nothing_alone_are_refused(build_moe: BuildMoE, tmp_path: Path) -> None:
    model = build_moe("mono_b8")
    files = record_states(
        SimpleNamespace(model=model), documents_of([30, 25]), [1, 2], tmp_path / "states", max_length=16, stride=8
    )
    index = [layer.router_index for layer in moe_layers(model)]
    with pytest.raises(ValueError) as error:
        analyse_geometry(files, router_maps(model), index, 1e-7, OPTIONS)
    assert str(error.value) == (
        "--layers ([1, 2]) must name one that decides itself, and these take over the decision of an earlier one; "
        "choose among [0, 8]"
    )


def test_a_decision_that_is_taken_over_is_not_probed_twice(build_moe: BuildMoE, tmp_path: Path) -> None:
    _, found = section_of("mono_b8", build_moe, tmp_path / "states")
    assert [set(one["probes"]["accuracy"]) for one in found["layers"]] == [{"expert", "token"}] * 2


def test_a_router_that_is_not_linear_is_refused(build_moe: BuildMoE, tmp_path: Path) -> None:
    model = build_moe("olmoe")
    files = record_states(
        SimpleNamespace(model=model), documents_of([30, 25]), [0], tmp_path / "states", max_length=16, stride=8
    )
    # Such as one that scales its input inside of itself.
    files.logits[0] = files.logits[0] * (1 + np.arange(55)[:, None] / 55)
    with pytest.raises(ValueError, match=r"^--model: the router of MoE layer 0 must give its matrix times its state"):
        analyse_geometry(files, router_maps(model), [0, 1, 2], 1e-7, OPTIONS)
