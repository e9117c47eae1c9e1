"""Each figure is the number at the place in a report that it is named by, and counts can be taken from each."""

# Shapes: L MoE layers.

from typing import Any

import numpy as np
import pytest

from pathmoe_eval.experts.load import LoadCounts
from pathmoe_eval.experts.router_scores import RouterScoreSums
from pathmoe_eval.intervals.routing_figures import concentration_figures, layer_figures, load_figures, router_figures
from pathmoe_eval.layers.consistency import ConsistencyCounts
from pathmoe_eval.paths.concentration import concentration
from pathmoe_eval.paths.paths import PathCounts


def value_at(sections: Any, place: str) -> float:
    """The number at a place such as `load.all_picks.mean_max_over_mean`, of dataclasses and tuples."""
    for key in place.split(".")[1:]:
        sections = sections[int(key)] if isinstance(sections, tuple) else getattr(sections, key, None) or sections[key]
    return float(sections)


def fed(kind: Any, *arrays: Any, **settings: Any) -> Any:
    counts = kind(**settings)
    counts.update(*arrays)
    return counts


@pytest.mark.parametrize(("num_experts", "num_experts_per_tok"), [(6, 2), (20, 1), (3, 3)])
def test_figures_are_the_numbers_at_their_places(num_experts: int, num_experts_per_tok: int) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(300, 1, num_experts)) + 0.5 * rng.normal(size=(300, 6, num_experts))
    ids = np.argsort(-logits, axis=-1)[..., :num_experts_per_tok]
    layers = {"num_layers": 6, "num_experts": num_experts}
    shape = layers | {"num_experts_per_tok": num_experts_per_tok}
    paths = fed(PathCounts, ids[..., 0], **layers)
    consistency = fed(ConsistencyCounts, ids, **shape, router_of_layer=(0, 0, 0, 1, 1, 2))
    load = fed(LoadCounts, ids, **shape)
    scores = fed(RouterScoreSums, logits, ids, **shape, score_function="softmax")
    places = {"whole": concentration(paths)}
    for figures, section in (
        (concentration_figures(*paths.frequencies()), places),
        (layer_figures(consistency), consistency.result()),
        (load_figures(load), load.result()),
        (router_figures(scores), scores.result()),
    ):
        assert figures
        for place, figure in figures.items():
            assert figure == pytest.approx(value_at(section, place), rel=1e-12), place


def test_what_is_not_defined_has_no_figure() -> None:
    ids = np.zeros((9, 2, 1), dtype=int)
    shape = {"num_layers": 2, "num_experts": 1, "num_experts_per_tok": 1}
    assert "load.all_picks.mean_entropy_share" not in load_figures(fed(LoadCounts, ids, **shape))
    layers = layer_figures(fed(ConsistencyCounts, ids, **shape, router_of_layer=(0, 1)))
    assert "consistency.overlap.jaccard_means.within_blocks" not in layers
    scores = fed(RouterScoreSums, np.zeros((9, 2, 1)), ids, **shape, score_function="softmax")
    assert "router_scores.mean_margin_logits" not in router_figures(scores)
    few = concentration_figures(np.array([3]), np.array([4]))
    assert [place for place in few if "coverage" in place] == ["concentration.whole.coverage.share.0"]


@pytest.mark.parametrize("figures", [layer_figures, load_figures, router_figures])
def test_figures_without_a_part_are_those_of_the_rest(figures: Any) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(90, 4, 5))
    ids = np.argsort(-logits, axis=-1)[..., :2]
    shape = {"num_layers": 4, "num_experts": 5, "num_experts_per_tok": 2}

    def counts(first: int, last: int) -> Any:
        if figures is layer_figures:
            return fed(ConsistencyCounts, ids[first:last], **shape, router_of_layer=(0, 0, 1, 1))
        if figures is load_figures:
            return fed(LoadCounts, ids[first:last], **shape)
        return fed(RouterScoreSums, logits[first:last], ids[first:last], **shape, score_function="softmax")

    everything = counts(0, 90)
    before = figures(everything)
    assert figures(everything.without(counts(0, 40))) == pytest.approx(figures(counts(40, 90)), rel=1e-12)
    assert figures(everything) == before  # nothing was taken from the original
