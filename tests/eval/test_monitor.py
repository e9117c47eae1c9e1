"""Figures of a model's routing against their definitions; the model afterwards; several processes as one."""

# Shapes: B batch, S sequence, T = B*S tokens, L MoE layers, E experts, K experts per token.

import math
import random
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from pathmoe import PathMoEConfig, PathMoEForCausalLM
from pathmoe_eval.experts.load import LoadCounts
from pathmoe_eval.experts.router_scores import RouterScoreSums
from pathmoe_eval.monitor import monitor, router_entropy_bits

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "moe_intermediate_size": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "layers_per_router": 2,
    "initializer_range": 0.2,
}
forks = pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(), reason="forks, which CUDA does not survive"
)


def fresh_model(**fields: Any) -> PathMoEForCausalLM:
    torch.manual_seed(0)
    return PathMoEForCausalLM(PathMoEConfig(**SHAPE | fields)).train()


def random_batches(sizes: tuple[int, ...] = (3, 2, 3), length: int = 16) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    position_ids = torch.cat([torch.arange(length - 5), torch.arange(5)])[None]  # two documents
    return [
        {
            "input_ids": torch.randint(50, (size, length), generator=generator),
            "position_ids": position_ids.expand(size, -1),
        }
        for size in sizes
    ]


def entropy_bits(weights: list[float]) -> float:
    total = sum(weights)
    return -math.fsum(w / total * math.log2(w / total) for w in weights if w)


def scores_of(logits: list[float], scoring_func: str) -> list[float]:
    if scoring_func == "sigmoid":
        return [1 / (1 + math.exp(-logit)) for logit in logits]
    return [math.exp(logit - max(logits)) for logit in logits]


def figures_by_definition(model: PathMoEForCausalLM, batches: list[dict[str, Tensor]]) -> dict[str, float]:
    """All of them, with those of the layers, from the choices and logits of every token."""
    with torch.no_grad():
        outputs = [model.eval()(**batch, output_router_logits=True) for batch in batches]
    layers, experts = model.config.num_moe_layers, model.config.num_experts
    choices = [
        [token for o in outputs for token in o.routings[layer].expert_ids_TK.tolist()] for layer in range(layers)
    ]
    logits = [[token for o in outputs for token in o.routings[layer].logits_TE.tolist()] for layer in range(layers)]
    tops = [[token[0] for token in of_layer] for of_layer in choices]
    tokens, paths = len(tops[0]), Counter(zip(*tops, strict=True))
    of_layers: dict[str, list[float]] = {
        "max_over_mean_load": [], "dead_experts": [], "load_entropy": [], "router_entropy_bits": [],
    }  # fmt: skip
    for layer in range(layers):
        load = [sum(expert in token for token in choices[layer]) for expert in range(experts)]
        of_layers["max_over_mean_load"].append(max(load) * experts / sum(load))
        of_layers["dead_experts"].append(load.count(0))
        if experts > 1:
            of_layers["load_entropy"].append(entropy_bits(list(map(float, load))) / math.log2(experts))
        entropies = [entropy_bits(scores_of(token, model.config.scoring_func)) for token in logits[layer]]
        of_layers["router_entropy_bits"].append(math.fsum(entropies) / tokens)
    for a, b in pairwise(tops):
        both, correction = Counter(zip(a, b, strict=True)), 2 * tokens * math.log(2)
        information = sum(
            entropy_bits(list(map(float, counts.values()))) + (len(counts) - 1) / correction
            for counts in (Counter(a), Counter(b))
        ) - (entropy_bits(list(map(float, both.values()))) + (len(both) - 1) / correction)
        of_pair = {
            "adjacent_agreement": sum(x == y for x, y in zip(a, b, strict=True)) / tokens,
            "adjacent_agreement_null": sum(a.count(e) * b.count(e) for e in range(experts)) / tokens**2,
            "adjacent_mutual_information_bits": information,
        }
        for name, value in of_pair.items():
            of_layers.setdefault(name, []).append(value)
    of_paths = entropy_bits(list(map(float, paths.values())))
    figures = {"tokens": tokens, "entropy_bits": of_paths, "effective_paths": 2**of_paths, "distinct": len(paths)}
    figures["entropy_ceiling_bits"] = math.log2(tokens)
    for name, values in of_layers.items():
        if values:
            figures[name] = sum(values) / len(values)
        figures |= {f"layer_{layer:02d}/{name}": value for layer, value in enumerate(values)}
    return figures


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"scoring_func": "sigmoid", "norm_topk_prob": True, "router_bias_update_rate": 0.1},
        {"layers_per_router": 4, "layers_per_decision": 4},
        {"layers_per_router": 4, "layers_per_decision": [3, 1]},
        {"first_k_dense_replace": 2},
        {"first_k_dense_replace": 3, "layers_per_router": 1},
        {"router_type": "recurrent", "layers_per_router": 1, "router_dim": 4},
        {"num_experts": 1, "num_experts_per_tok": 1},
        {"router_aux_loss_coef": 0.1, "initializer_range": 5.0},
    ],
    ids=str,
)
def test_figures_are_those_of_the_definitions(fields: dict[str, Any]) -> None:
    model, batches = fresh_model(**fields), random_batches()
    found = monitor(model, batches, per_layer=True)
    assert found == pytest.approx(figures_by_definition(model, batches), rel=1e-5, abs=1e-6)
    means = {name: value for name, value in found.items() if "/" not in name}
    assert monitor(model, batches) == means
    assert ("adjacent_agreement" in means) == (model.config.num_moe_layers > 1)
    if "layers_per_decision" in fields and fields["layers_per_decision"] == 4:
        assert means["adjacent_agreement"] == 1.0


