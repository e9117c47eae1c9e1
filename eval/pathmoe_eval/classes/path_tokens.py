"""What the most frequent paths carry: their tokens, the classes of these, and a few places where they occur."""

# Shapes: N tokens, L layers of the path, P paths, S sequences, M tokens of one path.

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.classes.context_sample import NO_TOKEN, sample_contexts, token_contexts
from pathmoe_eval.classes.path_class_counts import FrequentPaths
from pathmoe_eval.paths.paths import select_paths


@dataclass(frozen=True, kw_only=True)
class TokenCount:
    """How often one token takes a path."""

    token_id: int
    """The token."""
    text: str
    """What it stands for, made visible by `visible`."""
    num_tokens: int
    """Its tokens on the path."""


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """How often tokens of one class take a path."""

    name: str
    """The class."""
    num_tokens: int
    """Its tokens on the path."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """A place where a path occurs; texts are made visible by `visible`."""

    before: str
    """The token before, empty at the start of a sequence."""
    token: str
    """The token that takes the path."""
    after: str
    """The token after, empty at the end of a sequence."""


@dataclass(frozen=True, kw_only=True)
class PathTokens:
    """What one path carries."""

    path: tuple[int, ...]
    """Its expert in each layer."""
    num_tokens: int
    """Tokens that take it."""
    share: float
    """Their share of all tokens."""
    num_distinct_tokens: int
    """Distinct token ids among them."""
    tokens: tuple[TokenCount, ...]
    """The most frequent of these; of equally frequent ones the lower id first."""
    classes: tuple[ClassCount, ...]
    """All classes of its tokens, the most frequent first; empty where they have no names."""
    contexts: tuple[Context, ...]
    """A sample of its distinct contexts (token before, token, token after), each equally likely, in sample order."""


class PathTokenCounts:
    """Tokens of given paths, from a second pass over the chunks that gave these paths.

    Memory is bounded by the distinct tokens of these paths. The result does not depend on the order of the sequences
    or on how they were batched or merged; only a sequence that is cut between two batches loses a neighbour there.
    """

    def __init__(self, frequent: FrequentPaths, *, num_contexts: int = 8) -> None:
        """Collect for the paths of `frequent`; num_contexts contexts of each."""
        self._frequent = frequent
        self._num_contexts = num_contexts
        num_paths = len(frequent.paths_PL)
        self._tokens_P: list[Counter[int]] = [Counter() for _ in range(num_paths)]
        self._contexts_P = [np.empty((0, 3), dtype=np.int64) for _ in range(num_paths)]

    def update(
        self,
        path_ids_NL: NDArray[np.integer],
        token_ids_N: NDArray[np.integer],
        starts_S1: NDArray[np.integer] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            path_ids_NL: integers [tokens, layers], those layers of each token's top-1 path that `frequent` has.
            token_ids_N: integers [tokens], the input token.
            starts_S1: integers [sequences + 1], where sequences begin, and the number of tokens; None: one sequence.

        Raises:
            ValueError: wrong shape or dtype, or starts that do not cut the tokens into sequences.
        """
        path_ids_NL = select_paths(path_ids_NL)
        num_tokens, num_layers = path_ids_NL.shape
        if num_layers != self._frequent.paths_PL.shape[1]:
            raise ValueError(
                f"path_ids ({num_layers} layers) must have the {self._frequent.paths_PL.shape[1]} layers of the paths; "
                "pass the layers that were counted"
            )
        contexts_N3 = token_contexts(token_ids_N, starts_S1)
        if len(contexts_N3) != num_tokens:
            raise ValueError(f"token_ids ({len(contexts_N3)}) must be {num_tokens}; pass one for each token")
        for path, rows_M in enumerate(_rows_of_paths(path_ids_NL, self._frequent.paths_PL)):
            self._add_contexts(path, contexts_N3[rows_M])
            _add_counts(self._tokens_P[path], contexts_N3[rows_M, 1])

    def merge(self, other: PathTokenCounts) -> None:
        """Add everything that `other`, of the same paths, has collected; `other` keeps it.

        Raises:
            ValueError: the two collect for different paths.
        """
        if not np.array_equal(self._frequent.paths_PL, other._frequent.paths_PL):
            raise ValueError(
                f"other.frequent ({len(other._tokens_P)} paths) must be the {len(self._tokens_P)} paths of this one; "
                "merge what was collected for one list of paths"
            )
        for path in range(len(self._tokens_P)):
            self._tokens_P[path].update(other._tokens_P[path])
            self._add_contexts(path, other._contexts_P[path])

    def result(
        self, text_of_token: Callable[[int], str], class_names: Sequence[str] = (), *, num_tokens: int = 10
    ) -> tuple[PathTokens, ...]:
        """What each path carries, in the order of the paths.

        Args:
            text_of_token: text of a token id, as `tokenizer.decode` gives it.
            class_names: name of each class id; none leaves classes out.
            num_tokens: distinct tokens to list for each path.

        Raises:
            ValueError: the batches did not hold the tokens that the paths were counted on.
        """
        return tuple(self._result(path, text_of_token, class_names, num_tokens) for path in range(len(self._tokens_P)))

    def _result(
        self, path: int, text_of_token: Callable[[int], str], class_names: Sequence[str], num_listed: int
    ) -> PathTokens:
        frequent, tokens = self._frequent, self._tokens_P[path]
        expected = int(frequent.counts_P[path])
        if tokens.total() != expected:
            raise ValueError(
                f"path_ids ({tokens.total()} tokens of path {path}) must hold the {expected} that were counted; "
                "pass all chunks once more"
            )

        def text(token_id: int) -> str:
            return "" if token_id == NO_TOKEN else visible(text_of_token(token_id))

        return PathTokens(
            path=tuple(frequent.paths_PL[path].tolist()),
            num_tokens=expected,
            share=expected / frequent.num_tokens,
            num_distinct_tokens=len(tokens),
            tokens=tuple(
                TokenCount(token_id=token_id, text=text(token_id), num_tokens=count)
                for token_id, count in _by_count(tokens)[:num_listed]
            ),
            classes=tuple(
                ClassCount(name=class_names[class_id], num_tokens=count)
                for class_id, count in _by_count(frequent.class_counts_P[path] if class_names else {})
            ),
            contexts=tuple(
                Context(before=text(before), token=text(token), after=text(after))
                for before, token, after in self._contexts_P[path].tolist()
            ),
        )

    def _add_contexts(self, path: int, contexts_M3: NDArray[np.int64]) -> None:
        candidates_M3 = np.concatenate([self._contexts_P[path], contexts_M3])
        self._contexts_P[path] = sample_contexts(candidates_M3, self._num_contexts)


