"""What training needs of the model's settings, checked before anything is built or written."""

import copy

import torch

from pathmoe.config import PathMoEConfig
from pathmoe.model import PathMoEForCausalLM


def check_routers_learn(config: PathMoEConfig) -> None:
    """Refuse routers that would silently learn nothing from the data.

    Raises:
        ValueError: one expert per token, whose weight is scaled to one whatever the router says.
    """
    if config.norm_topk_prob and config.num_experts_per_tok == 1 < config.num_experts and not config.router_frozen:
        raise ValueError(
            "model.config.norm_topk_prob (true) must be false with model.config.num_experts_per_tok (1), since one "
            "weight scaled to one gives the router no gradient from the cross-entropy; set it to false, or set "
            "model.config.router_frozen to true"
        )


def check_experts_can_be_shared(
    config: PathMoEConfig, experts_implementation: str, expert_parallel_size: int, num_shards: int
) -> None:
    """Refuse experts that can't be shared out over ranks as expert parallelism does.

    Args:
        config: the model's.
        experts_implementation: what computes the experts.
        expert_parallel_size: ranks that share the experts.
        num_shards: ranks that share the rows of each expert.

    Raises:
        ValueError: experts or rows that do not divide by the ranks, or an implementation that sends no tokens.
    """
    key = f"trainer.strategy.init_args.expert_parallel_size ({expert_parallel_size})"
    if experts_implementation != "pathmoe":
        raise ValueError(
            f"model.experts_implementation ({experts_implementation}) must be pathmoe under {key}, since no other "
            "sends tokens to the experts of other ranks; change it, or set that to 1"
        )
    if config.num_experts % expert_parallel_size:
        raise ValueError(f"{key} must divide model.config.num_experts ({config.num_experts}); change one of them")
    gate_and_up = 2 * config.moe_intermediate_size
    for name, rows in (("hidden_size", config.hidden_size), ("moe_intermediate_size, twice,", gate_and_up)):
        if rows % num_shards:
            raise ValueError(
                f"{key} leaves {num_shards} ranks to share each expert, which must divide model.config.{name} ({rows})"
                "; raise trainer.strategy.init_args.expert_parallel_size or num_replicas"
            )


def check_attention_is_installed(config: PathMoEConfig, attn_implementation: str) -> None:
    """Refuse flash attention where transformers can't find it.

    Raises:
        ValueError: with transformers' reason.
    """
    if not attn_implementation.startswith("flash"):
        return
    config = copy.deepcopy(config)
    config._attn_implementation = attn_implementation
    try:
        with torch.device("meta"):
            PathMoEForCausalLM(config)
    except ImportError as error:
        raise ValueError(
            f"model.attn_implementation ({attn_implementation}) can't be used here ({error}); install its package on a "
            "machine with a GPU, or use flex_attention or sdpa"
        ) from error


def check_attention_runs(attn_implementation: str, precision: str, device_type: str, training: bool) -> None:
    """Refuse attention that can't compute in this precision, or train on this device.

    Args:
        attn_implementation: attention of transformers.
        precision: that of Lightning's trainer.
        device_type: "cpu" or an accelerator's; anything else where it is not known yet.
        training: whether there will be a backward.

    Raises:
        ValueError: flash attention outside of half precision, or flex attention trained on a CPU.
    """
    if attn_implementation.startswith("flash") and not precision.startswith("bf16"):
        raise ValueError(
            f"model.attn_implementation ({attn_implementation}) computes in half precision only, which "
            f"trainer.precision ({precision}) must be; set that to bf16-mixed, or use flex_attention or sdpa"
        )
    if training and attn_implementation == "flex_attention" and device_type == "cpu":
        raise ValueError(
            "model.attn_implementation (flex_attention) must be sdpa or eager to train on a CPU, where flex attention "
            "has no backward; change it"
        )