@given(
    st.lists(st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3), min_size=1, max_size=5),
    st.sampled_from(["softmax", "sigmoid"]),
)
def test_router_entropy_is_that_of_the_scores(logits: list[list[float]], scoring_func: str) -> None:
    found = router_entropy_bits(torch.tensor(logits, dtype=torch.float64), scoring_func).tolist()
    assert found == pytest.approx([entropy_bits(scores_of(token, scoring_func)) for token in logits], abs=1e-9)


@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid"])
def test_load_and_router_entropy_are_those_that_a_report_has(scoring_func: Literal["softmax", "sigmoid"]) -> None:
    model, (batch,) = fresh_model(scoring_func=scoring_func), random_batches((8,))
    with torch.no_grad():
        routings = model.eval()(**batch, output_router_logits=True).routings
    expert_ids_TLK = torch.stack([routing.expert_ids_TK for routing in routings], dim=1).numpy()
    logits_TLE = torch.stack([routing.logits_TE for routing in routings], dim=1).numpy()
    shape = {"num_layers": 4, "num_experts": 4, "num_experts_per_tok": 2}
    load, scores = LoadCounts(**shape), RouterScoreSums(**shape, score_function=scoring_func)
    load.update(expert_ids_TLK)
    scores.update(logits_TLE, expert_ids_TLK)
    figures, balance = monitor(model, [batch]), load.result().all_picks
    assert figures["load_entropy"] == balance.mean_entropy_share
    assert figures["max_over_mean_load"] == balance.mean_max_over_mean
    assert figures["dead_experts"] == balance.mean_dead_experts
    assert figures["router_entropy_bits"] == pytest.approx(scores.result().mean_entropy_bits, rel=1e-6)


@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid"])
def test_router_entropy_of_logits_that_are_all_far_below_zero(scoring_func: str) -> None:
    assert router_entropy_bits(torch.full((1, 8), -1e4), scoring_func).item() == pytest.approx(3.0)
    assert router_entropy_bits(torch.tensor([[1e4, -1e4, -1e4]]), scoring_func).item() == 0.0


def test_the_batching_does_not_matter() -> None:
    model = fresh_model().double()  # in which no choice is a matter of rounding
    whole = random_batches((8,))
    parts = [{name: tensor[i : i + 1] for name, tensor in whole[0].items()} for i in range(8)]
    assert monitor(model, parts) == pytest.approx(monitor(model, whole), rel=1e-12)


