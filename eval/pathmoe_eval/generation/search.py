"""Tree search from a shared prefix: it forks where the next token is open, in breadth, depth or best-first order.

The tree is that of a search that decodes one segment at a time, in the order of the search. Segments that come soon in
that order are decoded together with the first; what a limit then leaves out is dropped, and its tokens are counted. So
the batch size changes the time, not the tree.
"""

# Shapes: P tokens of the prompt, L MoE layers, K experts per token, V vocabulary.

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from transformers import Cache

from pathmoe_eval.generation.decoder import Decoded, Decoder
from pathmoe_eval.generation.draws import draw_tokens
from pathmoe_eval.generation.growing_tree import GrowingTree
from pathmoe_eval.generation.journal import Journal
from pathmoe_eval.generation.segments import Place, Row, Sampling, Segment, advance, append, decode_segments
from pathmoe_eval.generation.tree import END_OF_SEQUENCE, GOES_ON, GenerationTree
from pathmoe_eval.id_range import check_id_range

Order = Literal["breadth", "depth", "best"]

_LOOK_AHEAD = 4  # segments decoded together for each row of a batch, since few begin at one depth (our choice)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Where a search stops."""

    order: Order = "breadth"
    """Which segment comes next: the oldest, the newest, or that of the most probable tokens from the prompt on."""
    max_completions: int = 851
    """Completed sequences."""
    max_forks: int = 100_000
    """Forks; after these, a sequence goes on with the first child alone."""

    def __post_init__(self) -> None:
        for name in ("max_completions", "max_forks"):
            least = 1 if name == "max_completions" else 0
            if getattr(self, name) < least:
                raise ValueError(f"--{name} ({getattr(self, name)}) must be at least {least}; raise it")
        if self.order not in ("breadth", "depth", "best"):
            raise ValueError(f"--order ({self.order}) must be breadth, depth or best; choose one")


class _Pending(NamedTuple):
    """A child that was drawn and is not decoded; they sort as the search takes them."""

    key: tuple[float, int]
    node: int
    place: Place
    log_probability: float
    """Of all tokens from the prompt's end to it."""
    depth: int
    """Tokens after the prompt before it."""


class SearchedTree(NamedTuple):
    """A tree, and what it took."""

    tree: GenerationTree
    num_forwarded: int
    """Tokens that this process fed to the model, those of dropped segments and of `num_read_again` included."""
    num_read_again: int
    """Tokens of prefixes that had to be read again, since an interrupted process had their caches."""


def tree_search(
    decoder: Decoder,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    limits: Limits,
    *,
    eos_ids: frozenset[int],
    vocab_size: int,
    batch_size: int,
    journal: Journal | None = None,
    num_samples: int = 0,
) -> SearchedTree:
    """Search the continuations of a prompt.

    Args:
        decoder: in use.
        prompt_ids: at least one token.
        sampling: how sequences go on and where they part.
        limits: where the search stops.
        eos_ids: tokens that end a sequence.
        vocab_size: ids are below it.
        batch_size: sequences of a forward at most.
        journal: segments that an interrupted search has decoded already, and where new ones are written.
        num_samples: sequences that are drawn from the prompt's end independently of each other, with replacement:
            best-of-N sampling, if `sampling.max_mass` is 0; with 0 the search begins as one sequence.

    Raises:
        ValueError: a number that is too low, a prompt that is empty or not of the vocabulary.
    """
    check_prompt(prompt_ids, vocab_size)
    for name, value, least in (("batch_size", batch_size, 1), ("num_samples", num_samples, 0)):
        if value < least:
            raise ValueError(f"--{name} ({value}) must be at least {least}; raise it")
    num_before = decoder.num_forwarded
    decoded = decoder.prefill(prompt_ids)
    tree = GrowingTree(prompt_ids, decoded.expert_ids)
    search = _Search(decoder, tree, sampling, limits, eos_ids, batch_size, journal or Journal(None))
    search.begin(decoded, num_samples)
    while search.pending and search.num_completions < limits.max_completions:
        search.take_next()
    finished = tree.finished(decoder.recorder.num_experts, vocab_size)
    return SearchedTree(finished, decoder.num_forwarded - num_before, search.num_read_again)


def check_prompt(prompt_ids: Sequence[int], vocab_size: int) -> None:
    """Refuse a prompt that no tree can begin with.

    Raises:
        ValueError: no tokens, or one that is not below `vocab_size`.
    """
    if not prompt_ids:
        raise ValueError("--prompt (no tokens) must have at least one token; give text to go on from")
    check_id_range(
        np.array(prompt_ids), vocab_size, name="prompt_ids", limit_name="vocab_size", advice="check the tokenizer"
    )


