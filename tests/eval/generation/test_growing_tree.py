"""A tree built node by node, read off its arrays."""

# Shapes: P tokens of the prompt, L MoE layers, K experts per token.

import numpy as np
import pytest

from pathmoe_eval.generation.growing_tree import GrowingTree
from pathmoe_eval.generation.tree import END_OF_SEQUENCE, GOES_ON, NOT_SEARCHED


def routing(*experts):
    return np.array([[expert, expert + 1] for expert in experts], dtype=np.uint8)


@pytest.mark.parametrize(("num_experts", "dtype"), [(8, np.uint8), (256, np.uint8), (300, np.uint16)])
def test_what_was_added_is_in_the_tree(num_experts, dtype):
    growing = GrowingTree([5, 6], np.stack([routing(0, 1, 2), routing(3, 4, 5)]))
    first, second = growing.add(1, 7, -0.5), growing.add(1, 8, -1.5)
    growing.set_fork(1, 0.25)
    growing.set_routing(first, routing(6, 0, 1))
    growing.set_end(first, GOES_ON)
    last = growing.add(first, 9, -2.0)
    growing.set_end(last, END_OF_SEQUENCE)
    assert growing.token_ids_to(last) == [5, 6, 7, 9]
    assert growing.log_probability(second) == -1.5
    tree = growing.finished(num_experts, 10)
    assert tree.parent_N.tolist() == [-1, 0, 1, 1, 2]
    assert tree.token_ids_N.tolist() == [5, 6, 7, 8, 9]
    assert tree.log_probability_N.tolist() == [0, 0, -0.5, -1.5, -2]
    assert tree.end_N.tolist() == [0, 0, GOES_ON, NOT_SEARCHED, END_OF_SEQUENCE]
    assert tree.has_routing_N.tolist() == [True, True, True, False, False]
    assert tree.fork_mass_N[1] == 0.25 and np.isnan(tree.fork_mass_N[[0, 2, 3, 4]]).all()
    assert tree.expert_ids_NLK.dtype == dtype
    np.testing.assert_array_equal(tree.expert_ids_NLK[2], routing(6, 0, 1))
