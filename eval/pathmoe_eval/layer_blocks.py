"""Blocks of consecutive layers that share a router, and means over layer pairs within and across them."""

# Shapes: L MoE layers, P pairs of layers.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TypeVar

Figure = TypeVar("Figure", float, float | None)


@dataclass(frozen=True, kw_only=True)
class LayerPairMeans:
    """Means of one figure over pairs of different layers; pairs for which it is not defined are left out."""

    adjacent: float | None
    """Pairs (l, l + 1); None if the figure is defined for none."""
    adjacent_within_blocks: float | None
    """Those that share a router; None if there are none."""
    adjacent_across_blocks: float | None
    """Those that do not: from the last layer of a block to the first of the next; None if there are none."""
    within_blocks: float | None
    """All pairs of one block, near and far; None if there are none, or if only adjacent pairs were counted."""
    across_blocks: float | None
    """All pairs of different blocks; None if there are none, or if only adjacent pairs were counted."""


def check_router_of_layer(router_of_layer: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """`router_of_layer` as a tuple; ValueError unless it has one entry a layer."""
    if len(router_of_layer) != num_layers:
        raise ValueError(
            f"router_of_layer ({len(router_of_layer)} entries) must have one for each of num_layers ({num_layers}); "
            "name the router of every MoE layer"
        )
    return tuple(int(router) for router in router_of_layer)


def layer_blocks(router_of_layer: Sequence[int]) -> tuple[range, ...]:
    """The maximal runs of layers with equal routers, in order."""
    layers = range(len(router_of_layer))
    starts = [layer for layer in layers if layer == 0 or router_of_layer[layer] != router_of_layer[layer - 1]]
    return tuple(range(first, last) for first, last in pairwise([*starts, len(router_of_layer)]))


def fixed_blocks(num_layers: int, block_size: int) -> tuple[range, ...]:
    """Blocks of `block_size` layers, the last maybe shorter: for routers that no layers share."""
    if block_size < 1:
        raise ValueError(f"block_size ({block_size}) must be at least 1; pass the layers of a block")
    return tuple(range(first, min(first + block_size, num_layers)) for first in range(0, num_layers, block_size))


def layer_pairs(num_layers: int) -> tuple[tuple[int, int], ...]:
    """All pairs of layers (l, m) with l < m, in order of l, then m."""
    return tuple(combinations(range(num_layers), 2))


def layer_pair_means(
    values_P: Sequence[float | None], pairs_P: Sequence[tuple[int, int]], router_of_layer: Sequence[int]
) -> LayerPairMeans:
    """Means of a figure of layer pairs.

    Args:
        values_P: the figure for each pair; None where it is not defined.
        pairs_P: the pairs (l, m), l < m: all of them, or the adjacent ones.
        router_of_layer: one integer a layer, equal where layers share a router.
    """
    block_of_layer = {layer: index for index, block in enumerate(layer_blocks(router_of_layer)) for layer in block}
    all_pairs: tuple[list[float | None], ...] = ([], [])
    adjacent: tuple[list[float | None], ...] = ([], [])
    for value, (first, second) in zip(values_P, pairs_P, strict=True):
        is_across = block_of_layer[first] != block_of_layer[second]
        all_pairs[is_across].append(value)
        if second == first + 1:
            adjacent[is_across].append(value)
    has_all = len(pairs_P) == len(layer_pairs(len(router_of_layer)))
    return LayerPairMeans(
        adjacent=_mean(adjacent[0] + adjacent[1]),
        adjacent_within_blocks=_mean(adjacent[0]),
        adjacent_across_blocks=_mean(adjacent[1]),
        within_blocks=_mean(all_pairs[0]) if has_all else None,
        across_blocks=_mean(all_pairs[1]) if has_all else None,
    )


def square(values_P: Iterable[Figure], diagonal_L: Sequence[Figure]) -> tuple[tuple[Figure, ...], ...]:
    """A symmetric figure of all pairs, which come in the order of `layer_pairs`, as [layer][layer]."""
    num_layers = len(diagonal_L)
    of_pair = dict(zip(layer_pairs(num_layers), values_P, strict=True))
    of_pair |= {(layer, layer): value for layer, value in enumerate(diagonal_L)}
    layers = range(num_layers)
    return tuple(tuple(of_pair[min(row, column), max(row, column)] for column in layers) for row in layers)


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
