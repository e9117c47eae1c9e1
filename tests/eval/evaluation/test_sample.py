"""The text sample at the end of a run."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from pathmoe import PathMoEConfig, PathMoEForCausalLM
from pathmoe.data import train_bpe
from pathmoe_eval.evaluation.sample import sample_text

PROMPT = "def "


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_bpe(["def main():\n    return 0\n" * 20], 270)


def model(**fields: Any) -> PathMoEForCausalLM:
    shape: dict[str, Any] = {
        "vocab_size": 280, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(0)
    return PathMoEForCausalLM(PathMoEConfig(**shape | fields))


def test_the_same_every_time_and_goes_on_from_the_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    samples = set()
    for seed in range(3):
        torch.manual_seed(seed)
        samples.add(sample_text(model(), tokenizer, PROMPT, 20))
    (text,) = samples
    assert text.startswith(PROMPT)
    assert len(tokenizer.encode(text)) > 10
    assert sample_text(model(), tokenizer, PROMPT, 20, seed=1) != text


def test_leaves_model_and_random_state_as_they_were(tokenizer: PreTrainedTokenizerBase) -> None:
    sampled = model(router_noise_std=1.0)
    weights = {name: value.clone() for name, value in sampled.state_dict().items()}
    for training in (True, False):
        sampled.train(training)
        state = torch.get_rng_state()
        sample_text(sampled, tokenizer, PROMPT, 5)
        assert torch.equal(torch.get_rng_state(), state)
        assert sampled.training == training
    assert all(torch.equal(value, weights[name]) for name, value in sampled.state_dict().items())
    assert not any(parameter.is_inference() for parameter in sampled.parameters())


def test_there_is_no_noise_in_a_sample(tokenizer: PreTrainedTokenizerBase) -> None:
    noisy, quiet = model(router_noise_std=5.0).train(), model().train()
    assert sample_text(noisy, tokenizer, PROMPT, 20) == sample_text(quiet, tokenizer, PROMPT, 20)


def test_ends_where_the_document_ends(tokenizer: PreTrainedTokenizerBase) -> None:
    class Ends(PathMoEForCausalLM):
        """Every next token is the end of the document."""

        def forward(self, *arguments: Any, **kwargs: Any) -> Any:
            output = super().forward(*arguments, **kwargs)
            output.logits[..., tokenizer.eos_token_id] = 1e6
            return output

    assert sample_text(Ends(model().config), tokenizer, PROMPT, 20) == PROMPT


def test_draws_at_a_temperature_among_the_likeliest(tokenizer: PreTrainedTokenizerBase) -> None:
    sampled = model()
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(PROMPT, add_special_tokens=False)]])
    with torch.no_grad():
        likeliest = set(sampled.eval()(ids).logits[0, -1].topk(40).indices.tolist())
    texts = [sample_text(sampled, tokenizer, PROMPT, 1, seed=seed) for seed in range(60)]
    prefix = tokenizer.decode(ids[0], skip_special_tokens=True)
    assert prefix == PROMPT
    allowed = {PROMPT + tokenizer.decode([token], skip_special_tokens=True) for token in likeliest}
    assert set(texts) <= allowed
    assert len(set(texts)) > 5
