"""Prompts that a model goes on from, and how alike the expert usage of pairs stays on the way.

"The Myth of Expert Specialization" (arXiv 2604.09780) follows three pairs of queries from prompt into generation, with
prompt and generation taken together; the generation alone stands beside it here, and means over all pairs.
"""

# Shapes: M prompts, S tokens, L MoE layers, E experts, K experts per token, Q pairs of prompts.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from pathmoe_eval.geometry.sequences import cosines
from pathmoe_eval.geometry.truncation import doublings_to
from pathmoe_eval.traces.recorder import RoutingRecorder


@dataclass(frozen=True, kw_only=True)
class UsageOverRollout:
    """Cosine of expert usage, mean over pairs of rollouts and MoE layers."""

    num_rollouts: int
    prompt: float
    """Of the prompts alone."""
    steps: tuple[int, ...]
    """Generated tokens so far."""
    cumulative: tuple[float, ...]
    """Of prompt and generation so far, by step."""
    generated: tuple[float, ...]
    """Of the generation alone. It rises with the number of tokens whatever they are, as few visits scatter."""
    prompt_begun: tuple[float | None, ...]
    """Of so many first tokens of the prompts alone, to compare `generated` with; None beyond their end."""
    generated_quartiles: tuple[tuple[float, float], ...]
    """Of `generated`: quartiles over pairs of their means over layers."""
    kept_order: tuple[float | None, ...]
    """Pearson correlation over pairs of the cosine of prompts with that of generations: 0 if what pairs are alike in
    generation can't be told from their prompts. None for two rollouts, or pairs that are all alike."""
    last_generated_by_layer: tuple[float, ...]
    """Of the whole generation alone, by layer."""
    prompt_by_layer: tuple[float, ...]
    """Of the prompts alone, by layer."""


def generate_completions(
    model: PreTrainedModel, prompts: Sequence[NDArray[np.int64]], num_tokens: int, seed: int
) -> list[NDArray[np.int64]]:
    """Sampled completions of exactly so many tokens, each prompt alone, so that none depends on the others.

    Args:
        model: a causal language model in evaluation mode.
        prompts: token ids.
        num_tokens: of each completion; what ends a text is not drawn.
        seed: with the prompt's number, of its draws.
    """
    generator: Any = model
    completions = []
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []), torch.inference_mode():
        for number, prompt_S in enumerate(prompts):
            torch.manual_seed(seed * len(prompts) + number)
            input_ids = torch.from_numpy(prompt_S)[None].to(model.device)
            output = generator.generate(
                input_ids, attention_mask=torch.ones_like(input_ids), do_sample=True, temperature=1.0, top_k=0,
                top_p=1.0, max_new_tokens=num_tokens, min_new_tokens=num_tokens,
                pad_token_id=int(input_ids[0, 0]),
            )  # fmt: skip
            completions.append(output[0, len(prompt_S) :].cpu().numpy())
    return completions


def expert_ids(model: PreTrainedModel, sequences: Sequence[NDArray[np.int64]]) -> list[NDArray[np.unsignedinteger]]:
    """Experts [S, L, K] of each sequence, read alone."""
    found = []
    with RoutingRecorder(model) as recorder, torch.inference_mode():
        for token_ids_S in sequences:
            model(input_ids=torch.from_numpy(token_ids_S)[None].to(model.device), use_cache=False)
            found.append(recorder.take().expert_ids_NLK)
    return found


def usage_over_rollout(
    ids: Sequence[NDArray[np.unsignedinteger]], prompt_lengths: Sequence[int], num_experts: int
) -> UsageOverRollout:
    """Similarity of the usage of pairs, from the prompt on.

    Args:
        ids: [S, L, K] of each rollout, prompt first; all have generated as many tokens.
        prompt_lengths: tokens of each prompt.
        num_experts: E.

    Raises:
        ValueError: fewer than two rollouts, or ones of different lengths.
    """
    lengths = {len(of_one) - prompt for of_one, prompt in zip(ids, prompt_lengths, strict=True)}
    if len(ids) < 2 or len(lengths) > 1:
        raise ValueError(f"rollouts ({len(ids)}, of {sorted(lengths)} tokens) must be at least 2 of one length")
    (length,) = lengths
    steps = doublings_to(length)
    counts = [_cumulative_visits(of_one, num_experts) for of_one in ids]
    prompts = np.stack([of_one[prompt] for of_one, prompt in zip(counts, prompt_lengths, strict=True)])
    of_step = {
        step: np.stack([of_one[prompt + step] for of_one, prompt in zip(counts, prompt_lengths, strict=True)])
        for step in steps
    }
    begun = {step: np.stack([of_one[step] for of_one in counts]) for step in steps if step <= min(prompt_lengths)}
    of_prompts_Q = _pair_cosines(prompts).mean(axis=0)
    of_generations = {step: _pair_cosines(of_step[step] - prompts).mean(axis=0) for step in steps}
    return UsageOverRollout(
        num_rollouts=len(ids),
        prompt=float(of_prompts_Q.mean()),
        steps=steps,
        cumulative=tuple(float(_pair_cosines(of_step[step]).mean()) for step in steps),
        generated=tuple(float(of_generations[step].mean()) for step in steps),
        prompt_begun=tuple(float(_pair_cosines(begun[step]).mean()) if step in begun else None for step in steps),
        generated_quartiles=tuple(_quartiles(of_generations[step]) for step in steps),
        kept_order=tuple(_correlation(of_prompts_Q, of_generations[step]) for step in steps),
        last_generated_by_layer=tuple(_pair_cosines(of_step[length] - prompts).mean(axis=1).tolist()),
        prompt_by_layer=tuple(_pair_cosines(prompts).mean(axis=1).tolist()),
    )


def _cumulative_visits(ids_SLK: NDArray[np.unsignedinteger], num_experts: int) -> NDArray[np.int64]:
    """Visits of each expert in the first s tokens, [S + 1, L, E]."""
    visits_SLE = (ids_SLK[..., None] == np.arange(num_experts)).sum(axis=2)
    return np.concatenate([np.zeros_like(visits_SLE[:1]), np.cumsum(visits_SLE, axis=0)])


def _pair_cosines(visits_MLE: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cosine of the visits of every pair, [L, Q]."""
    first_Q, second_Q = np.triu_indices(len(visits_MLE), k=1)
    return np.stack(
        [cosines(visits_ME.astype(np.float64))[first_Q, second_Q] for visits_ME in visits_MLE.swapaxes(0, 1)]
    )


def _quartiles(values_Q: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values_Q, [0.25, 0.75])
    return float(low), float(high)


def _correlation(x_Q: NDArray[np.float64], y_Q: NDArray[np.float64]) -> float | None:
    if len(x_Q) < 2 or min(x_Q.std(), y_Q.std()) < 1e-12:
        return None
    return float(np.corrcoef(x_Q, y_Q)[0, 1])
