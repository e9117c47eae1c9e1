"""Tree search from a shared prefix: it forks where the next token is open, in breadth, depth or best-first order.

The tree is that of a search that decodes one segment at a time, in the order of the search. Segments of the same depth
that come soon in that order are decoded together with the first; what a limit then leaves out is dropped and counted.
So the batch size changes the time, not the tree.
"""

# Shapes: P tokens of the prompt, L MoE layers, K experts per token, V vocabulary.

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from transformers import Cache

from pathmoe_eval.generation.decoder import Decoder
from pathmoe_eval.generation.draws import draw_tokens
from pathmoe_eval.generation.growing_tree import GrowingTree
from pathmoe_eval.generation.journal import Journal
from pathmoe_eval.generation.segments import Place, Row, Sampling, Segment, advance, append, decode_segments
from pathmoe_eval.generation.tree import END_OF_SEQUENCE, GenerationTree

Order = Literal["breadth", "depth", "best"]

_LOOK_AHEAD = 4  # batches of segments in the order of the search, from which those of one depth are taken (our choice)


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
    """Tokens that were fed to the model, those of dropped segments and of prefixes that were read again included."""
    num_read_again: int
    """Tokens of prefixes that an interrupted search had to read again."""


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
    """
    search = _Search(decoder, prompt_ids, sampling, limits, eos_ids, batch_size, journal or Journal(None))
    search.begin(num_samples)
    while search.pending and search.num_completions < limits.max_completions:
        search.take_next()
    tree = search.tree.finished(decoder.recorder.num_experts, vocab_size)
    return SearchedTree(tree, decoder.num_forwarded, search.num_read_again)


class _Search:
    """The state of a search: the tree so far, what is pending, and caches of the forks that it came from."""

    def __init__(
        self,
        decoder: Decoder,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        limits: Limits,
        eos_ids: frozenset[int],
        batch_size: int,
        journal: Journal,
    ) -> None:
        self.decoder, self.sampling, self.limits = decoder, sampling, limits
        self.eos_ids, self.batch_size, self.journal = eos_ids, batch_size, journal
        self.num_completions = self.num_forks = self.num_read_again = 0
        self.pending: list[_Pending] = []
        self._decoded = decoder.prefill(prompt_ids)
        self.tree = GrowingTree(prompt_ids, self._decoded.expert_ids)
        # By the place of a fork: a cache of one row, for as long as children wait for it, and how many do.
        self._caches: dict[Place, Cache] = {}
        self._num_waiting: dict[Place, int] = {}

    def begin(self, num_samples: int) -> None:
        """Decode the root segment, or part it into samples."""
        last = self.tree.prompt_length - 1
        log_V = self._decoded.log_probability_RV[0]
        root = Segment()
        if num_samples:
            root.children = [
                (token, float(log_V[token]))
                for sample in range(num_samples)
                for token in draw_tokens(log_V, 1, self.sampling.temperature, self.sampling.seed, (sample,))
            ]
            self._caches[()] = self._decoded.cache
            self._push(last, (), 0.0, 0, root.children)
            return
        if () in self.journal.segments:
            root = self.journal.segments[()]
        elif advance(Row(place=(), depth=0, segment=root), log_V, self.sampling, self.eos_ids):
            self._decode([Row(place=(), depth=0, segment=root)], [self._decoded.cache])
            root = self.journal.segments[()]
        else:
            self._finished(Row(place=(), depth=0, segment=root), self._decoded.cache if root.children else None)
        self._apply(last, (), 0.0, 0, root, is_drawn=False)

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
            self.tree.set_end(node, 0)
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
        """Decode the segment of `head` together with others that are pending soon, at its depth."""
        soon = heapq.nsmallest(_LOOK_AHEAD * self.batch_size, self.pending)
        chosen = [one for one in soon if one.depth == head.depth and one.place not in self.journal.segments]
        rows, caches = [], []
        for one in chosen[: self.batch_size]:
            row = Row(place=one.place, depth=one.depth, segment=Segment())
            path = self.tree.token_ids_to(one.node)
            # The log-probability of a token is that at its parent, as it was drawn.
            if append(row.segment, path[-1], self.tree.log_probability(one.node), self.eos_ids):
                rows.append(row)
                caches.append(self._cache_before(one, path[:-1]))
            else:
                self.journal.write(row.place, row.segment)
        if rows:
            self._decode(rows, caches)
        for one in chosen[: self.batch_size]:
            self._count_decoded(one.place[:-1])

    def _decode(self, rows: Sequence[Row], caches: Sequence[Cache]) -> None:
        decode_segments(self.decoder, rows, caches, self.sampling, self.eos_ids, self._finished)

    def _finished(self, row: Row, cache: Cache | None) -> None:
        if cache is not None:
            self._caches[row.place] = cache
        self.journal.write(row.place, row.segment)

    def _cache_before(self, pending: _Pending, prefix_ids: Sequence[int]) -> Cache:
        """A cache of what comes before a child: of its fork, or read again where an earlier process had it."""
        fork = pending.place[:-1]
        if fork not in self._caches:
            self._caches[fork] = self.decoder.prefill(prefix_ids).cache
            self.num_read_again += len(prefix_ids)
        return self._caches[fork]

    def _count_decoded(self, fork: Place) -> None:
        """Drop the cache of a fork whose children are all decoded."""
        self._num_waiting[fork] -= 1
        if self._num_waiting[fork] == 0:
            del self._num_waiting[fork]
            self._caches.pop(fork, None)
