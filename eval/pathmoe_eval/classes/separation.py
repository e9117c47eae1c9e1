"""How well expert paths separate classes of tokens: mutual information and purity, against permuted labels.

Both rise with the number of paths whatever the classes are: where every token has a path of its own, the path tells
everything. What counts is the excess over the same tokens with their classes permuted, most of all among paths that
are seen often enough to have a composition.
"""

# Shapes: N tokens, L MoE layers, P distinct paths, C classes.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.classes.label_permutations import AgainstPermutations, against_permutations
from pathmoe_eval.classes.path_class_counts import FrequentPaths, JointTable, PathClassCounts, checked_class_ids
from pathmoe_eval.id_range import check_id_range, check_one_per_token
from pathmoe_eval.layer_blocks import check_router_of_layer, layer_blocks
from pathmoe_eval.mergeable import check_mergeable
from pathmoe_eval.paths.entropy import plug_in_bits
from pathmoe_eval.paths.paths import check_range, select_paths
from pathmoe_eval.routing_shape import check_some_tokens, tokens_last

_MAX_VOCAB = 1 << 32


@dataclass(frozen=True, kw_only=True)
class ClassSeparation:
    """What one variable (a path, a part of one, an expert, a token id) tells about the class of its token."""

    num_tokens: int
    """Tokens that were counted."""
    num_values: int
    """Distinct values of the variable among them."""
    num_classes: int
    """Distinct classes among them."""
    class_entropy_bits: float
    """Entropy H of the classes in bits: no variable can tell more."""
    mutual_information_bits: AgainstPermutations
    """Plug-in mutual information I of variable and class, in bits."""
    mutual_information_corrected_bits: float
    """I with the Miller-Madow correction (see `agreement.mutual_information_bits`); needs tokens well above pairs."""
    normalised_information: float | None
    """I / H, from 0 to 1; None for a single class."""
    normalised_excess: float | None
    """(I - the mean of I over permutations) / H; None for a single class."""
    purity: AgainstPermutations
    """Share of tokens whose class is the most frequent one among the tokens with their value."""
    largest_class_share: float
    """Share of the most frequent class: the purity of a variable that tells nothing."""


@dataclass(frozen=True, kw_only=True)
class PartSeparation:
    """What the part of a path in consecutive MoE layers tells about the class of a token."""

    first_layer: int
    """First layer of the part, counted from 0 over MoE layers."""
    last_layer: int
    """Last layer of the part."""
    all_paths: ClassSeparation
    """Over all tokens."""
    frequent_paths: ClassSeparation | None
    """Over the tokens whose path was seen at least `min_path_tokens` times; None if there are none."""
    frequent_share: float
    """Share of tokens in `frequent_paths`."""


@dataclass(frozen=True, kw_only=True)
class PathSeparation:
    """How well top-1 paths separate classes. No relabelling of a layer's experts changes any of it."""

    num_tokens: int
    """Tokens that were counted."""
    num_permutations: int
    """Permutations behind each null."""
    min_path_tokens: int
    """Tokens from which on a path is frequent."""
    whole: PartSeparation
    """The path over all layers."""
    blocks: tuple[PartSeparation, ...]
    """Its part in each maximal run of layers that share a router."""
    layers: tuple[PartSeparation, ...]
    """The expert of each single layer, the baseline of paths."""
    token_ids: ClassSeparation | None
    """What the token id alone tells, without any model: what routing by token would reach; None without token ids."""


