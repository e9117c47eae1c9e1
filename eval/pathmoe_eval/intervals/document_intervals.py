"""Intervals of the figures of routing: each computed again without each group of documents, in a second pass."""

# Shapes: L MoE layers, S sequences, G groups of documents, N tokens of a piece.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.intervals.jackknife import jackknife_interval
from pathmoe_eval.intervals.paths_left_out import PathsLeftOut
from pathmoe_eval.intervals.routing_counts import RoutingCounts, routing_counts
from pathmoe_eval.intervals.routing_figures import (
    concentration_figures,
    layer_figures,
    limits,
    load_figures,
    router_figures,
)
from pathmoe_eval.traces.routing_chunk import RoutingChunk
from pathmoe_eval.traces.trace import RoutingTrace

_MAX_GROUPS = 64
_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class DocumentIntervals:
    """Intervals over the draw of documents; they say nothing of another training of the model."""

    confidence: float
    num_documents: int
    num_groups: int
    """Groups of consecutive documents that were left out one at a time: each document, but for more than 64."""
    ends: dict[str, tuple[float, float]]
    """Lower and upper end of the figure at each place of a report, such as `load.all_picks.mean_max_over_mean`."""


def document_intervals(trace: RoutingTrace, counts: RoutingCounts) -> DocumentIntervals | None:
    """Intervals of what was counted over a trace: see `jackknife_interval`.

    Args:
        trace: to read once more.
        counts: of all of its tokens; they are not changed.

    Returns:
        None with fewer than three documents, or where one holds so many of the tokens that there are fewer groups.
    """
    group_S = _group_of_sequence(trace)
    num_groups = len(np.unique(group_S[trace.sequence_lengths() > 0]))
    if num_groups < 3:
        return None
    paths = None if counts.paths is None else PathsLeftOut(counts.paths)
    without: list[dict[str, float]] = []
    num_tokens: list[int] = []
    for _, pieces in groupby(_pieces(trace, group_S), key=lambda piece: piece[0]):
        part = routing_counts(trace.header, has_paths=paths is not None)
        for _, chunk, tokens in pieces:
            part.update(chunk, tokens)
        without.append(_figures_without(part, counts, paths))
        num_tokens.append(part.load.num_tokens)
    figures = _figures_without(routing_counts(trace.header, has_paths=paths is not None), counts, paths)
    ends = {}
    for name, figure in figures.items():
        # Without a group a figure may not be defined: the share of the 1000 most frequent paths of fewer.
        if all(name in values for values in without):
            values_G = np.array([values[name] for values in without])
            found = jackknife_interval(figure, values_G, np.array(num_tokens), _CONFIDENCE)
            low, high = limits(name, counts.load.num_tokens)
            ends[name] = max(found[0], low), min(found[1], high)
    return DocumentIntervals(
        confidence=_CONFIDENCE,
        num_documents=trace.num_sequences,
        num_groups=num_groups,
        ends=ends,
    )


def _group_of_sequence(trace: RoutingTrace) -> NDArray[np.int64]:
    """int64 [sequences of the file]: ascending numbers of groups of about equally many tokens."""
    lengths_S = trace.sequence_lengths()
    if trace.num_sequences <= _MAX_GROUPS:
        return np.maximum(np.cumsum(lengths_S > 0) - 1, 0)
    begins_S = np.minimum(np.cumsum(lengths_S) - lengths_S, trace.num_tokens - 1)  # also of what is not selected
    return begins_S * _MAX_GROUPS // trace.num_tokens


def _pieces(trace: RoutingTrace, group_S: NDArray[np.int64]) -> Iterator[tuple[int, RoutingChunk, slice]]:
    """A group, a chunk, and which of its tokens are of the group, in the order of the tokens."""
    for chunk in trace.chunks():
        group_N = group_S[chunk.sequence_of_token_N()]
        starts = [0, *(np.flatnonzero(np.diff(group_N)) + 1).tolist(), chunk.num_tokens]
        for start, stop in pairwise(starts):
            yield int(group_N[start]), chunk, slice(start, stop)


def _figures_without(part: RoutingCounts, counts: RoutingCounts, paths: PathsLeftOut | None) -> dict[str, float]:
    """All figures of the tokens of `counts` that are not of `part`."""
    figures = load_figures(counts.load.without(part.load))
    if paths is not None and part.paths is not None:
        figures |= concentration_figures(*paths.frequencies(part.paths))
    if counts.consistency is not None and part.consistency is not None:
        figures |= layer_figures(counts.consistency.without(part.consistency))
    if counts.scores is not None and part.scores is not None:
        figures |= router_figures(counts.scores.without(part.scores))
    return figures
