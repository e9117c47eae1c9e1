"""Stretches of a tree between two decisions, decoded in batches: each is a function of its place in the tree alone."""

# Shapes: R rows of a batch, V vocabulary, L MoE layers, K experts per token, T tokens of a segment.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from transformers import Cache

from pathmoe_eval.generation.decoder import Decoder
from pathmoe_eval.generation.draws import draw_tokens, top_mass
from pathmoe_eval.generation.row_caches import join_rows, select_rows
from pathmoe_eval.generation.tree import CUT, END_OF_SEQUENCE, GOES_ON

Place = tuple[int, ...]
"""Which child was taken at each fork on the way: (0, 2) is the third child of the fork that the first child came to."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How sequences go on, and where they part."""

    temperature: float = 0.7
    """Of draws; 0 takes the likeliest token."""
    top_tokens: int = 30
    """The number m of the likeliest tokens whose probability decides on a fork."""
    max_mass: float = 0.4
    """A fork is where these tokens have at most this probability together, at temperature 1; 0 forks nowhere."""
    num_children: int = 6
    """Different tokens that a fork goes on with."""
    max_new_tokens: int = 512
    """Tokens after the prompt at most."""
    seed: int = 0
    """Of all draws."""

    def __post_init__(self) -> None:
        for name, is_right, rule in (
            ("temperature", 0 <= self.temperature < float("inf"), "be at least 0 and finite"),
            ("top_tokens", self.top_tokens >= 1, "be at least 1"),
            ("max_mass", 0 <= self.max_mass <= 1, "be between 0 and 1"),
            ("num_children", self.num_children >= 2, "be at least 2"),
            ("max_new_tokens", self.max_new_tokens >= 1, "be at least 1"),
            ("seed", self.seed >= 0, "be at least 0"),
        ):
            if not is_right:
                raise ValueError(f"--{name} ({getattr(self, name)}) must {rule}; change it")


@dataclass(kw_only=True)
class Segment:
    """Tokens up to the next decision; of the root segment the prompt is no part."""

    token_ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    """Of each token, at temperature 1."""
    expert_ids: list[NDArray[np.unsignedinteger]] = field(default_factory=list)
    """Routing [L, K] of each token that was fed: all, but for one that ends the sequence."""
    end: int = GOES_ON
    """How it ends: `END_OF_SEQUENCE`, `CUT`, or `GOES_ON` at a fork."""
    fork_mass: float = float("nan")
    """Probability that made it fork."""
    children: list[tuple[int, float]] = field(default_factory=list)
    """Token and log-probability of each child of the fork."""


@dataclass(kw_only=True)
class Row:
    """A segment that is to be decoded."""

    place: Place
    depth: int
    """Tokens after the prompt before the segment's own."""
    segment: Segment


def advance(row: Row, log_probability_V: NDArray[np.float64], sampling: Sampling, eos_ids: frozenset[int]) -> bool:
    """Decide what comes after the tokens so far; False where the segment ends."""
    segment = row.segment
    depth = row.depth + len(segment.token_ids)
    if depth >= sampling.max_new_tokens:
        segment.end = CUT
        return False
    key = (*row.place, len(segment.token_ids))
    if (mass := top_mass(log_probability_V, sampling.top_tokens)) <= sampling.max_mass:
        drawn = draw_tokens(log_probability_V, sampling.num_children, sampling.temperature, sampling.seed, key)
        segment.fork_mass = mass
        segment.children = [(token, float(log_probability_V[token])) for token in drawn]
        return False
    (token,) = draw_tokens(log_probability_V, 1, sampling.temperature, sampling.seed, key)
    return append(segment, token, float(log_probability_V[token]), eos_ids)


def append(segment: Segment, token: int, log_probability: float, eos_ids: frozenset[int]) -> bool:
    """Add a token; False where it ends the sequence."""
    segment.token_ids.append(token)
    segment.log_probabilities.append(log_probability)
    if token in eos_ids:
        segment.end = END_OF_SEQUENCE
        return False
    return True


def decode_segments(
    decoder: Decoder,
    rows: Sequence[Row],
    caches: Sequence[Cache],
    sampling: Sampling,
    eos_ids: frozenset[int],
    batch_size: int,
    finished: Callable[[Row, Cache | None], Row | None],
) -> None:
    """Decode segments whose first token is drawn but not fed.

    Those that begin deeper join the others when these are as long.

    Args:
        decoder: in use.
        rows: none ended.
        caches: of one row each, of what comes before the segments; they are not changed.
        sampling: how to go on.
        eos_ids: tokens that end a sequence.
        batch_size: rows of a forward at most.
        finished: called with each row when its segment ends, and at a fork with a cache of that row to go on from; may
            give a row that is to go on from this cache.
    """
    waiting = list(zip(rows, caches, strict=True))
    running: list[Row] = []
    cache: Cache | None = None
    while running or waiting:
        rows_to_feed = running or [min((row for row, _ in waiting), key=_depth_to_feed)]
        depth = _depth_to_feed(rows_to_feed[0])
        joining = [pair for pair in waiting if pair[0].depth == depth][: batch_size - len(running)]
        if joining:
            waiting = [pair for pair in waiting if not any(pair is one for one in joining)]
            running += [row for row, _ in joining]
            cache = join_rows([*([] if cache is None else [cache]), *(of_row for _, of_row in joining)])
        assert cache is not None
        decoded = decoder.step(cache, [row.segment.token_ids[-1] for row in running])
        cache, goes_on = decoded.cache, list[int]()
        for number, row in enumerate(running):
            row.segment.expert_ids.append(decoded.expert_ids[number])
            if advance(row, decoded.log_probability_RV[number], sampling, eos_ids):
                goes_on.append(number)
                continue
            of_row = select_rows(cache, [number]) if row.segment.children else None
            next_row = finished(row, of_row)
            if next_row is not None and of_row is not None:
                waiting.append((next_row, of_row))
        if len(goes_on) < len(running):
            running = [running[number] for number in goes_on]
            cache = select_rows(cache, goes_on) if goes_on else None


def _depth_to_feed(row: Row) -> int:
    return row.depth + len(row.segment.token_ids) - 1
