"""How much a token id decides its expert: vocabulary specialisation (OLMoE, arXiv 2409.02060, Eq. 8).

Eq. 8 is, for a token id x and an expert Ei, the share of the occurrences of x for which Ei is among the k experts of
the highest weight. The id may be that of the input token, of the next token, or of the next token that the model
predicts: count each with counts of its own.
"""

# Shapes: N tokens, M tokens with an id, L counted layers, V token ids, E experts, K experts per token.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.experts.expert_vocabulary import ExpertVocabulary, expert_vocabularies
from pathmoe_eval.experts.token_ids import NO_ID
from pathmoe_eval.id_range import check_one_per_token
from pathmoe_eval.layers.permuted_tables import random_tables
from pathmoe_eval.mergeable import check_mergeable
from pathmoe_eval.routing_shape import RoutingShape, check_some_tokens

_MIN_OCCURRENCES = 10
_ALL_LAYERS_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True)
class VocabularySpecialisation:
    """Vocabulary specialisation; tuples have one entry per counted layer.

    The nulls are of the same tokens with their ids in random order. They are far above `share_null` for rare ids: the
    most frequent expert of an id that occurs once has 100% of it by construction. They are None where several experts
    of a token count: which of them come together is not kept.
    """

    layers: tuple[int, ...]
    """The MoE layers that were counted."""
    num_tokens: int
    """Tokens with an id."""
    num_ids: int
    """Distinct ids."""
    num_ids_once: int
    """Ids that occur once."""
    min_occurrences: int
    """Occurrences that an id needs to be in the means; 1 with `olmoe_script`."""
    num_ids_in_means: int
    """Ids that have them."""
    share_null: float
    """Share of each expert if the ids did not matter and the load was equal: ranks / experts."""
    macro_share: tuple[float, ...] | None
    """Mean, over ids, of the share of the id's most frequent expert; None without an id of enough occurrences."""
    macro_share_null: tuple[float, ...] | None
    """The same by chance."""
    weighted_share: tuple[float, ...] | None
    """The same mean, each id with the weight of its occurrences."""
    weighted_share_null: tuple[float, ...] | None
    """The same by chance."""
    mean_macro_share: float | None
    """Mean of `macro_share` over the counted layers."""
    mean_macro_share_null: float | None
    """The same by chance."""
    experts: tuple[tuple[ExpertVocabulary, ...], ...]
    """Each layer's experts with their token ids."""


