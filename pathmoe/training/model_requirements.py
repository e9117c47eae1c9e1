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
