"""Whether a checkpoint fits the model that is to take it."""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pathmoe.config import PathMoEConfig

# What may change between two parts of a run: it shapes neither the parameters nor what a forward computes with them.
_FREE_TO_CHANGE = {
    "router_aux_loss_coef", "router_aux_loss_scope", "router_z_loss_coef", "router_noise_std", "router_frozen",
    "use_cache", "output_router_logits", "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id",
    "max_position_embeddings",
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
    before = PathMoEConfig(**saved["config"])
    # Fields that transformers adds to every configuration say nothing of the model.
    own_fields = PathMoEConfig.__annotations__.keys() & {field.name for field in fields(PathMoEConfig)}
    for key in sorted(own_fields - _FREE_TO_CHANGE):
        old, new = getattr(before, key), getattr(config, key)
        # The size of the bias's step is free; whether there are biases is not.
        same = bool(old) == bool(new) if key == "router_bias_update_rate" else old == new
        if not same:
            new, old = (value if isinstance(value, str) else json.dumps(value) for value in (new, old))
            raise ValueError(
                f"model.config.{key} ({new}) must be the checkpoint's ({old}), since it changes the architecture; drop "
                "the setting, or start another run with --run_dir"
            )
