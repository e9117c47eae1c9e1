"""Generation through transformers: greedy with a cache, without one, from a padded batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from pathmoe import PathMoEConfig, PathMoEForCausalLM

ROUTERS = sorted((Path(__file__).resolve().parents[2] / "configs" / "routers").glob("*.yaml"))
VOCABULARY, NEW_TOKENS = 50, 10
# Wide initial weights, so that what is generated depends on what came before.
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 9,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 16,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
}

every_router = pytest.mark.parametrize("router", ROUTERS, ids=lambda path: path.stem)


def build(router: Path | None = None, **fields: Any) -> PathMoEForCausalLM:
    from_yaml = yaml.safe_load(router.read_text())["model"]["config"] if router else {}
    return PathMoEForCausalLM(PathMoEConfig(**SHAPE | from_yaml | fields)).eval()


def greedy(model: PathMoEForCausalLM, prompt: Tensor, **kwargs: Any) -> Tensor:
    """The new tokens [B, NEW_TOKENS]."""
    generated = model.generate(prompt, do_sample=False, max_new_tokens=NEW_TOKENS, **kwargs)
    return generated[:, prompt.shape[1] :]


def by_hand(model: PathMoEForCausalLM, prompt: Tensor) -> Tensor:
    """Greedy tokens from a whole forward each, without transformers' generation."""
    sequence = prompt
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            best = model(sequence, use_cache=False).logits[:, -1].argmax(dim=-1, keepdim=True)
            sequence = torch.cat([sequence, best], dim=1)
    return sequence[:, prompt.shape[1] :]


@every_router
def test_greedy_is_the_same_with_a_cache_and_without(router: Path) -> None:
    model = build(router)
    prompt = torch.randint(2, VOCABULARY, (2, 7))
    expected = by_hand(model, prompt)
    assert len(expected.unique()) > 3
    assert torch.equal(greedy(model, prompt, use_cache=True), expected)
    assert torch.equal(greedy(model, prompt, use_cache=False), expected)


@every_router
def test_a_left_padded_batch_generates_what_each_prompt_does_alone(router: Path) -> None:
    model = build(router)
    prompts = [torch.randint(2, VOCABULARY, (1, length)) for length in (3, 8)]
    rows = [torch.nn.functional.pad(prompt, (8 - prompt.shape[1], 0)) for prompt in prompts]
    batch = torch.cat(rows)
    generated = greedy(model, batch, attention_mask=(batch != 0).long())
    assert torch.equal(generated, torch.cat([greedy(model, prompt) for prompt in prompts]))


def test_positions_of_a_left_padded_prompt_start_at_its_first_token() -> None:
    model = build(num_hidden_layers=2)
    positions = []
    model.model.rotary_emb.register_forward_pre_hook(lambda _, args: positions.append(args[1].tolist()))
    batch = torch.tensor([[5, 6, 7], [0, 0, 8]])
    model.generate(batch, attention_mask=(batch != 0).long(), do_sample=False, max_new_tokens=2)
    assert positions == [[[0, 1, 2], [0, 0, 0]], [[3], [1]]]


def test_a_static_cache_generates_the_same() -> None:
    model = build(layers_per_router=4, first_k_dense_replace=1, n_shared_experts=1)
    prompt = torch.randint(2, VOCABULARY, (2, 7))
    assert torch.equal(greedy(model, prompt, cache_implementation="static"), by_hand(model, prompt))


def test_sampling_follows_the_seed() -> None:
    model = build(layers_per_router=4)
    prompt = torch.randint(2, VOCABULARY, (1, 5))
    samples = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        samples.append(model.generate(prompt, do_sample=True, temperature=2.0, max_new_tokens=NEW_TOKENS))
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])
