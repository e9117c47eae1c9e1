"""Separation of classes by paths against definitions, planted cases, and the invariances of a count."""

# Shapes: N tokens, L MoE layers.

import json
import math
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pathmoe_eval.classes.separation import SeparationCounts
from pathmoe_eval.layers.agreement import mutual_information_bits


def counted(path_ids_NL, class_ids_N, token_ids_N=None, *, num_experts=4, routers=None):
    routers = [0] * path_ids_NL.shape[1] if routers is None else routers
    counts = SeparationCounts(num_layers=path_ids_NL.shape[1], num_experts=num_experts, router_of_layer=routers)
    counts.update(path_ids_NL, class_ids_N, token_ids_N)
    return counts


def entropy(symbols):
    return -math.fsum(c / len(symbols) * math.log2(c / len(symbols)) for c in Counter(symbols).values())


def brute_force(values, labels):
    """Every observed field, from the definitions."""
    n, pairs = len(values), list(zip(values, labels, strict=True))
    information = entropy(values) + entropy(labels) - entropy(pairs)
    surplus = len(set(values)) + len(set(labels)) - len(set(pairs)) - 1
    members = {value: [label for v, label in pairs if v == value] for value in values}
    return {
        "num_tokens": n,
        "num_values": len(set(values)),
        "num_classes": len(set(labels)),
        "class_entropy_bits": entropy(labels),
        "mutual_information_corrected_bits": information + surplus / (2 * n * math.log(2)),
        "normalised_information": information / entropy(labels) if len(set(labels)) > 1 else None,
        "largest_class_share": max(Counter(labels).values()) / n,
        "information": information,
        "purity": sum(max(Counter(row).values()) for row in members.values()) / n,
    }


def assert_observed(result, values, labels):
    found = vars(result) | {"information": result.mutual_information_bits.observed, "purity": result.purity.observed}
    expected = brute_force(values, labels)
    assert {name: found[name] for name in expected} == {
        name: value if value is None else pytest.approx(value, abs=1e-9) for name, value in expected.items()
    }


@st.composite
def cases(draw):
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 5)))
    path_ids_NL = draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 3)))
    class_ids_N, token_ids_N = (draw(hnp.arrays(np.int64, shape[0], elements=st.integers(0, top))) for top in (2, 9))
    routers = draw(st.lists(st.integers(0, 2), min_size=shape[1], max_size=shape[1]))
    return path_ids_NL, class_ids_N, token_ids_N, routers


@given(cases(), st.integers(2, 4))
def test_equals_brute_force(case, min_path_tokens):
    path_ids_NL, class_ids_N, token_ids_N, routers = case
    result = counted(path_ids_NL, class_ids_N, token_ids_N, routers=routers).result(
        num_permutations=2, min_path_tokens=min_path_tokens
    )
    labels = class_ids_N.tolist()
    assert_observed(result.token_ids, token_ids_N.tolist(), labels)
    for part in (result.whole, *result.blocks, *result.layers):
        paths = list(map(tuple, path_ids_NL[:, part.first_layer : part.last_layer + 1].tolist()))
        assert_observed(part.all_paths, paths, labels)
        sizes = Counter(paths)
        kept = [number for number, path in enumerate(paths) if sizes[path] >= min_path_tokens]
        assert part.frequent_share == pytest.approx(len(kept) / len(paths))
        if kept:
            assert_observed(part.frequent_paths, [paths[n] for n in kept], [labels[n] for n in kept])
        else:
            assert part.frequent_paths is None


def test_the_correction_is_that_of_agreement():
    rng = np.random.default_rng(0)
    path_ids_NL, class_ids_N = rng.integers(0, 4, (300, 1)), rng.integers(0, 3, 300)
    joint = np.zeros((4, 3), dtype=np.int64)
    np.add.at(joint, (path_ids_NL[:, 0], class_ids_N), 1)
    result = counted(path_ids_NL, class_ids_N).result(num_permutations=2).whole.all_paths
    expected = mutual_information_bits(joint)
    assert (result.mutual_information_bits.observed, result.mutual_information_corrected_bits) == pytest.approx(
        expected
    )


