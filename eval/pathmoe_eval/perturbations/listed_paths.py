"""Only listed paths: tokens are held to the most frequent expert paths of a reference sample.

PathMoE (arXiv 2603.18297) allows only the K most frequent paths at inference and does not say where a token goes whose
own path is not among them. Our choice: to the listed path that has the same expert in most layers, of several such the
more frequent one.
"""

# Shapes: N tokens, C tokens of a chunk, T tokens of one forward, L MoE layers, P listed paths, E experts,
# K experts per token.

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pathmoe_eval.paths.paths import PathCounts
from pathmoe_eval.perturbations.interventions import rewritten_experts
from pathmoe_eval.traces.moe_layers import decoder_of, moe_layers
from pathmoe_eval.traces.trace import open_trace

_CELLS_PER_CHUNK = 1 << 22


def most_frequent_paths(path_ids_NL: NDArray[np.integer], num_paths: int | None) -> NDArray[np.integer]:
    """The most frequent paths [P, L], most frequent first, of equally frequent ones the lexicographically first.

    Args:
        path_ids_NL: integers [tokens, layers], each token's top-1 expert in each layer.
        num_paths: how many; None, or more than there are, for all.

    Raises:
        ValueError: num_paths below 1, or no token.
    """
    if num_paths is not None and num_paths < 1:
        raise ValueError(f"num_paths ({num_paths}) must be at least 1; raise it, or leave it out for all paths")
    if not len(path_ids_NL):
        raise ValueError("path_ids (0 tokens) must hold at least 1; pass a longer reference sample")
    paths_PL, counts_P = np.unique(path_ids_NL, axis=0, return_counts=True)
    return paths_PL[np.argsort(-counts_P, kind="stable")[:num_paths]]


def paths_of_trace(folder: Path, num_layers: int, num_experts: int) -> NDArray[np.unsignedinteger]:
    """All paths [P, L] of a trace, in the order of `most_frequent_paths`.

    Args:
        folder: of the trace.
        num_layers: MoE layers of the model that is to be held to them.
        num_experts: its experts in each.

    Raises:
        ValueError: see `open_trace`; a trace of another shape, or one that does not say which expert came first.
    """
    try:
        trace = open_trace(folder)
    except ValueError as error:
        raise ValueError(f"--paths_from: {error}") from error
    found = trace.header
    if (found.num_layers, found.num_experts) != (num_layers, num_experts):
        raise ValueError(
            f"--paths_from ({folder}) must have the {num_layers} MoE layers and {num_experts} experts of the model, "
            f"but has {found.num_layers} and {found.num_experts}; record one of the model"
        )
    if not found.is_sorted_by_weight:
        raise ValueError(f"--paths_from ({folder}) must have experts in the order of their weights; record another one")
    counts = PathCounts(num_layers=num_layers, num_experts=num_experts)
    for chunk in trace.chunks():
        counts.update(chunk.expert_ids_NLK[..., 0])
    return counts.most_frequent(trace.num_tokens)[0]


