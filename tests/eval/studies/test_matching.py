"""Sizes of variants: what the counts say, and the nearest value against trying all of them."""

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathmoe.config import PathMoEConfig
from pathmoe.counts import flops_per_token, parameter_counts
from pathmoe_eval.studies.matching import MATCHED_BY, Sizes, check_match, matched_value, sizes_of
from pathmoe_eval.studies.study import QUANTITIES, Match, Quantity

SETTINGS: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "moe_intermediate_size": 4,
    "num_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip
COSINE = SETTINGS | {"router_type": "cosine", "layers_per_router": 2}
DENSE = SETTINGS | {"first_k_dense_replace": 1}
SETTINGS_OF = {
    "router_dim": COSINE,
    "router_rank": SETTINGS,
    "moe_intermediate_size": SETTINGS,
    "intermediate_size": DENSE,
}


def test_sizes_are_those_of_the_counts() -> None:
    counts = parameter_counts(PathMoEConfig(**COSINE))
    sizes = sizes_of(COSINE, sequence_length=16)
    assert (sizes.parameters, sizes.active_parameters, sizes.router_parameters) == (
        counts.total, counts.active, counts.routers,
    )  # fmt: skip
    assert sizes.flops == flops_per_token(PathMoEConfig(**COSINE), 16).training


def test_the_nearest_of_equally_near_values_is_the_lower() -> None:
    at = {width: sizes_of(SETTINGS | {"moe_intermediate_size": width}, 16).parameters for width in (10, 11)}
    between = (at[10] + at[11]) // 2
    assert (at[10] + at[11]) % 2 == 0
    assert matched_value(SETTINGS, "model.config.moe_intermediate_size", "parameters", between, 16) == 10


@cache
def sizes_at(name: str, quantity: Quantity) -> dict[int, int]:
    """A quantity at every value of a setting up to one beyond those that are asked for."""
    values = range(0 if name == "router_rank" else 1, 40)
    return {value: sizes_of(SETTINGS_OF[name] | {name: value}, 16).of(quantity) for value in values}


@pytest.mark.parametrize("name", MATCHED_BY)
@settings(max_examples=12)
@given(data=st.data())
def test_the_chosen_value_is_the_nearest_of_all(data: st.DataObject, name: str) -> None:
    # Corrections of a router are merged into its matrix, so that they cost no FLOPs.
    quantity = data.draw(st.sampled_from(QUANTITIES[:2] if name == "router_rank" else QUANTITIES))
    at = sizes_at(name, quantity)
    target = data.draw(st.integers(min(at.values()) - 50, at[38]))
    found = matched_value(SETTINGS_OF[name], f"model.config.{name}", quantity, target, 16)
    assert found == min(at, key=lambda value: abs(at[value] - target))


@pytest.mark.parametrize(
    ("of_model", "key", "quantity", "line"),
    [
        (SETTINGS, "model.config.hidden_size", "flops", r"match.by \(model.config.hidden_size\) must be one of model"),
        (SETTINGS, "router_dim", "flops", r"match.by \(router_dim\) must be one of model.config.router_dim, "),
        (SETTINGS | {"router_type": "linear"}, "model.config.router_dim", "parameters",
         r"must be a setting that parameters depends on, but with model.config.router_type \(linear\) it does not"),
        (SETTINGS | {"router_type": "linear"}, "model.config.router_rank", "flops", r"must be a setting that flops"),
        (COSINE, "model.config.router_rank", "parameters", r"model.config.router_rank \(1\) must be 0"),
    ],
)  # fmt: skip
def test_settings_that_can_not_match_are_refused(of_model: dict[str, Any], key: str, quantity: Any, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        matched_value(of_model, key, quantity, 5000, 16)


def test_what_is_left_must_lie_within_the_tolerance() -> None:
    def sizes(parameters: int) -> Sizes:
        return Sizes(parameters=parameters, active_parameters=1, router_parameters=1, flops=1)

    match = Match(quantity="parameters", to="a", by={"b": "model.config.router_dim"}, tolerance=0.01)
    check_match(match, {"a": sizes(10_000), "b": sizes(10_100), "c": sizes(9_900)})
    line = (
        r"variants.b: parameters \(10,101, nearest by model.config.router_dim\) must be within 1.00% of those of a "
        r"\(10,000\), but 1.01% are left"
    )
    with pytest.raises(ValueError, match=line):
        check_match(match, {"a": sizes(10_000), "b": sizes(10_101), "c": sizes(9_900)})
    with pytest.raises(ValueError, match=r"variants.c: parameters \(9,000, which match.by does not name\) must be"):
        check_match(match, {"a": sizes(10_000), "b": sizes(10_101), "c": sizes(9_000)})
