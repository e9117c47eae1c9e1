"""Bytes kept for backward, from the configuration, against those that autograd keeps of the built model."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pathmoe import PathMoEConfig, PathMoEForCausalLM
from pathmoe.activations import Forward, NumberSizes, activation_bytes, largest_temporaries, number_sizes
from pathmoe.bench.saved import saved_bytes
from pathmoe.losses import _chunks

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ROUTERS = sorted(path.stem for path in (CONFIGS / "routers").glob("*.yaml"))
BATCH_SIZE, LENGTH = 4, 96
SHAPE = {
    "vocab_size": 200, "hidden_size": 64, "num_hidden_layers": 9, "num_attention_heads": 4, "num_key_value_heads": 2,
    "moe_intermediate_size": 40, "num_experts": 6, "num_experts_per_tok": 2,
}  # fmt: skip
EXTRAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shared-and-dense": {"n_shared_experts": 2, "first_k_dense_replace": 1, "intermediate_size": 52},
}
PRECISIONS = {
    "fp32": ("32-true", False),
    "autocast": ("bf16-mixed", False),
    "bf16-weights": ("bf16-mixed", True),
}
TOLERANCE = 0.04
"""Weights of the routers in fp32, and single numbers."""


def config_of(router: str, extras: str = "plain") -> PathMoEConfig:
    own = yaml.safe_load((CONFIGS / "routers" / f"{router}.yaml").read_text())["model"]["config"]
    return PathMoEConfig(**SHAPE | EXTRAS[extras] | own)


def measured(config: PathMoEConfig, precision: str, attention: str = "sdpa", checkpointing: bool = False) -> int:
    """Bytes that autograd keeps in one training forward, with documents that end within the blocks.

    With checkpointing, those of the decisions too, which are handed from layer to layer.
    """
    config._attn_implementation = attention
    model = PathMoEForCausalLM(config)
    if precision == "bf16-weights":
        model.to(torch.bfloat16)
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(0, config.vocab_size, (BATCH_SIZE, LENGTH))
    positions = torch.arange(LENGTH).expand(BATCH_SIZE, -1).clone()
    positions[:, LENGTH // 3 :] -= LENGTH // 3

    decisions: dict[int, int] = {}

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"):
            output = model(
                input_ids=ids, position_ids=positions, shift_labels=ids, return_logits=False, use_cache=False,
                noise_seed=0,
            )  # fmt: skip
        for routing in output.routings if checkpointing else ():
            leaves = torch.utils._pytree.tree_leaves(tuple(routing))
            storages = [leaf.untyped_storage() for leaf in leaves if isinstance(leaf, torch.Tensor)]
            decisions.update({storage.data_ptr(): storage.nbytes() for storage in storages})
        return output.loss

    return saved_bytes(forward, tuple(model.parameters())) + sum(decisions.values())


def micro(precision: str, attention: str = "sdpa") -> Forward:
    return Forward(BATCH_SIZE, LENGTH, attention, number_sizes(*PRECISIONS[precision]))


def predicted(config: PathMoEConfig, precision: str, attention: str = "sdpa", checkpointing: bool = False) -> int:
    """As the hooks see it: neither the mask, which none of them saves, nor gradients that the loss has made already."""
    kept = activation_bytes(config, micro(precision, attention))
    mask = BATCH_SIZE * LENGTH**2 * (1 if attention == "sdpa" else number_sizes(*PRECISIONS[precision]).residual)
    layers = kept.checkpoints if checkpointing else kept.layers
    rotary = 0
    if checkpointing:  # layers are handed it, and none of them saves it
        rotary = BATCH_SIZE * LENGTH * 2 * number_sizes(*PRECISIONS[precision]).residual * config.head_dim
    return layers + kept.outside - mask - rotary + (0 if precision == "fp32" else kept.loss)


@pytest.mark.parametrize("extras", EXTRAS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("router", ROUTERS)
def test_what_autograd_keeps(router: str, precision: str, extras: str) -> None:
    config = config_of(router, extras)
    assert predicted(config, precision) == pytest.approx(measured(config, precision), rel=TOLERANCE)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "fields",
    [
        {"router_noise_std": 0.1},
        {"router_bias": True},
        {"router_aux_loss_coef": 0.1, "router_z_loss_coef": 0.1},
        {"num_key_value_heads": 4},
        {"layers_per_router": 3, "layers_per_decision": 3},
    ],
    ids=str,
)
def test_what_autograd_keeps_of_other_settings(fields: dict[str, Any], precision: str) -> None:
    config = PathMoEConfig(**SHAPE | fields)
    assert predicted(config, precision) == pytest.approx(measured(config, precision), rel=TOLERANCE)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_eager_attention_keeps(precision: str) -> None:
    config = config_of("path_b4")
    expected = measured(config, precision, "eager")
    assert predicted(config, precision, "eager") == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("router", ROUTERS)
def test_what_is_kept_with_checkpointing(router: str, precision: str) -> None:
    config = config_of(router)
    expected = measured(config, precision, checkpointing=True)
    assert predicted(config, precision, checkpointing=True) == pytest.approx(expected, rel=TOLERANCE)


def test_checkpointing_keeps_one_layer_beside_the_checkpoints() -> None:
    config = config_of("path_b4")
    kept = activation_bytes(config, micro("fp32"))
    assert kept.layers == config.num_hidden_layers * kept.largest_layer
    assert kept.kept(checkpointing=False) == kept.layers + kept.outside + kept.loss
    assert kept.kept(checkpointing=True) == kept.checkpoints + kept.largest_layer + kept.outside + kept.loss


@pytest.mark.parametrize(("heads", "repeats"), [(8, False), (6, True)])
def test_attention_without_a_dense_mask(heads: int, repeats: bool) -> None:
    config = PathMoEConfig(**SHAPE | {"hidden_size": 48, "num_attention_heads": heads, "num_key_value_heads": 2})
    sdpa, flex, flash = (
        activation_bytes(config, micro("autocast", name)).largest_layer
        for name in ("sdpa", "flex_attention", "flash_attention_2")
    )
    tokens, groups = BATCH_SIZE * LENGTH, heads // 2
    repeated_keys_and_values = tokens * 2 * 2 * 48 * (groups - 1) // groups
    assert sdpa - flash == tokens * LENGTH * 2 + repeated_keys_and_values
    assert flex - flash == (repeated_keys_and_values if repeats else 0)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("ranks", [2, 8])
def test_rows_that_move_are_kept_as_they_arrive(precision: str, ranks: int) -> None:
    config = config_of("path_b4")
    stays, size = micro(precision), number_sizes(*PRECISIONS[precision])
    moves = Forward(BATCH_SIZE, LENGTH, "sdpa", size, expert_parallel_size=ranks)
    more = activation_bytes(config, moves).largest_layer - activation_bytes(config, stays).largest_layer
    arriving, tokens = min(ranks, config.num_experts_per_tok), BATCH_SIZE * LENGTH
    x, choices = tokens * size.gemm * 64, tokens * arriving * config.num_experts_per_tok * (4 + 4 + 4 + 4)
    # The router's x is the experts' own where both are of one dtype and nothing moves.
    assert more == arriving * x + choices - (x if size.casts else 0)


def test_sizes_follow_the_precision() -> None:
    assert number_sizes("32-true", True) == number_sizes("32-true", False) == NumberSizes(4, 4)
    assert number_sizes("bf16-mixed", False) == NumberSizes(4, 2) and number_sizes("bf16-mixed", False).casts
    assert number_sizes("bf16-mixed", True) == number_sizes("bf16-true", False) == NumberSizes(2, 2)
    assert number_sizes("64-true", False) == NumberSizes(8, 8)


@given(tokens=st.integers(1, 200_000), width=st.sampled_from([8, 64, 1152, 2048]), vocabulary=st.integers(10, 200_000))
def test_the_loss_holds_as_many_logits_as_torch_says(tokens: int, width: int, vocabulary: int) -> None:
    config = PathMoEConfig(
        vocab_size=vocabulary, hidden_size=width, moe_intermediate_size=1, num_experts=1, num_experts_per_tok=1
    )
    options = _chunks(torch.empty(tokens, width, device="meta"), torch.empty(vocabulary, width, device="meta"))
    adjusted = options._adjust(tokens, width, vocabulary, torch.bfloat16, torch.device("cpu"))
    logits = adjusted.batch_chunk_size * vocabulary * (2 + 4)
    found = largest_temporaries(config, Forward(1, tokens, "sdpa", NumberSizes(2, 2)))
    assert found == max(logits + 2 * vocabulary * width * 2 + tokens * width * 2, tokens * 2 * (3 * width + 4))