def is_listed(path_ids_NL: NDArray[np.integer], paths_PL: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether each token's path is listed, [N]."""
    _, index = np.unique(np.concatenate([paths_PL, path_ids_NL]), axis=0, return_inverse=True)
    return np.isin(index[len(paths_PL) :], index[: len(paths_PL)])


def nearest_listed(path_ids_NL: NDArray[np.integer], paths_PL: NDArray[np.integer]) -> NDArray[np.int64]:
    """Index [N] of the listed path that agrees with each token's in most layers, the first of several.

    Time is tokens times paths times layers.
    """
    nearest_N = np.empty(len(path_ids_NL), dtype=np.int64)
    chunk = max(1, _CELLS_PER_CHUNK // len(paths_PL))
    for first in range(0, len(path_ids_NL), chunk):
        path_ids_CL = path_ids_NL[first : first + chunk]
        agreement_CP = np.zeros((len(path_ids_CL), len(paths_PL)), dtype=np.int16)
        for path_ids_C, paths_P in zip(path_ids_CL.T, paths_PL.T, strict=True):
            agreement_CP += path_ids_C[:, None] == paths_P
        nearest_N[first : first + chunk] = agreement_CP.argmax(axis=1)
    return nearest_N


def held_paths(path_ids_NL: NDArray[np.integer], paths_PL: NDArray[np.integer]) -> NDArray[np.integer]:
    """The path [N, L] that each token is held to: its own where that is listed, else the nearest listed one."""
    held_NL = path_ids_NL.copy()
    is_off_N = ~is_listed(path_ids_NL, paths_PL)
    held_NL[is_off_N] = paths_PL[nearest_listed(path_ids_NL[is_off_N], paths_PL)]
    return held_NL


@contextmanager
def only_listed_paths(model: nn.Module, paths_PL: NDArray[np.integer]) -> Iterator[None]:
    """Have every token's top-1 experts be a listed path, in two passes for each forward.

    The first pass is free and gives each token's own path. In the second, each layer gives the token the expert of the
    path that it is held to (`held_paths`) in the place of the highest weight; if the router has chosen that expert too,
    the two swap weights, else the router's first expert drops out. The other experts and all weights are as the router
    chooses them in the second pass. Recorders record that one only.

    Args:
        model: a transformers model with routers.
        paths_PL: integers [paths, MoE layers], most frequent first.

    Raises:
        ValueError: see `moe_layers`; paths that are none of the model's; on a forward, a cache of keys and values,
            which two passes would fill twice.
    """
    layers = moe_layers(model)
    num_experts_L = [layer.num_experts for layer in layers]
    fits = paths_PL.ndim == 2 and len(paths_PL) > 0 and paths_PL.shape[1] == len(layers)
    if not fits or paths_PL.min() < 0 or (paths_PL.max(axis=0) >= num_experts_L).any():
        raise ValueError(
            f"paths ({list(paths_PL.shape)}) must be at least one path through the model's {len(layers)} MoE layers, "
            f"of expert ids from 0 and below {max(num_experts_L)}; make them with most_frequent_paths"
        )
    passes = _TwoPasses(paths_PL)
    # In front of a recorder's hook, for which the forward has not begun then.
    handle = decoder_of(model, layers).register_forward_pre_hook(passes.run_first, prepend=True, with_kwargs=True)
    try:
        with rewritten_experts(layers, passes.rewrite):
            yield
    finally:
        handle.remove()


class _TwoPasses:
    """What the first pass says to the second."""

    def __init__(self, paths_PL: NDArray[np.integer]) -> None:
        self._paths_PL = paths_PL
        self._is_first = False
        self._free_LT: list[NDArray[np.int64]] = []
        self._held_LT: NDArray[np.integer] | None = None

    def run_first(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("past_key_values") is not None:
            kind = type(decoder).__name__
            raise ValueError(f"past_key_values (of {kind}) must not be given under listed paths; run whole sequences")
        self._is_first, self._free_LT, self._held_LT = True, [], None
        try:
            # Not the module's call, whose hooks would take this for a forward.
            decoder.forward(*args, **kwargs)
        finally:
            self._is_first = False
        if self._free_LT:
            self._held_LT = held_paths(np.stack(self._free_LT, axis=1), self._paths_PL).T

    def rewrite(self, layer: int, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        if self._is_first:
            self._free_LT.append(ids_TK.gather(1, _first(weights_TK))[:, 0].cpu().long().numpy())
            return ids_TK
        assert self._held_LT is not None, "the hook of the whole model ran before those of its layers"
        return put_first(ids_TK, weights_TK, torch.tensor(self._held_LT[layer], device=ids_TK.device))


def put_first(ids_TK: Tensor, weights_TK: Tensor, expert_T: Tensor) -> Tensor:
    """Ids [T, K] with `expert_T` where the highest weight is; what was there goes where `expert_T` was, if it was."""
    expert_T1 = expert_T.to(ids_TK.dtype)[:, None]
    first_T1 = _first(weights_TK)
    displaced_T1 = ids_TK.gather(1, first_T1)
    return torch.where(ids_TK == expert_T1, displaced_T1, ids_TK).scatter(1, first_T1, expert_T1)


def _first(weights_TK: Tensor) -> Tensor:
    """Index [T, 1] of the highest weight, of equal ones the first, as recorders sort them."""
    return weights_TK.sort(dim=-1, descending=True, stable=True).indices[:, :1]
