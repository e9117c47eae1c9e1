"""Which ids pass, against their definition, and the one-line refusals of the others."""

# Shapes: N tokens.

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pathmoe_eval.id_range import check_id_range, check_one_per_token

IDS = hnp.arrays(
    st.sampled_from([np.int8, np.uint8, np.int64]), hnp.array_shapes(max_dims=3, min_side=0), elements=st.integers(0, 9)
)


@given(IDS, st.integers(1, 12))
def test_ids_pass_if_all_are_below_the_limit(ids, limit):
    if all(value < limit for value in ids.ravel().tolist()):
        check_id_range(ids, limit, name="ids", advice="")
    else:
        with pytest.raises(ValueError, match=rf"^ids \({ids.max()}\) must be at least 0 and below {limit}; mend them$"):
            check_id_range(ids, limit, name="ids", advice="mend them")


def test_the_wrong_id_and_the_name_of_the_limit_are_in_the_message():
    with pytest.raises(ValueError, match=r"^ids \(-3\) must be at least 0 and below num_experts \(4\); mend them$"):
        check_id_range(np.array([[2, -3], [9, 0]]), 4, name="ids", limit_name="num_experts", advice="mend them")


def test_one_integer_a_token_passes_unchanged():
    assert check_one_per_token([3, 1], 2, name="ids").tolist() == [3, 1]
    ids_N = np.array([3, 1], dtype=np.uint16)
    assert check_one_per_token(ids_N, 2, name="ids") is ids_N


@pytest.mark.parametrize(
    ("ids", "found"), [([1.0, 2.0], "float64 [2]"), ([1, 2, 3], "int64 [3]"), ([[1, 2]], "int64 [1, 2]")]
)
def test_another_shape_or_dtype_is_refused(ids, found):
    with pytest.raises(ValueError) as error:
        check_one_per_token(ids, 2, name="ids")
    assert str(error.value) == f"ids ({found}) must be integers [2]; pass one for each token"
