"""The layers whose kernels are timed: two that are published, and those of this project's configurations."""

from pathmoe.bench.layer import LayerShape, layer_shape
from pathmoe.config import PathMoEConfig
from pathmoe.training.config_files import config_folder, read_yaml

CONFIGS = {"PathMoE 0.9B": "pathmoe_0.9b.yaml", "PathMoE 16B": "pathmoe_16b.yaml"}


def kernel_shapes(num_tokens: int) -> dict[str, LayerShape]:
    """Each layer's name and shape, with `num_tokens` tokens.

    Sources: config.json of allenai/OLMoE-1B-7B-0924 and of Qwen/Qwen3-30B-A3B; `configs/`.
    """
    shapes = {
        "OLMoE": layer_shape(num_tokens, 2048, 1024, 64, 8, norm_topk_prob=False),
        "Qwen3-30B-A3B": layer_shape(num_tokens, 2048, 768, 128, 8),
    }
    for name, file in CONFIGS.items():
        config = PathMoEConfig(**read_yaml(config_folder() / file)["model"]["config"])
        shapes[name] = layer_shape(
            num_tokens, config.hidden_size, config.moe_intermediate_size, config.num_experts,
            config.num_experts_per_tok, config.norm_topk_prob,
        )  # fmt: skip
    return shapes