def test_where_the_path_decides_the_class_it_tells_all_of_it():
    path_ids_NL = np.random.default_rng(0).integers(0, 4, (4000, 3))
    result = counted(path_ids_NL, path_ids_NL[:, 0] * 2 + path_ids_NL[:, 2] // 2).result()
    whole = result.whole.all_paths
    assert whole.mutual_information_bits.observed == pytest.approx(whole.class_entropy_bits)
    assert whole.normalised_information == pytest.approx(1)
    assert whole.purity.observed == 1
    assert whole.mutual_information_bits.z > 100
    assert whole.normalised_excess > 0.9
    # the middle layer has no part in it, the first one all but a bit
    assert result.layers[0].all_paths.mutual_information_bits.observed == pytest.approx(2, abs=0.01)
    assert abs(result.layers[1].all_paths.mutual_information_bits.excess) < 0.01


@pytest.mark.parametrize("num_layers", [2, 5])
def test_independent_classes_have_no_excess_however_many_paths_there_are(num_layers):
    rng = np.random.default_rng(1)
    path_ids_NL, class_ids_N = rng.integers(0, 4, (9000, num_layers)), rng.choice(3, 9000, p=[0.4, 0.35, 0.25])
    result = counted(path_ids_NL, class_ids_N).result(num_permutations=50)
    for separation in (result.whole.all_paths, result.whole.frequent_paths):
        for statistic in (separation.mutual_information_bits, separation.purity):
            assert abs(statistic.z) < 3.5
        assert abs(separation.normalised_excess) < 0.01
    if num_layers == 5:  # a thousand paths of nine tokens tell something about any classes
        assert result.whole.all_paths.normalised_information > 0.05


def test_paths_of_one_token_each_tell_everything_and_nothing():
    path_ids_NL = np.stack(np.unravel_index(np.arange(256), (4, 4, 4, 4)), axis=1)
    result = counted(path_ids_NL, np.arange(256) % 5).result()
    assert result.whole.all_paths.normalised_information == pytest.approx(1)
    assert result.whole.all_paths.normalised_excess == 0
    assert result.whole.all_paths.purity.observed == 1
    assert result.whole.all_paths.purity.z is None
    assert (result.whole.frequent_paths, result.whole.frequent_share) == (None, 0)


@given(cases(), st.integers(0, 2**32 - 1))
def test_relabelling_experts_per_layer_and_classes_changes_nothing(case, seed):
    path_ids_NL, class_ids_N, token_ids_N, routers = case
    rng = np.random.default_rng(seed)
    relabelled_NL = np.stack([rng.permutation(4)[column] for column in path_ids_NL.T], axis=1)
    relabelled = counted(relabelled_NL, rng.permutation(3)[class_ids_N], token_ids_N, routers=routers)
    kept = counted(path_ids_NL, class_ids_N, token_ids_N, routers=routers)
    # to the last bit: all sums run over sorted sizes
    assert relabelled.result(num_permutations=3) == kept.result(num_permutations=3)


@given(cases(), st.data())
def test_batching_order_and_merging_do_not_change_one_bit(count_in_parts, case, data):
    *columns, routers = case
    shape = {"num_layers": columns[0].shape[1], "num_experts": 4, "router_of_layer": routers}
    parts = count_in_parts(lambda: SeparationCounts(**shape), data, *columns)
    assert parts.result(num_permutations=2) == counted(*columns, routers=routers).result(num_permutations=2)


def test_results_go_into_json_as_they_are():
    result = counted(np.zeros((3, 2), dtype=np.uint8), np.zeros(3, dtype=np.uint8)).result()
    assert result.token_ids is None
    assert result.whole.all_paths.normalised_information is None
    assert json.loads(json.dumps(asdict(result), allow_nan=False))["whole"]["all_paths"]["num_values"] == 1


def test_most_frequent_paths_of_all_layers_and_of_each_block():
    path_ids_NL = np.array([[0, 1, 2], [0, 1, 3], [1, 1, 3], [0, 1, 2], [0, 2, 2]])
    found = counted(path_ids_NL, np.zeros(5, dtype=np.int64), routers=[0, 0, 1]).most_frequent(1)
    assert {part: paths.paths_PL.tolist() for part, paths in found.items()} == {
        (0, 3): [[0, 1, 2]],
        (0, 2): [[0, 1]],
        (2, 3): [[2]],
    }


def counts_with(num_layers=2, num_experts=4, routers=(0, 0)):
    return SeparationCounts(num_layers=num_layers, num_experts=num_experts, router_of_layer=routers)


def partly_with_token_ids():
    counts = counted(GOOD, CLASSES, CLASSES)
    counts.update(GOOD, CLASSES)
    return counts


GOOD = np.zeros((3, 2), dtype=np.int64)
CLASSES = np.zeros(3, dtype=np.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: counts_with(routers=(0,)),
            r"router_of_layer \(1 entries\) must have one for each of num_layers",
        ),
        (lambda: counts_with(num_experts=0), r"num_experts \(0\) must be at least 1"),
        (lambda: counts_with().update(GOOD + 4, CLASSES), r"path_ids \(4\) must be at least 0 and below num_experts"),
        (lambda: counts_with().update(GOOD[:, :1], CLASSES), r"path_ids \(1 layers\) must have num_layers \(2\)"),
        (lambda: counts_with().update(GOOD, CLASSES[:2]), r"class_ids \(int64 \[2\]\) must be integers \[3\]"),
        (lambda: counts_with().update(GOOD, CLASSES, CLASSES - 1), r"token_ids \(-1\) must be at least 0"),
        (lambda: counts_with().update(GOOD, CLASSES, CLASSES[:1]), r"token_ids \(int64 \[1\]\) must be integers \[3\]"),
        (lambda: counts_with().merge(counts_with(routers=(0, 1))), r"other.router_of_layer \(\(0, 1\)\) must equal"),
        (lambda: counts_with().merge(counts_with(num_experts=3)), r"other.num_experts \(3\) must equal"),
        (lambda: counts_with().result(), r"^num_tokens \(0\) must be at least 1; "),
        (lambda: counted(GOOD, CLASSES).result(num_permutations=1), r"num_permutations \(1\) must be at least 2"),
        (lambda: counted(GOOD, CLASSES).result(min_path_tokens=1), r"min_path_tokens \(1\) must be at least 2"),
        (
            lambda: partly_with_token_ids().result(),
            r"token_ids \(3 tokens\) must be given for all 6 tokens or for none",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
