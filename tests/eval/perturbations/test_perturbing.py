"""The driver on real small models: what it scores, what it measures by, and that it leaves the model as it was."""

# Shapes: N tokens, M documents, L MoE layers, E experts, S inputs of a window.

import json
import math
from dataclasses import asdict, dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pathmoe_eval.evaluation.scoring import scored_batches
from pathmoe_eval.evaluation.windows import score_windows
from pathmoe_eval.perturbations.interventions import index_permutations, permuted_experts
from pathmoe_eval.perturbations.listed_paths import is_listed, most_frequent_paths
from pathmoe_eval.perturbations.perturbing import Perturbations, document_sums, measure_robustness, score_free
from pathmoe_eval.perturbations.robustness import PER_BLOCK, PER_LAYER
from pathmoe_eval.traces.moe_layers import moe_layers
from pathmoe_eval.traces.recorder import RoutingRecorder


@dataclass
class Doc:
    token_ids: NDArray[np.int64]


def documents(seed=0, lengths=(9, 1, 14, 5)):
    rng = np.random.default_rng(seed)
    return [Doc(rng.integers(2, 40, length)) for length in lengths]


@torch.no_grad()
def nats_by_hand(model, docs):
    """Of documents that fit into a window."""
    nats = []
    for doc in docs:
        log_p = model(torch.from_numpy(doc.token_ids)[None], use_cache=False).logits[0].double().log_softmax(-1)
        nats.append(-sum(log_p[at, token].item() for at, token in enumerate(doc.token_ids[1:])))
    return nats


FEW = Perturbations(num_seeds=2, noise_sizes=(0.0, 1.0), path_numbers=(2, None), expert_numbers=(1, 3))


def test_every_intervention_is_measured_on_the_same_documents(build_moe, moe_name):
    model, docs = build_moe(moe_name), documents()
    result = measure_robustness(model, docs, FEW, max_length=16, stride=16, num_resamples=20)
    assert [(one.intervention, one.setting, one.num_seeds) for one in result.perturbed] == [
        (PER_LAYER, None, 2),
        (PER_BLOCK, None, 2),
        ("random reassignment", None, 2),
        ("logit noise", 0.0, 2),
        ("logit noise", 1.0, 2),
        ("listed paths only", 2, 1),
        ("listed paths only", None, 1),
        ("experts per token", 1, 1),
        ("experts per token", 3, 1),
    ]
    assert (result.num_documents, result.num_tokens) == (3, 25)
    free = nats_by_hand(model, docs)
    assert result.free_perplexity == pytest.approx(math.exp(sum(free) / 25), rel=1e-5)
    of = {(one.intervention, one.setting): one for one in result.perturbed}
    for labels, name in (
        (range(len(moe_layers(model))), PER_LAYER),
        ([layer.router_index for layer in moe_layers(model)], PER_BLOCK),
    ):
        for seed in range(2):
            with permuted_experts(model, index_permutations(labels, 6, seed)):
                perplexity = math.exp(sum(nats_by_hand(model, docs)) / 25)
            assert of[name, None].perplexity_of_seed[seed] == pytest.approx(perplexity, rel=1e-5)
    for nothing in (of["logit noise", 0.0], of["listed paths only", None]):
        assert set(nothing.perplexity_of_seed) == {result.free_perplexity}
        assert (nothing.rise_percent, nothing.rise_percent_interval) == (0, (0, 0))
    assert of["listed paths only", None].listed_share == 1.0
    assert 2 / 29 <= of["listed paths only", 2].listed_share < 1.0
    independent = result.permutations.num_routers == result.permutations.num_layers
    assert independent == (of[PER_LAYER, None].perplexity_of_seed == of[PER_BLOCK, None].perplexity_of_seed)
    json.dumps(asdict(result), allow_nan=False)
    assert nats_by_hand(model, docs) == free


def test_everything_can_be_had_again(build_moe):
    model = build_moe("path_b4")
    shape = {"max_length": 16, "stride": 16, "num_resamples": 20}
    assert measure_robustness(model, documents(), FEW, **shape) == measure_robustness(model, documents(), FEW, **shape)


@pytest.mark.parametrize(("stride", "windows_per_forward"), [(6, 1), (2, 1), (6, 3), (2, 3)])
def test_what_is_measured_by_is_of_counted_tokens(build_moe, stride, windows_per_forward):
    model, docs = build_moe("path_b4"), documents()
    free = score_free(model, list(score_windows(docs, 6, stride)), len(docs), windows_per_forward)
    # Each window alone, its repeated context cut off.
    ids, logits = [], []
    with RoutingRecorder(model, logits=True) as recorder, torch.no_grad():
        for window in score_windows(docs, 6, stride):
            model(torch.from_numpy(window.input_ids_S)[None])
            routing = recorder.take()
            ids += routing.expert_ids_NLK[window.num_repeated :, :, 0].tolist()
            logits += routing.logits_NLE[window.num_repeated :].astype(float).tolist()
    assert sorted(free.path_ids_NL.tolist()) == sorted(ids)
    assert len(ids) == sum(len(doc.token_ids) for doc in docs)
    np.testing.assert_allclose(free.logit_std_L, np.array(logits).transpose(1, 0, 2).reshape(9, -1).std(1), rtol=1e-5)
    assert free.num_experts_per_tok == 2
    assert free.router_of_layer == (0, 0, 0, 0, 1, 1, 1, 1, 2)
    assert free.num_tokens_M.tolist() == [8, 0, 13, 4]


