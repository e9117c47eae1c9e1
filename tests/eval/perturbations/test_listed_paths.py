"""Listed paths against their definition in plain loops, and on real models against what a recorder sees."""

# Shapes: N tokens, L MoE layers, P listed paths, K experts per token.

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pathmoe_eval.perturbations.listed_paths import (
    held_paths,
    is_listed,
    most_frequent_paths,
    nearest_listed,
    only_listed_paths,
    paths_of_trace,
    put_first,
)
from pathmoe_eval.traces.recorder import RoutingRecorder


def tokens(*shape):
    return torch.randint(2, 40, shape, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def recorded(model, input_ids):
    with RoutingRecorder(model, weights=True) as recorder:
        logits = model(input_ids, use_cache=False).logits
    return recorder.take(), logits


def state_of(model):
    return [
        (name, len(module._forward_pre_hooks), len(module._forward_hooks), sorted(vars(module)))
        for name, module in model.named_modules()
    ]


def some_paths(num_layers):
    shape = st.tuples(st.integers(1, 30), st.just(num_layers))
    return arrays.arrays(np.uint8, shape, elements=st.integers(0, 2))


two_samples = st.integers(1, 4).flatmap(lambda num_layers: st.tuples(some_paths(num_layers), some_paths(num_layers)))


@given(two_samples, st.none() | st.integers(1, 12))
def test_paths_are_listed_and_held_as_defined(samples, num_paths):
    sample_NL, reference_NL = samples
    counts = Counter(map(tuple, reference_NL.tolist()))
    listed = sorted(counts, key=lambda path: (-counts[path], path))[:num_paths]
    paths_PL = most_frequent_paths(reference_NL, num_paths)
    assert list(map(tuple, paths_PL.tolist())) == listed
    nearest, held = [], []
    for path in map(tuple, sample_NL.tolist()):
        agreement = [sum(a == b for a, b in zip(path, other, strict=True)) for other in listed]
        nearest.append(agreement.index(max(agreement)))
        held.append(path if path in listed else listed[nearest[-1]])
    assert is_listed(sample_NL, paths_PL).tolist() == [tuple(path) in listed for path in sample_NL.tolist()]
    assert nearest_listed(sample_NL, paths_PL).tolist() == nearest
    assert list(map(tuple, held_paths(sample_NL, paths_PL).tolist())) == held


@given(some_paths(3))
def test_paths_of_a_trace_are_those_of_its_tokens(write_paths, sample_NL):
    with tempfile.TemporaryDirectory() as folder:
        paths_PL = paths_of_trace(write_paths(Path(folder) / "trace", sample_NL), 3, 6)
    assert paths_PL.tolist() == most_frequent_paths(sample_NL, None).tolist()


@pytest.mark.parametrize(
    ("shape", "fields", "line"),
    [
        (
            (2, 6),
            {},
            r"must have the 2 MoE layers and 6 experts of the model, but has 3 and 6; record one of the model$",
        ),
        (
            (3, 8),
            {},
            r"must have the 3 MoE layers and 8 experts of the model, but has 3 and 6; record one of the model$",
        ),
        (
            (3, 6),
            {"is_sorted_by_weight": False},
            r"must have experts in the order of their weights; record another one$",
        ),
    ],
)
def test_traces_of_another_shape_are_refused(write_paths, tmp_path, shape, fields, line):
    folder = write_paths(tmp_path / "trace", np.zeros((2, 3), dtype=np.uint8), **fields)
    with pytest.raises(ValueError, match=rf"^--paths_from \({folder}\) {line}"):
        paths_of_trace(folder, *shape)


def test_the_nearest_is_found_in_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    sample_NL, paths_PL = rng.integers(0, 3, (50, 4)), rng.integers(0, 3, (7, 4))
    whole = nearest_listed(sample_NL, paths_PL)
    monkeypatch.setattr("pathmoe_eval.perturbations.listed_paths._CELLS_PER_CHUNK", 20)
    assert (nearest_listed(sample_NL, paths_PL) == whole).all()


@given(st.permutations(range(6)), st.lists(st.integers(0, 3), min_size=3, max_size=3), st.integers(0, 5))
def test_the_first_place_is_taken_as_defined(order, weights, expert):
    ids = order[:3]
    first = weights.index(max(weights))
    expected = list(ids)
    if expert in ids:
        other = ids.index(expert)
        expected[first], expected[other] = ids[other], ids[first]
    else:
        expected[first] = expert
    found = put_first(
        torch.tensor([ids], dtype=torch.int32), torch.tensor([weights], dtype=torch.float32), torch.tensor([expert])
    )
    assert found.tolist() == [expected]
    assert found.dtype == torch.int32


def test_all_paths_change_nothing(build_moe, moe_name):
    model, input_ids = build_moe(moe_name), tokens(2, 9)
    before = state_of(model)
    free, free_logits = recorded(model, input_ids)
    with only_listed_paths(model, most_frequent_paths(free.expert_ids_NLK[..., 0], None)):
        found, logits = recorded(model, input_ids)
    assert logits.equal(free_logits)
    np.testing.assert_array_equal(found.expert_ids_NLK, free.expert_ids_NLK)
    np.testing.assert_array_equal(found.weights_NLK, free.weights_NLK)
    assert state_of(model) == before


@pytest.mark.parametrize("num_paths", [1, 3])
def test_tokens_take_the_paths_that_they_are_held_to(build_moe, moe_name, num_paths):
    model, input_ids = build_moe(moe_name), tokens(2, 9)
    free, free_logits = recorded(model, input_ids)
    free_paths_NL = free.expert_ids_NLK[..., 0]
    paths_PL = most_frequent_paths(free_paths_NL, num_paths)
    with RoutingRecorder(model) as outside, only_listed_paths(model, paths_PL):
        found, logits = recorded(model, input_ids)
    np.testing.assert_array_equal(outside.take().expert_ids_NLK, found.expert_ids_NLK)
    np.testing.assert_array_equal(found.expert_ids_NLK[..., 0], held_paths(free_paths_NL, paths_PL))
    assert len(np.unique(found.expert_ids_NLK[..., 0], axis=0)) <= num_paths
    assert all(len(set(ids)) == len(ids) for ids in found.expert_ids_NLK.reshape(-1, 2).tolist())
    np.testing.assert_array_equal(found.weights_NLK[:, 0], free.weights_NLK[:, 0])
    assert not logits.equal(free_logits)


def test_nothing_is_left_behind_after_an_error(build_moe):
    model = build_moe("olmoe")
    before = state_of(model)
    paths_PL = np.zeros((1, 3), dtype=np.uint8)
    with pytest.raises(RuntimeError, match="mid-way"), only_listed_paths(model, paths_PL):
        recorded(model, tokens(1, 3))
        raise RuntimeError("mid-way")
    assert state_of(model) == before


def test_a_cache_is_refused(build_moe):
    model = build_moe("olmoe")
    cache = model(tokens(1, 3), use_cache=True).past_key_values
    message = r"^past_key_values \(of OlmoeModel\) must not be given under listed paths; run whole sequences$"
    with pytest.raises(ValueError, match=message), only_listed_paths(model, np.zeros((1, 3), dtype=np.uint8)):
        model(tokens(1, 1), past_key_values=cache)


@pytest.mark.parametrize("paths", [np.zeros((0, 3), int), np.zeros((1, 2), int), [[0, 6, 0]], [[0, -1, 0]], [0, 1, 2]])
def test_paths_of_another_model_are_refused(build_moe, paths):
    message = (
        r"^paths \(\[.*\]\) must be at least one path through the model's 3 MoE layers, of expert .* below 6; make"
    )
    with pytest.raises(ValueError, match=message), only_listed_paths(build_moe("olmoe"), np.array(paths)):
        pass


def test_lists_of_nothing_are_refused():
    with pytest.raises(ValueError, match=r"^num_paths \(0\) must be at least 1; raise it, or leave it out"):
        most_frequent_paths(np.zeros((2, 3), int), 0)
    with pytest.raises(ValueError, match=r"^path_ids \(0 tokens\) must hold at least 1; pass a longer reference"):
        most_frequent_paths(np.zeros((0, 3), int), 1)