class _Search:
    """The state of a search: the tree so far, what is pending, and caches of the forks that it came from."""

    def __init__(
        self,
        decoder: Decoder,
        tree: GrowingTree,
        sampling: Sampling,
        limits: Limits,
        eos_ids: frozenset[int],
        batch_size: int,
        journal: Journal,
    ) -> None:
        self.decoder, self.tree, self.sampling, self.limits = decoder, tree, sampling, limits
        self.eos_ids, self.batch_size, self.journal = eos_ids, batch_size, journal
        self.num_completions = self.num_forks = self.num_read_again = 0
        self.pending: list[_Pending] = []
        # By the place of a fork: a cache of one row, for as long as children wait for it, and how many do.
        self.caches: dict[Place, Cache] = {}
        self._num_waiting: dict[Place, int] = {}

    def begin(self, decoded: Decoded, num_samples: int) -> None:
        """Decode the root segment after the prompt, or part it into samples."""
        last, log_V = self.tree.prompt_length - 1, decoded.log_probability_RV[0]
        if num_samples:
            drawn = (
                draw_tokens(log_V, 1, self.sampling.temperature, self.sampling.seed, (sample,))[0]
                for sample in range(num_samples)
            )
            self.caches[()] = decoded.cache
            self._push(last, (), 0.0, 0, [(token, float(log_V[token])) for token in drawn])
            return
        if () not in self.journal.segments:
            row = Row(place=(), depth=0, segment=Segment())
            if advance(row, log_V, self.sampling, self.eos_ids):
                self._decode([row], [decoded.cache])
            else:
                self.journal.write((), row.segment)
                if row.segment.children:
                    self.caches[()] = decoded.cache
        self._apply(last, (), 0.0, 0, self.journal.segments[()], is_drawn=False)

    def take_next(self) -> None:
        """Put the next pending child's segment into the tree, decoding it if it is not decoded."""
        head = self.pending[0]
        if head.place not in self.journal.segments:
            self._decode_with_others(head)
        heapq.heappop(self.pending)
        segment = self.journal.segments[head.place]
        self._apply(head.node, head.place, head.log_probability, head.depth, segment, is_drawn=True)

    def _apply(
        self, node: int, place: Place, log_probability: float, depth: int, segment: Segment, *, is_drawn: bool
    ) -> None:
        """Add a segment below a node, or where its first token is drawn already, from that node on."""
        tokens = list(zip(segment.token_ids, segment.log_probabilities, strict=True))
        for number, (token, of_token) in enumerate(tokens):
            if not (is_drawn and number == 0):
                node = self.tree.add(node, token, of_token)
                log_probability += of_token
            self.tree.set_end(node, GOES_ON)
            if number < len(segment.expert_ids):
                self.tree.set_routing(node, segment.expert_ids[number])
        depth += len(tokens)
        if not segment.children:
            self.tree.set_end(node, segment.end)
            self.num_completions += segment.end == END_OF_SEQUENCE
            return
        children = segment.children
        if self.num_forks < self.limits.max_forks:
            self.num_forks += 1
            self.tree.set_fork(node, segment.fork_mass)
        else:
            children = children[:1]
        self._push(node, place, log_probability, depth, children)

    def _push(
        self, node: int, place: Place, log_probability: float, depth: int, children: Sequence[tuple[int, float]]
    ) -> None:
        self._num_waiting[place] = len(children)
        for number, (token, of_token) in enumerate(children):
            child = self.tree.add(node, token, of_token)
            total = log_probability + of_token
            first = {"breadth": 0.0, "depth": -float(node), "best": -total}[self.limits.order]
            heapq.heappush(self.pending, _Pending((first, child), child, (*place, number), total, depth))
            if (*place, number) in self.journal.segments:
                self._count_decoded(place)

    def _decode_with_others(self, head: _Pending) -> None:
        """Decode the segment of `head`, the first that is pending, together with others that are pending soon."""
        # One row at a time is decoded as it is needed.
        soon = heapq.nsmallest(1 + _LOOK_AHEAD * (self.batch_size - 1), self.pending)
        rows, caches = [], []
        for one in soon:
            if one.place in self.journal.segments:
                continue
            row = Row(place=one.place, depth=one.depth, segment=Segment())
            path = self.tree.token_ids_to(one.node)
            if append(row.segment, path[-1], self.tree.log_probability(one.node), self.eos_ids):
                rows.append(row)
                caches.append(self._cache_before(one, path[:-1]))
            else:
                self.journal.write(row.place, row.segment)
            self._count_decoded(one.place[:-1])
        if rows:
            self._decode(rows, caches)

    def _decode(self, rows: Sequence[Row], caches: Sequence[Cache]) -> None:
        decode_segments(self.decoder, rows, caches, self.sampling, self.eos_ids, self.batch_size, self._finished)

    def _finished(self, row: Row, cache: Cache | None) -> Row | None:
        """Keep a segment; where there will be no more forks, go on at once with the child that the search takes."""
        self.journal.write(row.place, row.segment)
        if cache is None:
            return None
        # One row at a time is decoded as it is needed.
        if self.num_forks < self.limits.max_forks or self.batch_size == 1:
            self.caches[row.place] = cache
            return None
        child = Row(place=(*row.place, 0), depth=row.depth + len(row.segment.token_ids), segment=Segment())
        if child.place in self.journal.segments:
            return None
        if append(child.segment, *row.segment.children[0], self.eos_ids):
            return child
        self.journal.write(child.place, child.segment)
        return None

    def _cache_before(self, pending: _Pending, prefix_ids: Sequence[int]) -> Cache:
        """A cache of what comes before a child: of its fork, or read again where an earlier process had it."""
        fork = pending.place[:-1]
        if fork not in self.caches:
            self.caches[fork] = self.decoder.prefill(prefix_ids).cache
            self.num_read_again += len(prefix_ids)
        return self.caches[fork]

    def _count_decoded(self, fork: Place) -> None:
        """Drop the cache of a fork whose children are all decoded."""
        self._num_waiting[fork] -= 1
        if self._num_waiting[fork] == 0:
            del self._num_waiting[fork]
            self.caches.pop(fork, None)
