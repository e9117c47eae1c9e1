import torch

from pathmoe import PathMoEConfig, PathMoEForCausalLM
from pathmoe.bench.peer import build_peer


def config(**changes: object) -> PathMoEConfig:
    shape = {
        "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
        "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    return PathMoEConfig(**shape | changes)


def test_peer_has_the_parameters_of_independent_routers() -> None:
    ours, peer = PathMoEForCausalLM(config()), build_peer(config())
    assert sum(p.numel() for p in peer.parameters()) == sum(p.numel() for p in ours.parameters())
    assert peer.config._experts_implementation == "grouped_mm"


def test_peer_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    first = build_peer(config(), seed=3)
    torch.manual_seed(2)
    again, other = build_peer(config(), seed=3), build_peer(config(), seed=4)
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
