"""Changed inputs: the same tokens, elsewhere or again."""

# Shapes: S tokens of an input.

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.geometry.inputs import repeated, reversed_order, shuffled

TOKENS = st.lists(st.tuples(st.integers(2, 9), st.booleans()), min_size=1, max_size=20)


@given(TOKENS, st.integers(0, 100))
def test_special_tokens_stay_and_the_others_move_among_themselves(tokens: list[tuple[int, bool]], seed: int) -> None:
    ids_S, is_text_S = (np.array(column) for column in zip(*tokens, strict=True))
    for varied in (shuffled(ids_S, is_text_S, seed), reversed_order(ids_S, is_text_S)):
        assert (varied.token_ids_S[~is_text_S] == ids_S[~is_text_S]).all()
        assert Counter(varied.token_ids_S[is_text_S].tolist()) == Counter(ids_S[is_text_S].tolist())
        assert (varied.is_counted_S == is_text_S).all()
    backwards = reversed_order(ids_S, is_text_S)
    assert (reversed_order(backwards.token_ids_S, is_text_S).token_ids_S == ids_S).all()
    assert (shuffled(ids_S, is_text_S, seed).token_ids_S == shuffled(ids_S, is_text_S, seed).token_ids_S).all()


@given(TOKENS, st.integers(1, 4))
def test_copies_follow_each_other_and_the_last_one_counts(tokens: list[tuple[int, bool]], copies: int) -> None:
    ids_S, is_text_S = (np.array(column) for column in zip(*tokens, strict=True))
    varied, text = repeated(ids_S, is_text_S, copies), ids_S[is_text_S].tolist()
    before = ids_S[: int(np.argmax(is_text_S))].tolist() if text else ids_S.tolist()
    assert varied.token_ids_S.tolist() == before + text * copies
    assert varied.token_ids_S[varied.is_counted_S].tolist() == text
    assert not text or varied.is_counted_S[-1]


def test_a_shuffle_is_of_its_seed() -> None:
    ids_S, is_text_S = np.arange(50), np.ones(50, dtype=bool)
    orders = {tuple(shuffled(ids_S, is_text_S, seed).token_ids_S.tolist()) for seed in range(5)}
    assert len(orders) == 5
