# Shapes: B batch, S sequence.
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pathmoe import PathMoEConfig, PathMoEForCausalLM
from pathmoe.bench.peer import build_peer, our_inputs, peer_inputs
from pathmoe.olmoe import olmoe_state_dict


def config(**changes: object) -> PathMoEConfig:
    shape = {
        "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
        "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": True,
        "layers_per_router": 2,
    }  # fmt: skip
    return PathMoEConfig(**shape | changes)


def packed_batch() -> dict[str, Tensor]:
    """Two rows with documents of different lengths, and some positions without a target."""
    torch.manual_seed(0)
    tokens_BS = torch.randint(0, 40, (2, 12))
    positions_BS = torch.stack([torch.cat((torch.arange(n), torch.arange(12 - n))) for n in (5, 9)])
    targets_BS = torch.randint(0, 40, (2, 12))
    targets_BS[0, 4] = targets_BS[1, 8] = -100
    return {"input_ids": tokens_BS, "position_ids": positions_BS, "shift_labels": targets_BS}


def test_peer_has_the_same_loss_once_it_has_our_weights() -> None:
    ours, peer = PathMoEForCausalLM(config()), build_peer(config())
    peer.load_state_dict(olmoe_state_dict(ours.state_dict(), ours.config))
    batch = packed_batch()
    loss = peer(**peer_inputs(batch)).loss
    for return_logits in (False, True):
        assert loss.item() == pytest.approx(ours(**our_inputs(batch, return_logits)).loss.item(), abs=1e-6)


def test_peer_runs_its_experts_through_grouped_mm(operators_of: Callable[[Callable[[], object]], list[str]]) -> None:
    peer = build_peer(config())
    names = operators_of(lambda: peer(**peer_inputs(packed_batch())))
    assert any("grouped_mm" in name for name in names)


def test_balance_loss_is_in_the_loss_on_request() -> None:
    batch = peer_inputs(packed_batch())
    plain, balanced = build_peer(config())(**batch), build_peer(config(), router_aux_loss_coef=0.5)(**batch)
    assert plain.aux_loss is None
    assert balanced.loss.item() == pytest.approx(plain.loss.item() + 0.5 * balanced.aux_loss.item(), rel=1e-6)


def test_peer_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    first = build_peer(config(), seed=3)
    torch.manual_seed(2)
    again, other = build_peer(config(), seed=3), build_peer(config(), seed=4)
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_what_the_peer_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="router_type"):
        build_peer(config(router_type="cosine", router_dim=4))
