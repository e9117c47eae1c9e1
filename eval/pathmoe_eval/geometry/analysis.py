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

    `drift` is of neighbouring layers, and of the first layer of a block that shares a router with each later one of it.

    Args:
        files: what was recorded.
        routers: of all MoE layers; those of layers that decide nothing themselves are None, and are left out.
        router_of_layer: equal for layers that share a router's parameters.
        logit_precision: relative rounding of logits: the epsilon of the dtype that they were computed in.
        options: how much is drawn.

    Raises:
        ValueError: none of the layers has a router of its own; fewer than two tokens or documents; states that are not
            finite; a router that is not linear in its state, though it has one matrix.
    """
    layers = [layer for layer in files.states if routers[layer] is not None]
    if not layers:
        deciding = [layer for layer, router in enumerate(routers) if router is not None]
        raise ValueError(
            f"--layers ({sorted(files.states)}) must name one that decides itself, and these take over the decision of "
            f"an earlier one; choose among {deciding}"
        )
    seeing = [layer for layer in layers if len(_of(routers, layer).visible_RD)]
    return {
        "num_tokens": files.num_tokens,
        "layers": [_layer(files, layer, routers, logit_precision, options) for layer in layers],
        "drift": [
            {
                "first_layer": one,
                "second_layer": other,
                **asdict(_drift(files, (one, other), routers, router_of_layer[one] == router_of_layer[other], options)),
            }
            for one, other in _drifting_pairs(seeing, router_of_layer)
        ],
    }


def _drifting_pairs(layers: Sequence[int], router_of_layer: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours, and the first layer of each run of layers that share a router with each later one of the run."""
    pairs, first = [], layers[0] if layers else 0
    for one, other in pairwise(layers):
        if other == one + 1:
            pairs.append((one, other))
        if other > one + 1 or router_of_layer[other] != router_of_layer[first]:
            first = other
        elif first < one:
            pairs.append((first, other))
    return pairs


def _of(routers: Sequence[RouterMap | None], layer: int) -> RouterMap:
    router = routers[layer]
    assert router is not None, "layers without a router are left out"
    return router


def _layer(
    files: StateFiles,
    layer: int,
    routers: Sequence[RouterMap | None],
    logit_precision: float,
    options: GeometryOptions,
) -> dict[str, Any]:
    """Everything about one layer."""
    router = _of(routers, layer)
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
    if (aligned := alignment(directions, router.centred_ED)) is not None:
        found["alignment"] = asdict(aligned)
    if router.kind == "linear" and router.centred_ED is not None:
        states = (states_ND[rows] for rows in files.chunks(layer))
        bias_E = _bias(states_ND, logits_NE, router, _rounding(logits_NE, logit_precision), layer)
        num_ranks = min(4, files.expert_ids_NLK.shape[2])
        found["truncation"] = asdict(truncation(states, directions, router.centred_ED, bias_E, num_ranks))
    if len(set(files.document_N.tolist())) > 1:
        follows = layer + 1 < len(routers) and routers[layer + 1] is None
        found["probes"] = asdict(_probes(files, layer, router, options, is_followed=follows))
    return found


def _rounding(logits_NE: NDArray[np.floating], logit_precision: float) -> float:
    """What rounding may add to the distance of two tokens' logits, each of which is rounded."""
    return 4 * logit_precision * float(np.abs(logits_NE).max())


def _bias(
    states_ND: NDArray[np.floating], logits_NE: NDArray[np.floating], router: RouterMap, rounding: float, layer: int
) -> NDArray[np.float64]:
    """What a linear router adds to its logits, less its mean: what its matrix leaves of them, alike for all tokens."""
    assert router.centred_ED is not None
    some = slice(0, 1000)
    logits = logits_NE[some].astype(np.float64)
    rest_NE = logits - logits.mean(axis=1, keepdims=True) - states_ND[some].astype(np.float64) @ router.centred_ED.T
    bias_E = rest_NE.mean(axis=0)
    if (apart := float(np.abs(rest_NE - bias_E).max())) > 4 * rounding + 1e-4 * float(np.abs(logits).max()):
        raise ValueError(
            f"--model: the router of MoE layer {layer} must give its matrix times its state, and a bias, as logits, "
            f"but lies off by {apart:.3g}; its geometry can't be told"
        )
    return np.asarray(bias_E)


def _token_pairs(
    files: StateFiles, layer: int, router: RouterMap, logit_precision: float, options: GeometryOptions
) -> dict[str, Any]:
    states_ND, logits_NE, ids_NK = files.states[layer], files.logits[layer], files.expert_ids_NLK[:, layer]
    drawn = draw_pairs(files.num_tokens, options.num_pairs, options.seed)
    pairs = token_pairs(states_ND, logits_NE, ids_NK, router, drawn)
    bound = distance_bound(pairs, router, _rounding(logits_NE, logit_precision))
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


def _probes(files: StateFiles, layer: int, router: RouterMap, options: GeometryOptions, *, is_followed: bool) -> Any:
    """Probes for this layer's expert, the token, and the next layer's expert, unless that is the same decision."""
    ids_NL = files.expert_ids_NLK[:, :, 0].astype(np.int64)
    ids, counts = np.unique(files.token_ids_N, return_counts=True)
    frequent = ids[np.argsort(-counts, kind="stable")[: options.num_token_classes]]
    class_of_id = np.full(int(ids.max()) + 1, -1)
    class_of_id[frequent] = np.arange(len(frequent))
    classes = {"expert": ids_NL[:, layer], "token": class_of_id[files.token_ids_N]}
    num_experts = files.logits[layer].shape[1]
    num_classes = {"expert": num_experts, "token": len(frequent)}
    if layer + 1 < ids_NL.shape[1] and not is_followed:
        classes["next expert"], num_classes["next expert"] = ids_NL[:, layer + 1], num_experts
    return probe(_probe_chunks(files, layer, classes), num_classes, router, options.seed)


def _probe_chunks(
    files: StateFiles, layer: int, classes: dict[str, NDArray[np.int64]]
) -> Callable[[], Iterator[ProbeChunk]]:
    is_fitted_M = alternating(files.domains)

    def chunks() -> Iterator[ProbeChunk]:
        for rows in files.chunks(layer):
            yield ProbeChunk(
                states_ND=files.states[layer][rows],
                classes={name: class_N[rows] for name, class_N in classes.items()},
                document_N=files.document_N[rows],
                is_fitted_N=is_fitted_M[files.document_N[rows]],
            )

    return chunks


def alternating(domains: Sequence[str]) -> NDArray[np.bool_]:
    """Every other document of each domain, so that both halves have all of them: [M]."""
    order_M = np.argsort(np.unique(np.array(domains), return_inverse=True)[1], kind="stable")
    is_first_M = np.zeros(len(domains), dtype=bool)
    is_first_M[order_M[::2]] = True
    return is_first_M


def _drift(
    files: StateFiles,
    pair: tuple[int, int],
    routers: Sequence[RouterMap | None],
    shares_router: bool,
    options: GeometryOptions,
) -> Any:
    one, other = pair
    states, logits = ((of_layers[one], of_layers[other]) for of_layers in (files.states, files.logits))
    of_both = (_of(routers, one), _of(routers, other))
    return drift(states, logits, of_both, shares_router=shares_router, seed=options.seed)
