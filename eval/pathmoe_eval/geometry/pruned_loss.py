"""Experts pruned to the most used in the last layers: what it costs on prompts, and what on completions.

"The Myth of Expert Specialization" (arXiv 2604.09780, Figure 8) keeps 12 of 32 experts, the most used on one paragraph,
in the last layers of gpt-oss-20b: the loss rises little on prompts and more on completions.
"""

# Shapes: S tokens of a sequence, L MoE layers, E experts, K experts per token, V vocabulary.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from pathmoe_eval.perturbations.pruned_experts import pruned_experts


@dataclass(frozen=True, kw_only=True)
class PrunedLoss:
    """The last layers pruned, so many of them; the figure's exact form is unknown, this is our reading.

    A model's own completions were drawn from it as it is, so that any other model must expect more loss on them.
    """

    num_layers: int
    """Layers with a router of their own that are pruned, and with them those that take over their decisions; 0 for the
    model as it is."""
    num_kept: int
    """Experts that each of them keeps."""
    nats: dict[str, float]
    """Mean -ln p of a token: of `prompt`; of `own`, the model's own completion; of `other`, the text's."""
    rise_percent: dict[str, float]
    """100 (nats / nats of the model as it is - 1)."""


def most_used(ids: Sequence[NDArray[np.unsignedinteger]], layer: int, num_experts: int, number: int) -> list[int]:
    """The experts of a layer with the most visits, of equally used ones the lower ids first.

    Args:
        ids: experts [S, L, K] of sequences.
        layer: of L.
        num_experts: E.
        number: how many.
    """
    visits_E = sum(np.bincount(of_one[:, layer].ravel(), minlength=num_experts) for of_one in ids)
    return sorted(np.argsort(-np.asarray(visits_E), kind="stable")[:number].tolist())


def pruned_losses(
    model: PreTrainedModel,
    prompts: Sequence[NDArray[np.int64]],
    completions: Mapping[str, Sequence[NDArray[np.int64]]],
    kept: Mapping[int, Sequence[int]],
    numbers: Sequence[int],
) -> list[PrunedLoss]:
    """Losses with the last layers pruned.

    Args:
        model: a causal language model in evaluation mode.
        prompts: at least one token more than one each.
        completions: by name, one of each prompt.
        kept: experts by layer, of the layers that can be pruned.
        numbers: how many of these layers, the last ones, to prune; begins with 0.

    Raises:
        ValueError: see `pruned_experts`.
    """
    layers = sorted(kept)
    found: list[PrunedLoss] = []
    for number in numbers:
        with pruned_experts(model, {layer: kept[layer] for layer in layers[len(layers) - number :]}):
            nats = _nats(model, prompts, completions)
        free = found[0].nats if found else nats
        found.append(
            PrunedLoss(
                num_layers=number,
                num_kept=len(kept[layers[-1]]),
                nats=nats,
                rise_percent={name: 100 * (value / free[name] - 1) for name, value in nats.items()},
            )
        )
    return found


def _nats(
    model: PreTrainedModel,
    prompts: Sequence[NDArray[np.int64]],
    completions: Mapping[str, Sequence[NDArray[np.int64]]],
) -> dict[str, float]:
    of_prompts: list[float] = []
    of_completions: dict[str, list[float]] = {name: [] for name in completions}
    for number, prompt_S in enumerate(prompts):
        for place, (name, of_one) in enumerate(completions.items()):
            nats_S = _token_nats(model, np.concatenate([prompt_S, of_one[number]]))
            of_completions[name] += nats_S[len(prompt_S) - 1 :].tolist()
            # What comes after a prompt changes nothing in it.
            of_prompts += nats_S[: len(prompt_S) - 1].tolist() if place == 0 else []
    nats = {"prompt": of_prompts, **of_completions}
    return {name: math.fsum(values) / len(values) for name, values in nats.items()}


@torch.inference_mode()
def _token_nats(model: PreTrainedModel, token_ids_S: NDArray[np.int64]) -> NDArray[np.float64]:
    """-ln p of each token but the first."""
    input_ids = torch.from_numpy(token_ids_S)[None].to(model.device)
    logits_SV = model(input_ids=input_ids, use_cache=False).logits[0, :-1].float()
    return cross_entropy(logits_SV, input_ids[0, 1:], reduction="none").cpu().double().numpy()
