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
        self._load_LE: Tensor | int = 0
        self._losses: list[dict[str, Tensor]] = []
        self._block_ids: list[list[int]] = []

    def add(self, output: PathMoECausalLMOutput, block_ids: list[int]) -> None:
        """Add a micro-batch: what the model returned, and which blocks it was given (none where they have no ids)."""
        losses = {"loss": output.cross_entropy, "balance_loss": output.aux_loss, "z_loss": output.z_loss}
        self._losses.append({name: loss.detach() for name, loss in losses.items() if loss is not None})
        self._block_ids.append(block_ids)
        self._load_LE = self._load_LE + output.expert_load
        self.balance_load_LE = output.balance_load

    def losses(self) -> dict[str, Tensor]:
        """Losses of the global batch, fp32 scalars; every rank must call this, once.

        `loss` is the sum of cross-entropies that are each divided by the targets of the global batch; `balance_loss`
        and `z_loss`, where the model has them, are means over micro-batches and ranks.
        """
        names = list(self._losses[0])
        rows = [torch.stack([losses[name] for name in names]) for losses in self._losses]
        sums = torch.stack(rows).sum(dim=0)
        *sums, num_parts = sum_over_ranks(torch.cat([sums, sums.new_tensor([len(rows)])]))
        return {name: value if name == "loss" else value / num_parts for name, value in zip(names, sums, strict=True)}

    def load(self) -> Tensor:
        """Tokens per expert [L, E] of the global batch; every rank must call this."""
        assert isinstance(self._load_LE, Tensor), "a step has at least one micro-batch"
        return sum_over_ranks(self._load_LE)

    def suspect_blocks(self) -> list[int]:
        """This rank's blocks whose loss is not finite; all of them where none is to blame alone."""
        finite = [bool(losses["loss"].isfinite()) for losses in self._losses]
        suspects = [ids for ids, fine in zip(self._block_ids, finite, strict=True) if not fine] or self._block_ids
        return [block_id for ids in suspects for block_id in ids]
