"""What becomes of routing when inputs change, text is generated and experts are taken away: a section of a report."""

# Shapes: S tokens of a document.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from pathmoe_eval.evaluation.evaluated_data import EvaluatedDocument
from pathmoe_eval.geometry.input_response import input_response
from pathmoe_eval.geometry.inputs import COPIES, VariedInput, repeated, reversed_order, shuffled
from pathmoe_eval.geometry.pruned_loss import most_used, pruned_losses
from pathmoe_eval.geometry.rollouts import expert_ids, generate_completions, usage_over_rollout
from pathmoe_eval.geometry.router_map import RouterMap
from pathmoe_eval.geometry.truncation import doublings_to
from pathmoe_eval.traces.moe_layers import moe_layers


@dataclass(frozen=True, kw_only=True)
class InterventionOptions:
    """How much is read and generated; the fields are options of the same names."""

    interventions: bool = False
    """Also change inputs, generate completions and prune experts."""
    prompt_tokens: int = 64
    """Tokens of each document that are changed, repeated up to 12 times, or gone on from."""
    completion_tokens: int = 64
    """Tokens of each completion: as generated, and as the document has them."""
    kept_share: float = 0.375
    """Share of the experts that a pruned layer keeps; the paper keeps 12 of 32."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        for name in ("prompt_tokens", "completion_tokens"):
            if (value := getattr(self, name)) < 2:
                raise ValueError(f"--{name} ({value}) must be at least 2; raise it")
        if not 0 < self.kept_share <= 1:
            raise ValueError(f"--kept_share ({self.kept_share}) must be above 0 and at most 1; change it")


def measure_interventions(
    model: PreTrainedModel,
    documents: Sequence[EvaluatedDocument],
    routers: Sequence[RouterMap | None],
    layers: Sequence[int],
    options: InterventionOptions,
    *,
    context_length: int | None,
    seed: int,
) -> dict[str, Any]:
    """`inputs`, `rollouts` and `pruning`, from the documents that are long enough.

    Args:
        model: a causal language model in evaluation mode.
        documents: of which those with a prompt and a completion are used.
        routers: of all MoE layers.
        layers: whose response to inputs to measure.
        options: how much.
        context_length: of the model; inputs are repeated as often as fits.
        seed: of shuffles and draws.

    Raises:
        ValueError: fewer than two documents that are long enough; see the parts.
    """
    needed = options.prompt_tokens + options.completion_tokens
    used = [document for document in documents if len(document.token_ids) >= needed]
    if len(used) < 2:
        raise ValueError(
            f"--data ({len(used)} documents of at least {needed} tokens) must hold at least 2 for --interventions; "
            "give longer text, or lower --prompt_tokens and --completion_tokens"
        )
    if context_length is not None and needed > context_length:
        raise ValueError(
            f"--prompt_tokens and --completion_tokens ({options.prompt_tokens} and {options.completion_tokens}) must "
            f"together fit into the model's context of {context_length} tokens; lower them"
        )
    domains = [document.domain for document in used]
    return {
        "num_sequences": len(used),
        "prompt_tokens": options.prompt_tokens,
        "completion_tokens": options.completion_tokens,
        "inputs": [
            {"name": name, "layers": [asdict(one) for one in input_response(model, inputs, domains, routers, layers)]}
            for name, inputs in _variations(used, options.prompt_tokens, context_length, seed).items()
        ],
        **_generations(model, used, routers, options, seed),
    }


def _variations(
    documents: Sequence[EvaluatedDocument], num_tokens: int, context_length: int | None, seed: int
) -> dict[str, list[VariedInput]]:
    """The beginning of every document, as it is and changed."""
    texts = [(document.token_ids[:num_tokens], document.token_bytes[:num_tokens] > 0) for document in documents]
    fitting = [copies for copies in COPIES if context_length is None or copies * num_tokens <= context_length]
    found = {f"x{copies}": [repeated(*text, copies) for text in texts] for copies in fitting}
    found["shuffled"] = [shuffled(*text, seed + number) for number, text in enumerate(texts)]
    found["reversed"] = [reversed_order(*text) for text in texts]
    return found


def _generations(
    model: PreTrainedModel,
    documents: Sequence[EvaluatedDocument],
    routers: Sequence[RouterMap | None],
    options: InterventionOptions,
    seed: int,
) -> dict[str, Any]:
    """`rollouts` and `pruning`."""
    length = options.prompt_tokens
    prompts = [document.token_ids[:length] for document in documents]
    others = [document.token_ids[length : length + options.completion_tokens] for document in documents]
    own = generate_completions(model, prompts, options.completion_tokens, seed)
    num_experts = moe_layers(model)[0].num_experts
    ids = expert_ids(model, [np.concatenate(pair) for pair in zip(prompts, own, strict=True)])
    # Experts are chosen on other prompts than those whose loss is told.
    chosen_on, told = (slice(start, None, 2) for start in (0, 1))
    of_prompts = [of_one[:length] for of_one in ids[chosen_on]]
    num_kept = max(ids[0].shape[2], round(options.kept_share * num_experts))
    deciding = [layer for layer, router in enumerate(routers) if router is not None]
    kept = {layer: most_used(of_prompts, layer, num_experts, num_kept) for layer in deciding}
    completions = {"own": own[told], "other": others[told]}
    losses = pruned_losses(model, prompts[told], completions, kept, [0, *doublings_to(len(deciding))])
    return {
        "rollouts": asdict(usage_over_rollout(ids, [length] * len(ids), num_experts)),
        "pruning": [asdict(one) for one in losses],
    }
