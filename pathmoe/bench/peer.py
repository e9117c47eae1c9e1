"""The peer: transformers' OLMoE in the shape of a PathMoE configuration."""

import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

from pathmoe.config import PathMoEConfig


def build_peer(config: PathMoEConfig, seed: int = 0) -> OlmoeForCausalLM:
    """`OlmoeForCausalLM` with `experts_implementation="grouped_mm"`, of `config`'s shape but a router in each layer.

    Its load-balancing loss is left off, as it costs time and the tiny PathB4 configuration has none.
    """
    peer_config = OlmoeConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.moe_intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        num_experts=config.num_experts,
        num_experts_per_tok=config.num_experts_per_tok,
        norm_topk_prob=config.norm_topk_prob,
        rms_norm_eps=config.rms_norm_eps,
        initializer_range=config.initializer_range,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=config.tie_word_embeddings,
        pad_token_id=None,
        eos_token_id=None,
    )
    peer_config._attn_implementation = "sdpa"
    peer_config._experts_implementation = "grouped_mm"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return OlmoeForCausalLM(peer_config)