class VocabularyCounts:
    """Picks of every expert for every token id, in 8 * layers * ids * experts bytes, whatever the tokens are.

    Integers, so the result does not depend on the order of the tokens, on batching or merging.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_experts: int,
        num_experts_per_tok: int,
        vocab_size: int,
        num_ranks: int,
        layers: Sequence[int] | None = None,
    ) -> None:
        """Count for a model of this shape.

        Args:
            num_layers: as for `RoutingShape`.
            num_experts: as for `RoutingShape`.
            num_experts_per_tok: as for `RoutingShape`.
            vocab_size: token ids lie in [0, vocab_size).
            num_ranks: experts of a token that count, those of the highest weight: 1, or num_experts_per_tok.
            layers: MoE layers to count, from 0; None counts all if that takes at most 64 MiB, else the middle one.

        Raises:
            ValueError: as in `RoutingShape`, or another number out of range.
        """
        self.shape = RoutingShape(
            num_layers=num_layers, num_experts=num_experts, num_experts_per_tok=num_experts_per_tok
        )
        if vocab_size < 1:
            raise ValueError(f"vocab_size ({vocab_size}) must be at least 1; pass the model's vocab_size")
        if not 1 <= num_ranks <= num_experts_per_tok:
            raise ValueError(
                f"num_ranks ({num_ranks}) must be between 1 and num_experts_per_tok ({num_experts_per_tok}); "
                "pass 1 for the first expert or num_experts_per_tok for all"
            )
        self.vocab_size = vocab_size
        self.num_ranks = num_ranks
        self.layers = _default_layers(self.shape, vocab_size) if layers is None else tuple(layers)
        if len(set(self.layers)) < len(self.layers) or not all(0 <= layer < num_layers for layer in self.layers):
            found = ", ".join(map(str, self.layers))
            raise ValueError(
                f"layers ({found}) must be different and below num_layers ({num_layers}); count MoE layers from 0"
            )
        self.num_tokens = 0
        self._occurrences_V = np.zeros(vocab_size, dtype=np.int64)
        self._picks_LVE = np.zeros((len(self.layers), vocab_size, num_experts), dtype=np.int64)

    def update(self, expert_ids_NLK: NDArray[np.integer], ids_N: NDArray[np.integer]) -> None:
        """Add a chunk.

        Args:
            expert_ids_NLK: as in `RoutingShape.check`, all layers.
            ids_N: integers [tokens], the id that belongs to each token, or NO_ID.

        Raises:
            ValueError: as in `RoutingShape.check`, or ids of another shape or out of range.
        """
        expert_ids_NLK = self.shape.check(expert_ids_NLK)
        ids_N = self._check_ids(ids_N, len(expert_ids_NLK))
        has_id_N = ids_N != NO_ID
        ids_M = ids_N[has_id_N].astype(np.int64)
        self._occurrences_V += np.bincount(ids_M, minlength=self.vocab_size)
        for picks_VE, layer in zip(self._picks_LVE, self.layers, strict=True):
            experts_MK = expert_ids_NLK[has_id_N, layer, : self.num_ranks]
            cells_MK = ids_M[:, None] * self.shape.num_experts + experts_MK.astype(np.int64)
            # not bincount, whose result would be as large as the whole vocabulary for every chunk
            np.add.at(picks_VE.reshape(-1), cells_MK.reshape(-1), 1)
        self.num_tokens += len(ids_M)

    def merge(self, other: VocabularyCounts) -> None:
        """Add everything that `other` has counted; `other` keeps its counts.

        Raises:
            ValueError: the two count other things.
        """
        self.shape.check_mergeable(other.shape)
        check_mergeable(self, other, "vocab_size", "num_ranks", "layers")
        self._occurrences_V += other._occurrences_V
        self._picks_LVE += other._picks_LVE
        self.num_tokens += other.num_tokens

    def share_VE(self, layer: int) -> NDArray[np.float64]:
        """Eq. 8 of a counted MoE layer, float64 [token ids, experts]; 0 for an id that does not occur."""
        picks_VE = self._picks_LVE[self.layers.index(layer)]
        return picks_VE / np.maximum(self._occurrences_V, 1)[:, None]

    def result(
        self, *, min_occurrences: int = _MIN_OCCURRENCES, olmoe_script: bool = False, seed: int = 0
    ) -> VocabularySpecialisation:
        """Vocabulary specialisation over all tokens counted so far.

        Args:
            min_occurrences: occurrences that an id needs to be in the means and lists (our choice; the paper's lists
                ask for as many).
            olmoe_script: take the means as scripts/run_moe_analysis.py of OLMoE does: over all ids, those that occur
                once as 100%. With `num_ranks` above 1 it divides an id's picks of its most frequent expert by
                floor(picks / k), which is the number of occurrences, as here. It looks at layer 7 of 16 unless told
                otherwise, and drops the last position of each block from the next ids, as `with_next_ids` does.
            seed: decides the random order behind the nulls.

        Raises:
            ValueError: no token was counted, or `min_occurrences` below 1.
        """
        check_some_tokens(self.num_tokens)
        if min_occurrences < 1:
            raise ValueError(f"min_occurrences ({min_occurrences}) must be at least 1; raise it")
        least = 1 if olmoe_script else min_occurrences
        in_means_V = self._occurrences_V >= least
        counts_V = self._occurrences_V[in_means_V]
        macro, weighted = _shares(self._picks_LVE.max(axis=-1)[:, in_means_V], counts_V)
        macro_null, weighted_null = self._null(least, seed) if self.num_ranks == 1 else (None, None)
        return VocabularySpecialisation(
            layers=self.layers,
            num_tokens=self.num_tokens,
            num_ids=int(np.count_nonzero(self._occurrences_V)),
            num_ids_once=int(np.count_nonzero(self._occurrences_V == 1)),
            min_occurrences=least,
            num_ids_in_means=len(counts_V),
            share_null=self.num_ranks / self.shape.num_experts,
            macro_share=macro,
            macro_share_null=macro_null,
            weighted_share=weighted,
            weighted_share_null=weighted_null,
            mean_macro_share=float(np.mean(macro)) if macro else None,
            mean_macro_share_null=float(np.mean(macro_null)) if macro_null else None,
            experts=tuple(
                expert_vocabularies(picks_VE, self._occurrences_V, min_occurrences) for picks_VE in self._picks_LVE
            ),
        )

    def _null(self, least: int, seed: int) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
        """Macro and weighted shares when the ids of all tokens are put in random order.

        Counts of ids and experts are then a random table with the sums of the true one. The most frequent ids come
        first in it, in whatever order among equals, so that names of experts and ids do not matter.
        """
        occurrences_V = -np.sort(-self._occurrences_V[self._occurrences_V > 0])
        num_in_means = int(np.count_nonzero(occurrences_V >= least))
        rng = np.random.default_rng(seed)
        most_LV = np.empty((len(self.layers), num_in_means), dtype=np.int64)
        for picks_VE, most_V in zip(self._picks_LVE, most_LV, strict=True):
            load_E = -np.sort(-picks_VE.sum(axis=0))
            (table_VE,) = random_tables(occurrences_V, load_E[load_E > 0], 1, rng)
            most_V[:] = table_VE[:num_in_means].max(axis=1)
        return _shares(most_LV, occurrences_V[:num_in_means])

    def _check_ids(self, ids_N: NDArray[np.integer], num_tokens: int) -> NDArray[np.integer]:
        ids_N = check_one_per_token(ids_N, num_tokens, name="ids")
        lowest, highest = int(ids_N.min(initial=0)), int(ids_N.max(initial=0))
        if lowest < NO_ID or highest >= self.vocab_size:
            wrong = lowest if lowest < NO_ID else highest
            raise ValueError(
                f"ids ({wrong}) must be below vocab_size ({self.vocab_size}) and not negative, but for {NO_ID}, "
                "which stands for none; pass the model's vocab_size"
            )
        return ids_N


def _shares(
    most_LV: NDArray[np.int64], counts_V: NDArray[np.int64]
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean share of each id's most frequent expert, and that mean weighted by occurrences, of each layer."""
    return (
        _means((most_LV / counts_V).sum(axis=-1), len(counts_V)),
        _means(most_LV.sum(axis=-1), int(counts_V.sum())),
    )


def _means(sums_L: NDArray[np.number], divisor: int) -> tuple[float, ...] | None:
    return tuple((sums_L / divisor).tolist()) if divisor else None


def _default_layers(shape: RoutingShape, vocab_size: int) -> tuple[int, ...]:
    bytes_of_all = shape.num_layers * vocab_size * shape.num_experts * np.dtype(np.int64).itemsize
    return tuple(range(shape.num_layers)) if bytes_of_all <= _ALL_LAYERS_BYTES else ((shape.num_layers - 1) // 2,)
