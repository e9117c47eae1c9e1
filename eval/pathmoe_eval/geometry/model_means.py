"""The geometry of a whole model in a few numbers: means over its layers, for models to be compared by."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

# Figures of a layer by their group, each with its dotted place in what `analyse_geometry` gives of the layer.
_OF_LAYERS = {
    "directions": {
        "shared_state_energy": "shared_direction.state_energy",
        "shared_logit_energy": "shared_direction.logit_energy",
        "mean_state_energy": "shared_direction.mean_state_energy",
        "mean_logit_energy": "shared_direction.mean_logit_energy",
        "alignment": "alignment.total",
    },
    "pairs": {
        "tightness": "token_pairs.bound.tightness_row.2",
        "explained_row": "token_pairs.explained.share.row",
        "explained_null": "token_pairs.explained.share.null",
        "explained_full": "token_pairs.explained.share.full",
        "explained_logits": "token_pairs.explained.share.logits",
        "overlap_same_token": "token_pairs.same_token.overlap",
        "overlap_any": "token_pairs.explained.mean_overlap",
        "usage_by_row": "sequences.correlation.pooled_row.usage_cosine.value",
        "usage_by_null": "sequences.correlation.pooled_null.usage_cosine.value",
        "usage_by_full": "sequences.correlation.pooled_full.usage_cosine.value",
    },
    "probes": {
        "expert_control": "probes.accuracy.expert.control.accuracy",
        "expert_content": "probes.accuracy.expert.content.accuracy",
        "expert_random": "probes.accuracy.expert.random.accuracy",
        "expert_most_frequent": "probes.most_frequent.expert",
        "next_control": "probes.accuracy.next expert.control.accuracy",
        "next_content": "probes.accuracy.next expert.content.accuracy",
        "next_random": "probes.accuracy.next expert.random.accuracy",
        "next_most_frequent": "probes.most_frequent.next expert",
        "token_control": "probes.accuracy.token.control.accuracy",
        "token_content": "probes.accuracy.token.content.accuracy",
        "token_random": "probes.accuracy.token.random.accuracy",
        "token_most_frequent": "probes.most_frequent.token",
    },
}
# Pairs above the bound of the full space are above that of the row space, too.
_VIOLATIONS = ("violations_row", "violations_below")
_OF_STEPS = ("router_overlap", "step_row", "step_null")
_OF_SHARED_STEPS = {
    "agreement": "agreement", "predicted_agreement": "predicted_agreement", "agreement_null": "agreement_null",
    "retained": "retained", "seen_overlap": "seen_overlap", "seen_overlap_null": "seen_overlap_null",
    "shared_step_row": "step_row", "shared_step_null": "step_null",
}  # fmt: skip


def model_means(section: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Figures by group and name: `directions`, `pairs` and `probes`, means over the layers that have them, and `steps`.

    `pairs.violations` is a count: pairs beyond a bound of Proposition 1, of all layers. `steps` are means over
    neighbouring layers: `router_overlap`, `step_row` and `step_null` over all of them, and over those that share a
    router `agreement`, `predicted_agreement`, `prediction_error` (the mean absolute difference of the two),
    `agreement_null`, `retained`, `seen_overlap`, `seen_overlap_null`, `shared_step_row` and `shared_step_null`. None
    stands for what no layer has.

    Args:
        section: as `analyse_geometry` gives it.
    """
    layers = section["layers"]
    means = {
        group: {name: over_layers(layers, place) for name, place in places.items()}
        for group, places in _OF_LAYERS.items()
    }
    bounds = [bound for layer in layers if (bound := layer["token_pairs"]["bound"]) is not None]
    means["pairs"]["violations"] = (
        float(sum(bound[kind] for bound in bounds for kind in _VIOLATIONS)) if bounds else None
    )
    steps = [step for step in section["drift"] if step["second_layer"] == step["first_layer"] + 1]
    shared = [step for step in steps if step["predicted_agreement"] is not None]
    means["steps"] = {
        **{name: _mean([step[name] for step in steps]) for name in _OF_STEPS},
        **{name: _mean([step[key] for step in shared]) for name, key in _OF_SHARED_STEPS.items()},
        "prediction_error": _mean([abs(step["agreement"] - step["predicted_agreement"]) for step in shared]),
    }
    return means


def over_layers(layers: Sequence[Mapping[str, Any]], place: str) -> float | None:
    """Mean over the layers that have a figure; None where none has.

    Args:
        layers: each a section of a report.
        place: of the figure in it, dotted.
    """
    return _mean([_look_up(layer, place) for layer in layers])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _look_up(layer: Any, place: str) -> Any:
    found = layer
    for part in place.split("."):
        if isinstance(found, Mapping):
            found = found.get(part)
        elif isinstance(found, Sequence):
            # No pair was apart, and there are no quantiles.
            found = found[int(part)] if int(part) < len(found) else None
    return found
