"""All of the geometry of recorded router inputs: the section of a report."""

# Shapes: N tokens, M documents, D hidden, E experts, K experts per token, L MoE layers.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.geometry.directions import alignment, shared_direction
from pathmoe_eval.geometry.distance_bound import distance_bound
from pathmoe_eval.geometry.drift import drift
from pathmoe_eval.geometry.explained_overlap import explained_overlap
from pathmoe_eval.geometry.moments import StateMoments, singular_directions
from pathmoe_eval.geometry.pairs import draw_pairs, token_pairs
from pathmoe_eval.geometry.probes import ProbeChunk, probe
from pathmoe_eval.geometry.router_map import RouterMap
from pathmoe_eval.geometry.same_token import draw_same_token_pairs, same_token
from pathmoe_eval.geometry.sequences import overlap_of_trajectories, sequence_pairs
from pathmoe_eval.geometry.state_files import StateFiles
from pathmoe_eval.geometry.truncation import truncation


@dataclass(frozen=True, kw_only=True)
class GeometryOptions:
    """How much is drawn; the fields are options of the same names."""

    num_pairs: int = 100_000
    """Pairs of tokens in each layer."""
    num_token_classes: int = 256
    """Most frequent token ids that a probe is to tell apart."""
    seed: int = 0
    """Of pairs, random subspaces and resamples."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        for name, least in (("num_pairs", 100), ("num_token_classes", 2), ("seed", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"--{name} ({value}) must be at least {least}; raise it")


def analyse_geometry(
    files: StateFiles,
    routers: Sequence[RouterMap | None],
    router_of_layer: Sequence[int],
    logit_precision: float,
    options: GeometryOptions,
) -> dict[str, Any]:
    """`layers` and `drift`, each a list of dicts as `dataclasses.asdict` makes them.

    Args:
        files: what was recorded.
        routers: of all MoE layers; those of layers that decide nothing themselves are None, and are left out.
        router_of_layer: equal for layers that share a router's parameters.
        logit_precision: relative rounding of logits: the epsilon of the dtype that they were computed in.
        options: how much is drawn.

    Raises:
        ValueError: fewer than two tokens or documents; states that are not finite.
    """
    layers = [layer for layer in files.states if routers[layer] is not None]
    seeing = [layer for layer in layers if len(_of(routers, layer).visible_RD)]
    neighbours = [(one, other) for one, other in pairwise(seeing) if other == one + 1]
    return {
        "num_tokens": files.num_tokens,
        "layers": [_layer(files, layer, _of(routers, layer), logit_precision, options) for layer in layers],
        "drift": [
            {
                "first_layer": one,
                **asdict(
                    _drift(files, one, routers, router_of_layer[one] == router_of_layer[other], options),
                ),
            }
            for one, other in neighbours
        ],
    }


def _of(routers: Sequence[RouterMap | None], layer: int) -> RouterMap:
    router = routers[layer]
    assert router is not None, "layers without a router are left out"
    return router


def _layer(
    files: StateFiles, layer: int, router: RouterMap, logit_precision: float, options: GeometryOptions
) -> dict[str, Any]:
    """Everything about one layer."""
    states_ND, logits_NE = files.states[layer], files.logits[layer]
    moments = StateMoments(states_ND.shape[1])
    for rows in files.chunks(layer):
        moments.update(states_ND[rows])
    directions = singular_directions(moments)
    found: dict[str, Any] = {
        "layer": layer,
        "kind": router.kind,
        "hidden_size": states_ND.shape[1],
        "visible_dimensions": len(router.visible_RD),
        "shared_direction": asdict(shared_direction(directions, router.centred_ED)),
        "token_pairs": _token_pairs(files, layer, router, logit_precision, options),
        **_sequences(files, layer, router, options),
    }
    if (aligned := alignment(directions, router.centred_ED, files.num_tokens)) is not None:
        found["alignment"] = asdict(aligned)
    if router.kind == "linear" and router.centred_ED is not None:
        states = (states_ND[rows] for rows in files.chunks(layer))
        bias_E = _bias(states_ND, logits_NE, router)
        num_ranks = min(4, files.expert_ids_NLK.shape[2])
        found["truncation"] = asdict(truncation(states, directions, router.centred_ED, bias_E, num_ranks))
    if len(set(files.document_N.tolist())) > 1:
        found["probes"] = asdict(_probes(files, layer, router, options))
    return found


def _bias(states_ND: NDArray[np.floating], logits_NE: NDArray[np.floating], router: RouterMap) -> NDArray[np.float64]:
    """What a linear router adds to its logits, less its mean: what its matrix leaves of them, alike for all tokens."""
    assert router.centred_ED is not None
    some = slice(0, 1000)
    logits = logits_NE[some].astype(np.float64)
    rest_NE = logits - logits.mean(axis=1, keepdims=True) - states_ND[some].astype(np.float64) @ router.centred_ED.T
    return np.asarray(rest_NE.mean(axis=0))


def _token_pairs(
    files: StateFiles, layer: int, router: RouterMap, logit_precision: float, options: GeometryOptions
) -> dict[str, Any]:
    states_ND, logits_NE, ids_NK = files.states[layer], files.logits[layer], files.expert_ids_NLK[:, layer]
    drawn = draw_pairs(files.num_tokens, options.num_pairs, options.seed)
    pairs = token_pairs(states_ND, logits_NE, ids_NK, router, drawn)
    # Either token's logits are rounded, and so is the distance.
    rounding = 4 * logit_precision * float(np.abs(logits_NE).max())
    bound = distance_bound(pairs, router, rounding)
    found: dict[str, Any] = {
        "bound": None if bound is None else asdict(bound),
        "explained": asdict(explained_overlap(pairs)),
        "same_token": None,
    }
    drawn_of_one = draw_same_token_pairs(files.token_ids_N, options.num_pairs, options.seed)
    if drawn_of_one is not None and pairs.distance["row"].any():
        of_one = token_pairs(states_ND, logits_NE, ids_NK, router, drawn_of_one)
        found["same_token"] = asdict(same_token(of_one, pairs))
    return found


def _sequences(files: StateFiles, layer: int, router: RouterMap, options: GeometryOptions) -> dict[str, Any]:
    """`sequences`, and `trajectories` where documents answer problems."""
    states_ND, ids_NK = files.states[layer], files.expert_ids_NLK[:, layer]
    number, num_experts = len(files.domains), files.logits[layer].shape[1]
    pooled_MD = np.zeros((number, states_ND.shape[1]))
    for rows in files.chunks(layer):
        np.add.at(pooled_MD, files.document_N[rows], states_ND[rows])
    visits_ME = np.zeros((number, num_experts))
    np.add.at(visits_ME, (files.document_N[:, None], ids_NK), 1)
    tokens_M = np.bincount(files.document_N, minlength=number)[:, None]
    usage_ME = visits_ME / visits_ME.sum(axis=1, keepdims=True)
    pairs = sequence_pairs(pooled_MD / tokens_M, usage_ME, ids_NK.shape[1], files.domains, router, seed=options.seed)
    found: dict[str, Any] = {"sequences": asdict(pairs)}
    problems = [problem for problem in files.problems if problem is not None]
    if len(problems) == number:
        of_pairs = overlap_of_trajectories(usage_ME, problems, files.domains, seed=options.seed)
        found["trajectories"] = {name: asdict(mean) for name, mean in of_pairs.items()}
    return found


def _probes(files: StateFiles, layer: int, router: RouterMap, options: GeometryOptions) -> Any:
    """Probes for this layer's expert, the next one's, and the token."""
    ids_NL = files.expert_ids_NLK[:, :, 0].astype(np.int64)
    ids, counts = np.unique(files.token_ids_N, return_counts=True)
    frequent = ids[np.argsort(-counts, kind="stable")[: options.num_token_classes]]
    class_of_id = np.full(int(ids.max()) + 1, -1)
    class_of_id[frequent] = np.arange(len(frequent))
    classes = {"expert": ids_NL[:, layer], "token": class_of_id[files.token_ids_N]}
    num_experts = files.logits[layer].shape[1]
    num_classes = {"expert": num_experts, "token": len(frequent)}
    if layer + 1 < ids_NL.shape[1]:
        classes["next expert"], num_classes["next expert"] = ids_NL[:, layer + 1], num_experts
    return probe(_probe_chunks(files, layer, classes), num_classes, router, options.seed)


def _probe_chunks(
    files: StateFiles, layer: int, classes: dict[str, NDArray[np.int64]]
) -> Callable[[], Iterator[ProbeChunk]]:
    def chunks() -> Iterator[ProbeChunk]:
        for rows in files.chunks(layer):
            yield ProbeChunk(
                states_ND=files.states[layer][rows],
                classes={name: class_N[rows] for name, class_N in classes.items()},
                document_N=files.document_N[rows],
            )

    return chunks


def _drift(
    files: StateFiles, layer: int, routers: Sequence[RouterMap | None], shares_router: bool, options: GeometryOptions
) -> Any:
    states, logits = ((of_layers[layer], of_layers[layer + 1]) for of_layers in (files.states, files.logits))
    of_both = (_of(routers, layer), _of(routers, layer + 1))
    return drift(states, logits, of_both, shares_router=shares_router, seed=options.seed)
