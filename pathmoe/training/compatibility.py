"""Whether a checkpoint fits the model that is to take it."""

from collections.abc import Mapping
from typing import Any

from pathmoe.config import PathMoEConfig

# What may change between two parts of a run: it shapes neither the parameters nor what a forward computes with them.
_FREE_TO_CHANGE = {
    "router_aux_loss_coef", "router_aux_loss_scope", "router_z_loss_coef", "router_noise_std", "router_frozen",
    "use_cache", "output_router_logits", "initializer_range", "transformers_version", "architectures", "dtype",
    "pad_token_id", "bos_token_id", "eos_token_id", "max_position_embeddings", "force_uniform_routing",
}  # fmt: skip


def check_architecture(saved: Mapping[str, Any] | None, config: PathMoEConfig) -> None:
    """Refuse the checkpoint of another architecture.

    Args:
        saved: the checkpoint's `pathmoe` entry, whose `config` is the model's configuration as a dict.
        config: that of the model which is to take the weights.

    Raises:
        ValueError: a checkpoint without that entry, or with another architecture; the message names the first key.
    """
    if saved is None:
        raise ValueError(
            "--ckpt_path must be a checkpoint that this program wrote; the one given holds no model.config"
        )
    before, now = saved["config"], config.to_dict()
    for key in sorted((before.keys() | now.keys()) - _FREE_TO_CHANGE):
        # The size of the bias's step is free; whether there are biases is not.
        same = (
            bool(before.get(key)) == bool(now.get(key))
            if key == "router_bias_update_rate"
            else before.get(key) == now.get(key)
        )
        if not same:
            raise ValueError(
                f"model.config.{key} ({now.get(key)}) must be the checkpoint's ({before.get(key)}), since it changes the "
                "architecture; drop the setting, or start another run with --run_dir"
            )