def test_sums_of_documents_are_those_of_their_tokens(build_moe):
    model, docs = build_moe("olmoe"), documents(lengths=(1, 9, 1, 3, 1))
    nats_M, num_tokens_M = document_sums(scored_batches(model, score_windows(docs, 16, 16)), len(docs))
    assert num_tokens_M.tolist() == [0, 8, 0, 2, 0]
    np.testing.assert_allclose(nats_M, nats_by_hand(model, docs), rtol=1e-5)


def test_paths_are_listed_from_a_trace(build_moe, write_paths, tmp_path):
    model, docs, other = build_moe("indep"), documents(), documents(seed=1, lengths=(30,))
    own, theirs = (score_free(model, list(score_windows(some, 16, 16)), len(some)) for some in (docs, other))
    folder = write_paths(tmp_path / "trace", theirs.path_ids_NL)
    few = Perturbations(num_seeds=1, noise_sizes=(), path_numbers=(2, None), expert_numbers=(), paths_from=folder)
    result = measure_robustness(model, docs, few, max_length=16, stride=16, num_resamples=20)
    assert result.paths_from == str(folder)
    for one, number in zip(result.perturbed[-2:], (2, None), strict=True):
        listed = is_listed(own.path_ids_NL, most_frequent_paths(theirs.path_ids_NL, number))
        assert one.listed_share == listed.mean() < 1
        assert one.perplexity != result.free_perplexity


def test_a_trace_of_the_same_documents_lists_the_same_paths(build_moe, write_paths, tmp_path):
    model, docs = build_moe("path_b4"), documents()
    paths_NL = score_free(model, list(score_windows(docs, 16, 16)), len(docs)).path_ids_NL
    few = Perturbations(num_seeds=1, noise_sizes=(), path_numbers=(1, 3, None), expert_numbers=())
    from_trace = replace(few, paths_from=write_paths(tmp_path / "trace", paths_NL))
    own, listed = (
        measure_robustness(model, docs, of, max_length=16, stride=16, num_resamples=20) for of in (few, from_trace)
    )
    assert own.paths_from is None
    assert own.perturbed == listed.perturbed


def test_more_experts_than_there_are_are_refused_before_the_work(build_moe, monkeypatch):
    monkeypatch.setattr("pathmoe_eval.perturbations.perturbing.score_free", lambda *_: pytest.fail("has begun"))
    few = Perturbations(expert_numbers=(1, 7))
    with pytest.raises(
        ValueError, match=r"^--expert_numbers \(7\) must be at most the model's experts \(6\); lower it$"
    ):
        measure_robustness(build_moe("olmoe"), documents(), few, max_length=16, stride=16)


@pytest.mark.parametrize(("own", "numbers"), [(1, [2]), (2, [1, 4]), (3, [1, 2, 4]), (4, [1, 2])])
def test_other_numbers_of_experts_go_up_to_twice_the_own(build_moe, own, numbers):
    num_experts = 6 if own < 4 else 4
    model = build_moe("olmoe", num_experts_per_tok=own, num_experts=num_experts)
    none = Perturbations(num_seeds=1, noise_sizes=(), path_numbers=())
    result = measure_robustness(model, documents(), none, max_length=16, stride=16, num_resamples=2)
    found = [one.setting for one in result.perturbed if one.intervention == "experts per token"]
    assert found == numbers


@pytest.mark.parametrize(
    ("option", "value", "shown"),
    [
        ("num_seeds", 0, "0"),
        ("noise_sizes", (1.0, -0.1), "-0.1"),
        ("noise_sizes", (math.inf,), "inf"),
        ("path_numbers", (None, 0), "0"),
        ("expert_numbers", (0,), "0"),
    ],
)
def test_numbers_out_of_range_are_refused(option, value, shown):
    with pytest.raises(
        ValueError, match=rf"^--{option} \({shown}\) must be (at least 1|finite and at least 0); (raise|change) it"
    ):
        Perturbations(**{option: value})


def test_no_documents_are_refused(build_moe):
    with pytest.raises(ValueError, match=r"^--data \(0 tokens\) must hold text; give other data$"):
        measure_robustness(build_moe("olmoe"), [], FEW, max_length=16, stride=16)
