"""All interventions on real models: what is there, and what follows from its own parts."""

import json
from typing import Any

import pytest

from pathmoe_eval.geometry.interventions import InterventionOptions, measure_interventions
from pathmoe_eval.geometry.router_map import router_maps
from pathmoe_eval.traces.moe_layers import moe_layers
from tests.eval.conftest import BuildMoE
from tests.eval.geometry.test_state_files import documents_of

OPTIONS = InterventionOptions(interventions=True, prompt_tokens=6, completion_tokens=5, kept_share=0.5)


def measured(model: Any, context_length: int | None = 40) -> dict[str, Any]:
    documents = documents_of([14, 3, 11, 30])
    layers = range(len(moe_layers(model)))
    found = measure_interventions(
        model, documents, router_maps(model), layers, OPTIONS, context_length=context_length, seed=0
    )
    return dict(json.loads(json.dumps(found)))


@pytest.mark.parametrize("name", ["path_b4", "mono_b8", "recurrent", "gpt_oss"])
def test_every_part_is_there(name: str, build_moe: BuildMoE) -> None:
    model = build_moe(name)
    found = measured(model)
    deciding = [layer for layer, router in enumerate(router_maps(model)) if router is not None]
    assert found["num_sequences"] == 3, "one document is too short"
    assert [one["name"] for one in found["inputs"]] == ["x1", "x2", "x3", "x4", "x6", "shuffled", "reversed"]
    for one in found["inputs"]:
        assert [layer["layer"] for layer in one["layers"]] == deciding
    assert found["rollouts"]["steps"] == [1, 2, 4, 5] and found["rollouts"]["num_rollouts"] == 3
    numbers = [one["num_layers"] for one in found["pruning"]]
    assert numbers[0] == 0 and numbers[-1] == len(deciding)
    assert {one["num_kept"] for one in found["pruning"]} == {3}
    assert set(found["pruning"][0]["nats"]) == {"prompt", "own", "other"}
    assert found == measured(model), "the same seed"


def test_all_copies_are_taken_where_nothing_bounds_them(build_moe: BuildMoE) -> None:
    names = [one["name"] for one in measured(build_moe("olmoe"), None)["inputs"]]
    assert names == ["x1", "x2", "x3", "x4", "x6", "x8", "x12", "shuffled", "reversed"]


def test_short_documents_are_refused(build_moe: BuildMoE) -> None:
    model = build_moe("olmoe")
    with pytest.raises(ValueError, match=r"^--data \(1 documents of at least 11 tokens\) must hold at least 2"):
        measure_interventions(
            model, documents_of([12, 4, 9]), router_maps(model), [0], OPTIONS, context_length=None, seed=0
        )


@pytest.mark.parametrize(
    ("field", "value"), [("prompt_tokens", 1), ("completion_tokens", 0), ("kept_share", 0.0), ("kept_share", 1.5)]
)
def test_numbers_out_of_range_are_one_line(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^--{field} \({value}\) must be .*; (raise|change) it$"):
        InterventionOptions(**{field: value})


def test_a_context_too_short_is_one_line(build_moe: BuildMoE) -> None:
    model = build_moe("path_b4")
    with pytest.raises(ValueError) as error:
        measure_interventions(
            model, documents_of([14, 11]), router_maps(model), [0], OPTIONS, context_length=10, seed=0
        )
    assert str(error.value) == (
        "--prompt_tokens and --completion_tokens (6 and 5) must together fit into the model's context of 10 tokens; "
        "lower them"
    )
