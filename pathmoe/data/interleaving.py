"""Which source of a mixture each position of the training stream reads: a closed form, with no state to resume.

The sources are the leaves of a Huffman tree of their weights. Of the first n positions of a node, its left child gets
floor(n w_left / w + 1/2) and its right child the others, so the position n itself belongs to the child whose number
grows from n to n + 1, as the position of that number in the child. Rounding errors shrink by w / w_parent on their way
down, and in a Huffman tree the weights above a leaf grow as Fibonacci's numbers do: after any number n of positions a
source of weight w has n w, give or take (1 + sum of 1 / F_i) / 2 < 1.68. Our choice.
"""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pathmoe.data.order import Int64Array, block_indices

_SUM_OF_WEIGHTS = 2**28
"""Weights are whole shares of about this, so that all is in integers; 2^34 positions fit."""


class _Node(NamedTuple):
    left: "_Node | int"
    right: "_Node | int"
    left_weight: int
    weight: int

    def of_left(self, n: Int64Array) -> Int64Array:
        """Positions of the left child among the first n."""
        return (2 * self.left_weight * n + self.weight) // (2 * self.weight)


def interleave(positions: Int64Array, weights: Sequence[float]) -> tuple[Int64Array, Int64Array]:
    """The source of each position, and how many earlier positions have the same source.

    positions: int64 [P], from 0 on. weights: positive, of any sum. Returns two int64 [P].
    """
    sources, places = np.empty_like(positions), np.empty_like(positions)

    def descend(node: _Node | int, n: Int64Array, which: Int64Array) -> None:
        if isinstance(node, int):
            sources[which], places[which] = node, n
            return
        of_left = node.of_left(n)
        is_left = node.of_left(n + 1) > of_left
        descend(node.left, of_left[is_left], which[is_left])
        descend(node.right, (n - of_left)[~is_left], which[~is_left])

    descend(_huffman_tree(weights), positions, np.arange(len(positions)))
    return sources, places


def positions_of_sources(num_positions: int, weights: Sequence[float]) -> list[int]:
    """How many of the first positions each source has."""
    numbers = [0] * len(weights)

    def descend(node: _Node | int, n: int) -> None:
        if isinstance(node, int):
            numbers[node] = n
            return
        of_left = int(node.of_left(np.array([n]))[0])
        descend(node.left, of_left)
        descend(node.right, n - of_left)

    descend(_huffman_tree(weights), num_positions)
    return numbers


def mixed_block_indices(
    positions: Int64Array, blocks_of_sources: Sequence[int], weights: Sequence[float], seed: int
) -> Int64Array:
    """Block read at each position, where the blocks of the sources are numbered one source after the other.

    Each source is in an order of its own and begins again when it is through: see `block_indices`.
    positions: int64 [P]. Returns int64 [P].
    """
    sources, places = interleave(positions, weights)
    first_blocks = np.cumsum([0, *blocks_of_sources])
    indices = np.empty_like(positions)
    for source, num_blocks in enumerate(blocks_of_sources):
        here = sources == source
        indices[here] = first_blocks[source] + block_indices(places[here], num_blocks, seed)
    return indices


def _huffman_tree(weights: Sequence[float]) -> _Node | int:
    total = sum(weights)
    heap: list[tuple[int, int, _Node | int]] = [
        (max(1, round(weight / total * _SUM_OF_WEIGHTS)), source, source) for source, weight in enumerate(weights)
    ]
    heapq.heapify(heap)
    for number in range(len(heap), 2 * len(heap) - 1):
        (left_weight, _, left), (right_weight, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        weight = left_weight + right_weight
        heapq.heappush(heap, (weight, number, _Node(left, right, left_weight, weight)))
    return heap[0][2]