def visible(text: str) -> str:
    """Text in which blanks are seen: a space as U+2423 (open box), other blanks and control characters escaped."""
    return "".join(
        "\u2423" if character == " " else character if character.isprintable() else ascii(character)[1:-1]
        for character in text.replace("\\", "\\\\")
    )


def _by_count(counts: Mapping[int, int]) -> list[tuple[int, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _add_counts(counter: Counter[int], ids_M: NDArray[np.integer]) -> None:
    ids, counts = np.unique(ids_M, return_counts=True)
    counter.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))


def _rows_of_paths(path_ids_NL: NDArray[np.integer], paths_PL: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Rows that hold each of the paths.

    Layer by layer, a row keeps the number of the paths' common beginnings that it has followed so far.
    """
    rows = np.arange(len(path_ids_NL))
    node_of_row, node_of_P = np.zeros(len(rows), dtype=np.int64), np.zeros(len(paths_PL), dtype=np.int64)
    for layer in range(paths_PL.shape[1]):
        num_experts = int(paths_PL[:, layer].max(initial=0)) + 1
        nodes, next_of_P = np.unique(node_of_P * num_experts + paths_PL[:, layer], return_inverse=True)
        experts = path_ids_NL[rows, layer].astype(np.int64)
        child = node_of_row * num_experts + experts
        place = np.minimum(np.searchsorted(nodes, child), len(nodes) - 1)
        follows = (nodes[place] == child) & (experts >= 0) & (experts < num_experts)
        rows, node_of_row, node_of_P = rows[follows], place[follows], next_of_P
    order = np.argsort(node_of_row, kind="stable")
    starts_P = np.searchsorted(node_of_row[order], node_of_P)
    stops_P = np.searchsorted(node_of_row[order], node_of_P, side="right")
    return [rows[order[start:stop]] for start, stop in zip(starts_P, stops_P, strict=True)]