def test_the_model_is_left_as_it_was() -> None:
    model = fresh_model(router_noise_std=1.0, router_bias_update_rate=0.1)
    model.model.layers[1].mlp.eval()  # a part that its user keeps out of training
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    model(**random_batches()[0], labels=random_batches()[0]["input_ids"]).loss.backward()
    torch.set_rng_state(random_states[0])
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    assert monitor(model, random_batches()) == monitor(model, random_batches()), "without noise"
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(parameter.grad, gradients[name]) for name, parameter in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == random_states[1:]
    hooks = [hook for m in model.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    assert hooks == []
    assert torch.is_grad_enabled()


def test_geometry_is_added_on_request_and_leaves_the_rest() -> None:
    model = fresh_model()
    plain, found = monitor(model, random_batches()), monitor(model, random_batches(), geometry=True)
    names = ("shared_state_energy", "shared_logit_energy", "mean_state_energy", "mean_logit_energy", "alignment")
    added = {name: found.pop(name) for name in names}
    assert found == plain
    assert added["mean_state_energy"] < added["shared_state_energy"] and 0 < added["mean_logit_energy"] < 1
    assert 1 / 16 < added["shared_state_energy"] < 1 and 0 < added["shared_logit_energy"] < 1 and added["alignment"] > 0


def test_also_after_an_error() -> None:
    model = fresh_model()
    with pytest.raises(IndexError):
        monitor(model, [{"input_ids": torch.tensor([[50]]), "position_ids": torch.tensor([[0]])}])
    assert all(module.training for module in model.modules())


def in_two_processes(rank: int, folder: Path, shards: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    looks, weights = train(rank=rank, world_size=2, shards=shards, looks=True)
    # The second time without a look in between.
    weights_of = {"looked": weights, "undisturbed": train(rank=rank, world_size=2, shards=shards, looks=False)[1]}
    torch.save({"looks": looks, **weights_of}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def train(rank: int, world_size: int, shards: bool, looks: bool) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Three steps of one rank; figures in each, of its share of four batches, and the weights at the end."""
    model = fresh_model()
    if shards:
        mesh = init_device_mesh("cpu", (world_size,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert isinstance(model, FSDPModule)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    figures = []
    batch = random_batches((4,))[0]  # the same on every rank, so that gradients are those of one process
    for _ in range(3):
        model(**batch, labels=batch["input_ids"]).loss.backward()
        if looks:  # at the worst moment: gathered weights that stayed would be what the next forward computes with
            figures.append(monitor(model, random_batches((3, 3, 2, 2))[rank::world_size], per_layer=True))
        optimizer.step()
        optimizer.zero_grad()
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    return figures, {name: p.full_tensor() if isinstance(p, DTensor) else p.clone() for name, p in tensors.items()}


@forks
@pytest.mark.parametrize("shards", [False, True], ids=["whole", "fully_shard"])
def test_two_processes_count_as_one_does_and_train_on_undisturbed(tmp_path: Path, shards: bool) -> None:
    expected, weights = train(rank=0, world_size=1, shards=False, looks=True)
    mp.start_processes(in_two_processes, (tmp_path, shards), nprocs=2, start_method="fork")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert expected[0]["entropy_bits"] != expected[2]["entropy_bits"], "the weights have moved in between"
    for rank in ranks:
        # The first look is at weights that no rounding has touched: the same integers, hence the same bits.
        of_sums = {name for name in expected[0] if name.endswith("router_entropy_bits")}
        counted = {name: value for name, value in expected[0].items() if name not in of_sums}
        assert {name: rank["looks"][0][name] for name in counted} == counted
        for look, figures in zip(rank["looks"], expected, strict=True):
            assert look == pytest.approx(figures, rel=1e-5)
        for name, weight in rank["looked"].items():
            assert torch.equal(weight, rank["undisturbed"][name]), name
            torch.testing.assert_close(weight, weights[name], rtol=0, atol=1e-5)
    assert ranks[0]["looks"] == ranks[1]["looks"]
