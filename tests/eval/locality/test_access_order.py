"""Orders of accesses: which tokens, in which accesses."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.locality.access_order import one_after_another, side_by_side


@given(st.integers(0, 10**6))
def test_both_orders_hold_every_generated_token_of_every_completion(random_tree, seed):
    tree = random_tree(seed)
    paths = [tree.path(end)[tree.prompt_length : -1].tolist() for end in tree.completions().tolist()]
    paths = [path for path in paths if path]
    if not paths:
        return
    samples, parallel = one_after_another(tree), side_by_side(tree)
    assert samples.node_J.tolist() == [*chain(*paths)]
    assert samples.start_Q.tolist() == [sum(map(len, paths[:index])) for index in range(len(paths))]
    assert samples.num_accesses == len(samples.node_J)
    steps = [[path[step] for path in paths if len(path) > step] for step in range(max(map(len, paths)))]
    assert parallel.node_J.tolist() == [*chain(*steps)]
    assert parallel.access_J.tolist() == [step for step, nodes in enumerate(steps) for _ in nodes]
    assert (parallel.num_accesses, parallel.start_Q.tolist()) == (len(steps), [0])
    for order, accesses in ((samples, [[node] for node in chain(*paths)]), (parallel, steps)):
        found = [set(np.flatnonzero(row).tolist()) for row in order.is_accessed(tree, 1)]
        assert found == [set(tree.expert_ids_NLK[nodes, 1].ravel().tolist()) for nodes in accesses]


@pytest.mark.parametrize("order", [one_after_another, side_by_side])
def test_a_tree_without_generated_routing_is_refused(plant_tree, order):
    with pytest.raises(ValueError, match=r"^tree.completions \(2\) must have generated tokens with routing; "):
        order(plant_tree([[1], [2]], lambda *_: [[0]], 2))
