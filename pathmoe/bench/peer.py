"""The peer: transformers' OLMoE in the shape of a PathMoE configuration."""

# Shapes: B batch, S sequence.

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import OlmoeForCausalLM

from pathmoe.config import PathMoEConfig
from pathmoe.olmoe import olmoe_config


def build_peer(config: PathMoEConfig, seed: int = 0, router_aux_loss_coef: float = 0.0) -> OlmoeForCausalLM:
    """`OlmoeForCausalLM` with `experts_implementation="grouped_mm"`, of `config`'s shape but a router in each layer.

    Args:
        config: linear softmax routers, shared or not; its own balance and z-loss are not the peer's.
        seed: of the weights.
        router_aux_loss_coef: of OLMoE's load-balancing loss, which costs time; 0 leaves it out.

    Raises:
        ValueError: `config` has what OLMoE lacks.
    """
    peer_config = olmoe_config(config)
    peer_config.router_aux_loss_coef = router_aux_loss_coef
    peer_config.output_router_logits = router_aux_loss_coef > 0
    peer_config._attn_implementation = "sdpa"
    peer_config._experts_implementation = "grouped_mm"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return OlmoeForCausalLM(peer_config)


def peer_inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor | bool]:
    """What the peer's forward takes of a packed batch: document-bounded, with the loss over the same targets."""
    targets_BS = batch["shift_labels"]
    # transformers computes a loss only where there are labels, and then prefers those already shifted.
    return {
        "input_ids": batch["input_ids"],
        "position_ids": batch["position_ids"],
        "labels": targets_BS,
        "shift_labels": targets_BS,
        "use_cache": False,
    }


def our_inputs(batch: Mapping[str, Tensor], return_logits: bool = False) -> dict[str, Tensor | bool]:
    """What our forward takes of a packed batch; without logits the loss goes through the vocabulary in chunks."""
    names = ("input_ids", "position_ids", "shift_labels")
    return {name: batch[name] for name in names} | {"use_cache": False, "return_logits": return_logits}