class SeparationCounts:
    """Counts of (path, class) pairs from batches of any size, in memory proportional to the distinct pairs seen.

    The counts are integers, so the result does not depend on the order of the tokens or on batching and merging.
    """

    def __init__(self, *, num_layers: int, num_experts: int, router_of_layer: Sequence[int]) -> None:
        """Count over `num_layers` layers whose expert ids lie in [0, num_experts).

        `router_of_layer` has one integer a layer, equal where layers share a router.
        """
        self.num_layers = num_layers
        self.num_experts = num_experts
        self.router_of_layer = check_router_of_layer(router_of_layer, num_layers)
        self._blocks = tuple((block.start, block.stop) for block in layer_blocks(self.router_of_layer))
        # Blocks are counted beside the whole, of which few pairs are distinct in them; single layers follow from it.
        parts = {(0, num_layers), *(block for block in self._blocks if block[1] - block[0] > 1)}
        self._counts = {part: PathClassCounts(num_layers=part[1] - part[0], num_experts=num_experts) for part in parts}
        self._token_ids = PathClassCounts(num_layers=1, num_experts=_MAX_VOCAB)

    def update(
        self,
        path_ids_NL: NDArray[np.integer],
        class_ids_N: NDArray[np.integer],
        token_ids_N: NDArray[np.integer] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            path_ids_NL: integers [tokens, layers], each token's top-1 expert in each layer, counted from 0.
            class_ids_N: integers [tokens], the class of each token, from 0 and below 2^16.
            token_ids_N: integers [tokens], the input token; in all batches or in none.

        Raises:
            ValueError: wrong shape or dtype, or an id out of range.
        """
        path_ids_NL = select_paths(path_ids_NL)
        check_range(path_ids_NL, self.num_layers, self.num_experts)
        class_ids_N = checked_class_ids(class_ids_N, len(path_ids_NL))
        if token_ids_N is not None:
            token_ids_N = check_one_per_token(token_ids_N, len(path_ids_NL), name="token_ids")
            check_id_range(token_ids_N, _MAX_VOCAB, name="token_ids", advice="pass ids of the tokenizer")
            self._token_ids.update(token_ids_N[:, None], class_ids_N)
        path_ids_LN = tokens_last(path_ids_NL.T)
        for (first, stop), counts in self._counts.items():
            counts.update(path_ids_LN[first:stop].T, class_ids_N)

    def merge(self, other: SeparationCounts) -> None:
        """Add everything that `other`, of the same layers, experts and routers, has counted; `other` keeps its counts.

        Raises:
            ValueError: the two count paths of different models.
        """
        check_mergeable(self, other, "num_layers", "num_experts", "router_of_layer")
        for part, counts in self._counts.items():
            counts.merge(other._counts[part])
        self._token_ids.merge(other._token_ids)

    def result(self, *, num_permutations: int = 20, min_path_tokens: int = 10, seed: int = 0) -> PathSeparation:
        """Separation by all tokens counted so far.

        Args:
            num_permutations: permutations of the classes behind each null, at least 2.
            min_path_tokens: tokens from which on a path is frequent, at least 2 (the default is our choice).
            seed: decides the permutations.

        Raises:
            ValueError: no token was counted, or a setting is out of range.
        """
        for name, value in (("num_permutations", num_permutations), ("min_path_tokens", min_path_tokens)):
            if value < 2:
                raise ValueError(f"{name} ({value}) must be at least 2; raise it")
        draws = {"num_permutations": num_permutations, "seed": seed}
        layers = [(layer, layer + 1) for layer in range(self.num_layers)]
        parts = {
            part: _part_separation(part, self._part(part).table(), min_path_tokens, draws)
            for part in {(0, self.num_layers), *self._blocks, *layers}
        }
        whole = parts[0, self.num_layers]
        token_table = self._token_ids.table()
        num_with_token_ids = int(token_table.counts_J.sum())
        if num_with_token_ids not in (0, whole.all_paths.num_tokens):
            raise ValueError(
                f"token_ids ({num_with_token_ids} tokens) must be given for all {whole.all_paths.num_tokens} tokens or "
                "for none; pass them in each batch"
            )
        return PathSeparation(
            num_tokens=whole.all_paths.num_tokens,
            num_permutations=num_permutations,
            min_path_tokens=min_path_tokens,
            whole=whole,
            blocks=tuple(parts[block] for block in self._blocks),
            layers=tuple(parts[layer] for layer in layers),
            token_ids=class_separation(token_table, **draws) if num_with_token_ids else None,
        )

    def most_frequent(self, num_paths: int) -> dict[tuple[int, int], FrequentPaths]:
        """The most frequent paths, whole and of each block, by their range of layers (first, last + 1)."""
        return {part: self._part(part).most_frequent(num_paths) for part in [(0, self.num_layers), *self._blocks]}

    def _part(self, part: tuple[int, int]) -> PathClassCounts:
        return self._counts[part] if part in self._counts else self._counts[0, self.num_layers].between(*part)


def class_separation(table: JointTable, *, num_permutations: int, seed: int) -> ClassSeparation:
    """What the variable of a table tells about the class.

    Raises:
        ValueError: the table is empty.
    """
    num_tokens = int(table.counts_J.sum())
    check_some_tokens(num_tokens)
    class_counts_C, path_counts_P = np.sort(table.class_counts_C), table.path_counts_P
    entropy_bits = plug_in_bits(class_counts_C, np.ones_like(class_counts_C))
    information, purity = against_permutations(table, num_permutations=num_permutations, seed=seed)
    num_excess = len(class_counts_C) + len(path_counts_P) - len(table.counts_J) - 1
    several = len(class_counts_C) > 1
    return ClassSeparation(
        num_tokens=num_tokens,
        num_values=len(path_counts_P),
        num_classes=len(class_counts_C),
        class_entropy_bits=entropy_bits,
        mutual_information_bits=information,
        mutual_information_corrected_bits=information.observed + num_excess / (2 * num_tokens * math.log(2)),
        normalised_information=information.observed / entropy_bits if several else None,
        normalised_excess=information.excess / entropy_bits if several else None,
        purity=purity,
        largest_class_share=int(class_counts_C.max()) / num_tokens,
    )


def _part_separation(
    part: tuple[int, int], table: JointTable, min_path_tokens: int, draws: dict[str, int]
) -> PartSeparation:
    frequent = table.select(table.path_counts_P >= min_path_tokens)
    all_paths = class_separation(table, **draws)
    num_frequent = int(frequent.counts_J.sum())
    return PartSeparation(
        first_layer=part[0],
        last_layer=part[1] - 1,
        all_paths=all_paths,
        frequent_paths=class_separation(frequent, **draws) if num_frequent else None,
        frequent_share=num_frequent / all_paths.num_tokens,
    )
