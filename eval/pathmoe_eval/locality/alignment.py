"""Which positions of two completions are compared with each other after the fork at which they part."""

# Shapes: T tokens of a sequence, P pairs of completions, A aligned positions.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.generation.tree import GenerationTree
from pathmoe_eval.locality.pairs import CompletionPairs

Align = Callable[[int, NDArray[np.int64], NDArray[np.int64], int], NDArray[np.int64]]
"""From the number of a pair, the paths of both from node 0, and the length that they share, to positions in the paths,
int64 [2, aligned], each at least that length."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Alignment:
    """Aligned positions of pairs of completions: only such as have routing on both sides."""

    method: str
    """What aligned them: "position", "diff" or "lines"."""
    num_without_routing: int
    """Aligned positions that were left out since one of the tokens was never fed to the model."""
    pair_A: NDArray[np.int64]
    """Number of the pair, ascending."""
    first_A: NDArray[np.int64]
    """Node of its first completion."""
    second_A: NDArray[np.int64]
    """Node of its second."""
    distance_A: NDArray[np.int64]
    """Tokens from the fork to the farther of the two; 1 for the fork's children."""


def align(tree: GenerationTree, pairs: CompletionPairs, method: str, align_pair: Align) -> Alignment:
    """Align every pair by one of the functions below, under the name that the result is to have for it."""
    columns = [np.empty((4, 0), dtype=np.int64)]
    paths = {node: tree.path(node) for node in np.union1d(pairs.first_P, pairs.second_P).tolist()}
    for pair, nodes in enumerate(zip(pairs.first_P.tolist(), pairs.second_P.tolist(), strict=True)):
        first_T, second_T = (paths[node] for node in nodes)
        shared = int(tree.depth_N[pairs.fork_P[pair]]) + 1
        places = align_pair(pair, first_T, second_T, shared)
        distance = places.max(axis=0) + 1 - shared
        columns.append(np.stack([np.full_like(distance, pair), first_T[places[0]], second_T[places[1]], distance]))
    pair_A, first_A, second_A, distance_A = np.concatenate(columns, axis=1)
    has_both_A = tree.has_routing_N[first_A] & tree.has_routing_N[second_A]
    return Alignment(
        method=method,
        num_without_routing=int(np.count_nonzero(~has_both_A)),
        pair_A=pair_A[has_both_A],
        first_A=first_A[has_both_A],
        second_A=second_A[has_both_A],
        distance_A=distance_A[has_both_A],
    )


def align_by_position(tree: GenerationTree, pairs: CompletionPairs) -> Alignment:
    """Tokens that are equally far from the fork, as far as the shorter completion goes."""

    def align_pair(_: int, first_T: NDArray[np.int64], second_T: NDArray[np.int64], shared: int) -> NDArray[np.int64]:
        return np.tile(np.arange(shared, min(len(first_T), len(second_T))), (2, 1))

    return align(tree, pairs, "position", align_pair)


def align_by_diff(tree: GenerationTree, pairs: CompletionPairs) -> Alignment:
    """What a diff of the token ids after the fork matches: see `diff_positions`."""

    def align_pair(_: int, first_T: NDArray[np.int64], second_T: NDArray[np.int64], shared: int) -> NDArray[np.int64]:
        ids = [tree.token_ids_N[nodes_T[shared:]].tolist() for nodes_T in (first_T, second_T)]
        return diff_positions(*ids) + shared

    return align(tree, pairs, "diff", align_pair)


def align_by_lines(
    tree: GenerationTree,
    pairs: CompletionPairs,
    token_lines: Mapping[int, NDArray[np.integer]],
    line_pairs: Sequence[Sequence[tuple[int, int]]],
) -> Alignment:
    """A diff of the token ids within each pair of lines that belong together, such as those of equal assembly.

    Args:
        tree: the tree.
        pairs: the pairs.
        token_lines: for each completion's node, integers [depth + 1]: the line of each token of its path, the prompt's
            too, -1 for none.
        line_pairs: for each pair, lines of the first with lines of the second. Of pairs with a line that an earlier
            pair has taken, nothing is aligned, so that no token counts twice (our choice).

    Raises:
        ValueError: lines that are missing, or of another number of tokens.
    """
    if len(line_pairs) != len(pairs.first_P):
        raise ValueError(
            f"line_pairs ({len(line_pairs)}) must be as many as pairs ({len(pairs.first_P)}); pass a list for each"
        )
    for node in np.union1d(pairs.first_P, pairs.second_P).tolist():
        found, length = np.shape(token_lines.get(node, ())), int(tree.depth_N[node]) + 1
        if found != (length,):
            raise ValueError(
                f"token_lines ({list(found)} of completion {node}) must be integers [{length}]; pass the line of each "
                "token of its path"
            )

    def align_pair(
        pair: int, first_T: NDArray[np.int64], second_T: NDArray[np.int64], shared: int
    ) -> NDArray[np.int64]:
        sides = [_tokens_of_lines(np.asarray(token_lines[int(nodes_T[-1])]), shared) for nodes_T in (first_T, second_T)]
        found = [np.empty((2, 0), dtype=np.int64)]
        for lines in line_pairs[pair]:
            # Taken out, so that each line counts in one pair.
            places = [side.pop(line, None) for side, line in zip(sides, lines, strict=True)]
            if places[0] is not None and places[1] is not None:
                ids = [
                    tree.token_ids_N[nodes_T[place]].tolist()
                    for nodes_T, place in zip((first_T, second_T), places, strict=True)
                ]
                matched = diff_positions(*ids)
                found.append(np.stack([places[0][matched[0]], places[1][matched[1]]]))
        return np.concatenate(found, axis=1)

    return align(tree, pairs, "lines", align_pair)


def diff_positions(first: Sequence[int], second: Sequence[int]) -> NDArray[np.int64]:
    """Positions of two lists of token ids that belong together, int64 [2, aligned], ascending in both.

    Blocks that `difflib.SequenceMatcher` (without its heuristic of popular elements) finds equal; and blocks that it
    replaces by others of the same length, position by position: our choice. What is inserted, deleted or replaced by
    another number of tokens has no counterpart.
    """
    found = [np.empty((2, 0), dtype=np.int64)]
    for tag, start, stop, other_start, other_stop in SequenceMatcher(None, first, second, False).get_opcodes():
        if tag == "equal" or (tag == "replace" and stop - start == other_stop - other_start):
            found.append(np.stack([np.arange(start, stop), np.arange(other_start, other_stop)]))
    return np.concatenate(found, axis=1)


def _tokens_of_lines(line_T: NDArray[np.integer], shared: int) -> dict[int, NDArray[np.int64]]:
    """Positions after the shared ones of each line that has any."""
    place_T = np.arange(shared, len(line_T))
    order_T = np.argsort(line_T[shared:], kind="stable")
    lines, starts = np.unique(line_T[shared:][order_T], return_index=True)
    groups = np.split(place_T[order_T], starts[1:])
    return {line: group for line, group in zip(lines.tolist(), groups, strict=False) if line >= 0}
