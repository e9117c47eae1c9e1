"""How routers respond to inputs: confidence, size and alignment of their logits, the shared direction, expert usage."""

# Shapes: N tokens, M sequences, L MoE layers, D hidden, E experts, K experts per token, S tokens of an input.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from pathmoe_eval.geometry.directions import alignment, shared_direction
from pathmoe_eval.geometry.inputs import VariedInput
from pathmoe_eval.geometry.moments import StateMoments, singular_directions
from pathmoe_eval.geometry.router_map import RouterMap
from pathmoe_eval.geometry.sequences import Mean, sequence_pairs
from pathmoe_eval.geometry.state_recorder import StateRecorder


@dataclass(frozen=True, kw_only=True)
class InputResponse:
    """One layer."""

    layer: int
    confidence: float
    """Mean over tokens of the highest softmax of the logits (Equation 12 of arXiv 2604.09780, the natural reading)."""
    logit_size: float
    """RMS of the logits, less their mean over the experts (our choice: what confidence grows with)."""
    alignment: float | None
    """Energy of the logits over that of random routers, see `Alignment`; None for a router without a matrix."""
    state_energy: float
    """Along the first singular direction, see `SharedDirection`."""
    logit_energy: float | None
    """The same of the logits."""
    usage_within: Mean
    """Cosine of expert usage of pairs of sequences within a domain."""
    usage_across: Mean
    """The same across domains."""


class _LayerSums:
    """Sums over the tokens of all sequences in one layer."""

    def __init__(self, num_sequences: int, hidden_size: int, num_experts: int) -> None:
        self.moments = StateMoments(hidden_size)
        self.confidence, self.squares = 0.0, 0.0
        self.pooled_MD = np.zeros((num_sequences, hidden_size))
        self.visits_ME = np.zeros((num_sequences, num_experts))

    def update(
        self,
        sequence: int,
        states_ND: NDArray[np.float32],
        logits_NE: NDArray[np.float32],
        ids_NK: NDArray[np.unsignedinteger],
    ) -> None:
        """Add the counted tokens of a sequence."""
        self.moments.update(states_ND)
        self.pooled_MD[sequence] = states_ND.mean(axis=0)
        logits_NE = logits_NE.astype(np.float64)
        exponentials_NE = np.exp(logits_NE - logits_NE.max(axis=1, keepdims=True))
        self.confidence += float((exponentials_NE.max(axis=1) / exponentials_NE.sum(axis=1)).sum())
        self.squares += float(((logits_NE - logits_NE.mean(axis=1, keepdims=True)) ** 2).mean(axis=1).sum())
        self.visits_ME[sequence] = np.bincount(ids_NK.ravel(), minlength=self.visits_ME.shape[1])


def input_response(
    model: PreTrainedModel,
    inputs: Sequence[VariedInput],
    domains: Sequence[str],
    routers: Sequence[RouterMap | None],
    layers: Sequence[int],
) -> list[InputResponse]:
    """Run a model over inputs, each in a forward of its own.

    Args:
        model: in evaluation mode.
        inputs: at least two, each with a token that counts.
        domains: of each.
        routers: of all MoE layers.
        layers: which to look at; those without a router of their own are left out.

    Raises:
        ValueError: see `StateRecorder`, `singular_directions` and `sequence_pairs`.
    """
    layers = [layer for layer in layers if routers[layer] is not None]
    sums: dict[int, _LayerSums] = {}
    with StateRecorder(model, layers) as recorder, torch.inference_mode():
        for sequence, one in enumerate(inputs):
            model(input_ids=torch.from_numpy(one.token_ids_S)[None].to(model.device), use_cache=False)
            taken = recorder.take()
            logits_NLE = taken.routing.logits_NLE
            assert logits_NLE is not None, "recorded with logits"
            counted_N = np.flatnonzero(one.is_counted_S)
            for layer in layers:
                states_ND = taken.states[layer][counted_N]
                if layer not in sums:
                    sums[layer] = _LayerSums(len(inputs), states_ND.shape[1], logits_NLE.shape[2])
                ids_NK = taken.routing.expert_ids_NLK[counted_N, layer]
                sums[layer].update(sequence, states_ND, logits_NLE[counted_N, layer], ids_NK)
    return [_response(layer, of_layer, routers[layer], domains) for layer, of_layer in sums.items()]


def _response(layer: int, sums: _LayerSums, router: RouterMap | None, domains: Sequence[str]) -> InputResponse:
    assert router is not None, "layers without a router are left out"
    directions = singular_directions(sums.moments)
    shared = shared_direction(directions, router.centred_ED)
    aligned = alignment(directions, router.centred_ED)
    totals_M1 = sums.visits_ME.sum(axis=1, keepdims=True)
    # Visits of a token are as many for all, so that any number of them gives the same cosine.
    pairs = sequence_pairs(sums.pooled_MD, sums.visits_ME / totals_M1, 1, domains, router)
    return InputResponse(
        layer=layer,
        confidence=sums.confidence / directions.num_tokens,
        logit_size=float(np.sqrt(sums.squares / directions.num_tokens)),
        alignment=None if aligned is None else aligned.total,
        state_energy=shared.state_energy,
        logit_energy=shared.logit_energy,
        usage_within=pairs.within["usage_cosine"],
        usage_across=pairs.across["usage_cosine"],
    )
