"""Beam search, a baseline: the most probable continuations of a prompt, as a tree with their routing."""

# Shapes: P tokens of the prompt, R beams, V vocabulary, L MoE layers, K experts per token.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.generation.decoder import Decoder
from pathmoe_eval.generation.growing_tree import GrowingTree
from pathmoe_eval.generation.row_caches import select_rows
from pathmoe_eval.generation.search import SearchedTree, check_prompt
from pathmoe_eval.generation.tree import CUT, END_OF_SEQUENCE, GOES_ON, NOT_SEARCHED


class _Beam(NamedTuple):
    log_probability: float
    """Of all tokens after the prompt."""
    node: int


def beam_search(
    decoder: Decoder,
    prompt_ids: Sequence[int],
    *,
    num_beams: int,
    max_new_tokens: int,
    eos_ids: frozenset[int],
    vocab_size: int,
) -> SearchedTree:
    """The likeliest completions that a beam of `num_beams` sequences finds.

    Each step keeps the `num_beams` likeliest continuations that do not end; those that end, if they are among the
    `num_beams` likeliest of all, are completions, as in transformers. It stops when it has `num_beams` of them that no
    beam can beat, since probabilities only fall. There is no length penalty (our choice).

    Args:
        decoder: in use.
        prompt_ids: at least one token.
        num_beams: also the sequences of a forward.
        max_new_tokens: tokens after the prompt at most; what is longer is cut.
        eos_ids: tokens that end a sequence.
        vocab_size: ids are below it.

    Raises:
        ValueError: a number below 1, a prompt that is empty or not of the vocabulary.
    """
    check_prompt(prompt_ids, vocab_size)
    for name, value in (("num_beams", num_beams), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise ValueError(f"--{name} ({value}) must be at least 1; raise it")
    num_before = decoder.num_forwarded
    decoded = decoder.prefill(prompt_ids)
    tree = GrowingTree(prompt_ids, decoded.expert_ids)
    cache, log_RV = decoded.cache, decoded.log_probability_RV
    beams, completed = [_Beam(0.0, tree.prompt_length - 1)], list[float]()
    for length in range(1, max_new_tokens + 1):
        kept: list[tuple[int, int, _Beam]] = []
        # As many as leave enough where every beam's end is among them.
        likeliest = _likeliest(beams, log_RV, (1 + len(eos_ids)) * num_beams)
        for rank, (row, token, total) in enumerate(likeliest):
            is_end = token in eos_ids
            if rank < num_beams if is_end else len(kept) < num_beams:
                node = tree.add(beams[row].node, token, float(log_RV[row, token]))
                tree.set_end(beams[row].node, GOES_ON)
                tree.set_end(node, END_OF_SEQUENCE if is_end else NOT_SEARCHED)
                if is_end:
                    completed.append(total)
                else:
                    kept.append((row, token, _Beam(total, node)))
        is_done = len(completed) >= num_beams and sorted(completed)[-num_beams] >= max(
            (beam.log_probability for _, _, beam in kept), default=-np.inf
        )
        if is_done or not kept:
            break
        beams = [beam for _, _, beam in kept]
        decoded = decoder.step(select_rows(cache, [row for row, _, _ in kept]), [token for _, token, _ in kept])
        cache, log_RV = decoded.cache, decoded.log_probability_RV
        for beam, expert_ids_LK in zip(beams, decoded.expert_ids, strict=True):
            tree.set_routing(beam.node, expert_ids_LK)
            if length == max_new_tokens:
                tree.set_end(beam.node, CUT)
    return SearchedTree(tree.finished(decoder.recorder.num_experts, vocab_size), decoder.num_forwarded - num_before, 0)


def _likeliest(beams: Sequence[_Beam], log_RV: NDArray[np.float64], number: int) -> Iterator[tuple[int, int, float]]:
    """Row, token and log-probability of the likeliest continuations of all beams, the likeliest first."""
    total_RV = log_RV + np.array([[beam.log_probability] for beam in beams])
    for flat in np.argsort(-total_RV, axis=None, kind="stable")[:number].tolist():
        row, token = divmod(flat, total_RV.shape[1])
        if np.isfinite(total_RV[row, token]):
            yield row, token, float(total_RV[row, token])
