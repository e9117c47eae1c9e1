"""A text sample from a model, the same every time."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def sample_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int, seed: int = 0
) -> str:
    """The prompt and what the model goes on with, sampled at temperature 0.7 among the 40 likeliest tokens.

    Args:
        model: left in the mode, training or not, that it came in.
        tokenizer: its beginning-of-document token, if it has one, goes before the prompt.
        prompt: text to go on from.
        max_new_tokens: tokens to sample at most.
        seed: of the draws; torch's default generator is left as it was.
    """
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    if tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id, *ids]
    was_training = model.training
    model.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(seed)
        generate: Any = model.generate  # its type asks for a protocol that no class of transformers declares
        generated = generate(
            torch.tensor([ids], device=model.device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
            max_new_tokens=max_new_tokens,
            do_sample=True,
            temperature=0.7,
            top_k=40,
            pad_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    model.train(was_training)
    return str(tokenizer.decode(generated[0], skip_special_tokens=True))
