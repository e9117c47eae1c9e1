"""What one optimizer step adds up: over its micro-batches, and at its end over the ranks."""

# Shapes: L deciding layers, E experts.

import torch
from torch import Tensor

from pathmoe.balancing import sum_over_ranks
from pathmoe.model import PathMoECausalLMOutput


class StepTotals:
    """Losses, expert load and block ids of the micro-batches that one optimizer step has had so far on this rank."""

    def __init__(self) -> None:
        self.balance_load_LE: Tensor | None = None
        """Load that the balance loss of the next micro-batch goes on from."""
        self._loads: list[Tensor] = []
        self._losses: list[dict[str, Tensor]] = []
        self._block_ids: list[list[int]] = []

    def add(self, output: PathMoECausalLMOutput, block_ids: list[int]) -> None:
        """Add a micro-batch: what the model returned, and which blocks it was given (none where they have no ids)."""
        assert output.expert_load is not None, "the model counts it in every forward"
        losses = {"loss": output.cross_entropy, "balance_loss": output.aux_loss, "z_loss": output.z_loss}
        self._losses.append({name: loss.detach() for name, loss in losses.items() if loss is not None})
        self._block_ids.append(block_ids)
        self._loads.append(output.expert_load)
        self.balance_load_LE = output.balance_load

    def losses(self) -> dict[str, Tensor]:
        """Losses of the global batch, fp32 scalars; every rank must call this, once.

        `loss` is the sum of cross-entropies that are each divided by the targets of the global batch; `balance_loss`
        and `z_loss`, where the model has them, are means over micro-batches and ranks.
        """
        names = list(self._losses[0])
        sums = [torch.stack([losses[name] for losses in self._losses]).sum() for name in names]
        # The number of micro-batches travels along, to divide the means by.
        totals = sum_over_ranks(torch.stack([*sums, torch.full_like(sums[0], len(self._losses))]))
        means = totals / totals[-1]
        return {name: totals[i] if name == "loss" else means[i] for i, name in enumerate(names)}

    def load(self) -> Tensor:
        """Tokens per expert [L, E] of the global batch; every rank must call this."""
        return sum_over_ranks(torch.stack(self._loads).sum(dim=0))

    def suspect_blocks(self) -> list[int]:
        """This rank's blocks whose loss is not finite; all of them where none is to blame alone."""
        finite = [bool(losses["loss"].isfinite()) for losses in self._losses]
        suspects = [ids for ids, fine in zip(self._block_ids, finite, strict=True) if not fine] or self._block_ids
        return [block_id for ids in suspects for block_id in ids]
