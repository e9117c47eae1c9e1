"""Experts' token ids against a loop over ids."""

# Shapes: V token ids, E experts.

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pathmoe_eval.experts.expert_vocabulary import TokenShare, expert_vocabularies

TABLES = st.tuples(st.integers(1, 40), st.integers(1, 4)).flatmap(
    lambda shape: hnp.arrays(np.int32, shape, elements=st.integers(0, 6))
)


@given(TABLES, st.integers(0, 3), st.integers(1, 8))
def test_equals_brute_force(picks_VE, unpicked, min_occurrences):
    # with several experts a token, an id occurs at most as often as it is picked, and at least as the busiest expert
    occurrences_V = picks_VE.max(axis=1).astype(np.int64) + unpicked
    ids_of = [[] for _ in range(picks_VE.shape[1])]
    for token_id, (picks, occurrences) in enumerate(zip(picks_VE.tolist(), occurrences_V.tolist(), strict=True)):
        if occurrences >= min_occurrences:
            share = max(picks) / occurrences
            ids_of[picks.index(max(picks))].append((-share, -occurrences, token_id))
    result = expert_vocabularies(picks_VE, occurrences_V, min_occurrences)
    assert len(result) == len(ids_of)
    for vocabulary, ids in zip(result, ids_of, strict=True):
        assert vocabulary.num_ids == len(ids)
        assert vocabulary.top_ids == tuple(
            TokenShare(token_id=token_id, num_occurrences=-occurrences, share=-share)
            for share, occurrences, token_id in sorted(ids)[:10]
        )
        if ids:
            assert vocabulary.mean_share == pytest.approx(np.mean([-share for share, _, _ in ids]))
        else:
            assert vocabulary.mean_share is None
