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
from pathmoe_eval.mergeable import check_mergeable
from pathmoe_eval.routing_shape import RoutingShape, check_some_tokens

_MIN_OCCURRENCES = 10
_ALL_LAYERS_BYTES = 1 << 26
_MAX_TOKENS = np.iinfo(np.int32).max


@dataclass(frozen=True, kw_only=True)
class VocabularySpecialisation:
    """Vocabulary specialisation; tuples have one entry per counted layer.

    The nulls are of the same tokens with their ids in random order. They are far above `share_null` for rare ids: the
    most frequent expert of an id that occurs once has 100% of it by construction.
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
    """Picks of every expert for every token id, and for ids in random order, in 8 * layers * ids * experts bytes.

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
        self._occurrences_2V = np.zeros((2, vocab_size), dtype=np.int64)
        self._picks_2LVE = np.zeros((2, len(self.layers), vocab_size, num_experts), dtype=np.int32)

    def update(
        self,
        expert_ids_NLK: NDArray[np.integer],
        ids_N: NDArray[np.integer],
        shuffled_ids_N: NDArray[np.integer],
    ) -> None:
        """Add a chunk.

        Args:
            expert_ids_NLK: as in `RoutingShape.check`, all layers.
            ids_N: integers [tokens], the id that belongs to each token, or NO_ID.
            shuffled_ids_N: the chunk of `shuffle_ids` of the whole data's ids, for the null.

        Raises:
            ValueError: as in `RoutingShape.check`, ids of another shape or out of range, or 2^31 tokens.
        """
        expert_ids_NLK = self.shape.check(expert_ids_NLK)
        both = [self._check_ids(ids, len(expert_ids_NLK)) for ids in (ids_N, shuffled_ids_N)]
        num_tokens = self.num_tokens + int(np.count_nonzero(both[0] != NO_ID))
        self._check_num_tokens(num_tokens)
        for picks_LVE, occurrences_V, ids in zip(self._picks_2LVE, self._occurrences_2V, both, strict=True):
            has_id_N = ids != NO_ID
            ids_M = ids[has_id_N].astype(np.int64)
            occurrences_V += np.bincount(ids_M, minlength=self.vocab_size)
            for picks_VE, layer in zip(picks_LVE, self.layers, strict=True):
                experts_MK = expert_ids_NLK[has_id_N, layer, : self.num_ranks]
                cells_MK = ids_M[:, None] * self.shape.num_experts + experts_MK.astype(np.int64)
                # not bincount, whose result would be as large as the whole vocabulary for every chunk
                np.add.at(picks_VE.reshape(-1), cells_MK.reshape(-1), np.int32(1))
        self.num_tokens = num_tokens

    def merge(self, other: VocabularyCounts) -> None:
        """Add everything that `other` has counted; `other` keeps its counts.

        Raises:
            ValueError: the two count other things, or 2^31 tokens together.
        """
        self.shape.check_mergeable(other.shape)
        check_mergeable(self, other, "vocab_size", "num_ranks", "layers")
        self._check_num_tokens(self.num_tokens + other.num_tokens)
        self._occurrences_2V += other._occurrences_2V
        self._picks_2LVE += other._picks_2LVE
        self.num_tokens += other.num_tokens

    def share_VE(self, layer: int) -> NDArray[np.float64]:
        """Eq. 8 of a counted MoE layer, float64 [token ids, experts]; 0 for an id that does not occur."""
        picks_VE = self._picks_2LVE[0, self.layers.index(layer)]
        return picks_VE / np.maximum(self._occurrences_2V[0], 1)[:, None]

    def result(
        self, *, min_occurrences: int = _MIN_OCCURRENCES, olmoe_script: bool = False
    ) -> VocabularySpecialisation:
        """Vocabulary specialisation over all tokens counted so far.

        Args:
            min_occurrences: occurrences that an id needs to be in the means and lists (our choice; the paper's lists
                ask for as many).
            olmoe_script: take the means as scripts/run_moe_analysis.py of OLMoE does: over all ids, those that occur
                once as 100%. With `num_ranks` above 1 it divides an id's picks of its most frequent expert by
                floor(picks / k), which is the number of occurrences, as here. It looks at layer 7 of 16 unless told
                otherwise, and drops the last position of each block from the next ids, as `next_token_ids` does.

        Raises:
            ValueError: no token was counted, `min_occurrences` below 1, or shuffled ids that are not the same ids.
        """
        check_some_tokens(self.num_tokens)
        if min_occurrences < 1:
            raise ValueError(f"min_occurrences ({min_occurrences}) must be at least 1; raise it")
        occurrences_V, shuffled_V = self._occurrences_2V
        if not np.array_equal(occurrences_V, shuffled_V):
            token_id = int(np.argmax(occurrences_V != shuffled_V))
            raise ValueError(
                f"shuffled_ids ({shuffled_V[token_id]} of id {token_id}) must be ids ({occurrences_V[token_id]} of it) "
                "in another order; pass every chunk of shuffle_ids of all ids"
            )
        in_means_V = occurrences_V >= (1 if olmoe_script else min_occurrences)
        counts_V = occurrences_V[in_means_V]
        most_2LV = self._picks_2LVE.max(axis=-1)[..., in_means_V]
        macro, macro_null = (_means(sums_L, len(counts_V)) for sums_L in (most_2LV / counts_V).sum(axis=-1))
        weighted, weighted_null = (
            _means(sums_L, int(counts_V.sum())) for sums_L in most_2LV.sum(axis=-1, dtype=np.int64)
        )
        return VocabularySpecialisation(
            layers=self.layers,
            num_tokens=self.num_tokens,
            num_ids=int(np.count_nonzero(occurrences_V)),
            num_ids_once=int(np.count_nonzero(occurrences_V == 1)),
            min_occurrences=1 if olmoe_script else min_occurrences,
            num_ids_in_means=len(counts_V),
            share_null=self.num_ranks / self.shape.num_experts,
            macro_share=macro,
            macro_share_null=macro_null,
            weighted_share=weighted,
            weighted_share_null=weighted_null,
            mean_macro_share=float(np.mean(macro)) if macro else None,
            mean_macro_share_null=float(np.mean(macro_null)) if macro_null else None,
            experts=tuple(
                expert_vocabularies(picks_VE, occurrences_V, min_occurrences) for picks_VE in self._picks_2LVE[0]
            ),
        )

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

    def _check_num_tokens(self, num_tokens: int) -> None:
        if num_tokens > _MAX_TOKENS:
            raise ValueError(f"ids ({num_tokens} tokens) must be at most {_MAX_TOKENS}; count a sample of the data")


def _means(sums_L: NDArray[np.number], divisor: int) -> tuple[float, ...] | None:
    return tuple((sums_L / divisor).tolist()) if divisor else None


def _default_layers(shape: RoutingShape, vocab_size: int) -> tuple[int, ...]:
    bytes_of_all = 2 * shape.num_layers * vocab_size * shape.num_experts * np.dtype(np.int32).itemsize
    return tuple(range(shape.num_layers)) if bytes_of_all <= _ALL_LAYERS_BYTES else ((shape.num_layers - 1) // 2,)
