"""The token ids that each expert of a layer is picked for most."""

# Shapes: V token ids, E experts.

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_LISTED_IDS = 10


@dataclass(frozen=True, kw_only=True)
class TokenShare:
    """A token id of an expert."""

    token_id: int
    """The id."""
    num_occurrences: int
    """Its occurrences."""
    share: float
    """Share of them that the expert was picked for."""


@dataclass(frozen=True, kw_only=True)
class ExpertVocabulary:
    """The token ids whose most frequent expert this is (of equally frequent ones the first by index)."""

    num_ids: int
    """How many of the ids with enough occurrences."""
    mean_share: float | None
    """Mean of their shares; None without ids."""
    top_ids: tuple[TokenShare, ...]
    """Those of the highest share, highest first (at equal share the more frequent, then the lower id)."""


def expert_vocabularies(
    picks_VE: NDArray[np.integer], occurrences_V: NDArray[np.int64], min_occurrences: int
) -> tuple[ExpertVocabulary, ...]:
    """The token ids of each expert of a layer.

    Args:
        picks_VE: integers [token ids, experts], occurrences of the id for which the expert was picked.
        occurrences_V: int64 [token ids].
        min_occurrences: occurrences that an id needs, at least 1.
    """
    ids_V = np.flatnonzero(occurrences_V >= min_occurrences)
    expert_V = picks_VE[ids_V].argmax(axis=1)
    share_V = picks_VE[ids_V, expert_V] / occurrences_V[ids_V]
    order_V = np.lexsort((ids_V, -occurrences_V[ids_V], -share_V, expert_V))
    bounds = np.searchsorted(expert_V[order_V], np.arange(picks_VE.shape[1] + 1))
    vocabularies = []
    for start, end in pairwise(bounds.tolist()):
        mine = order_V[start:end]
        top_ids = tuple(
            TokenShare(
                token_id=int(ids_V[place]),
                num_occurrences=int(occurrences_V[ids_V[place]]),
                share=float(share_V[place]),
            )
            for place in mine[:_LISTED_IDS]
        )
        mean_share = float(share_V[mine].mean()) if len(mine) else None
        vocabularies.append(ExpertVocabulary(num_ids=len(mine), mean_share=mean_share, top_ids=top_ids))
    return tuple(vocabularies)
