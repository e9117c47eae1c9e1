"""What one optimizer step adds up: over its micro-batches, and at its end over the ranks."""

# Shapes: L deciding layers, E experts.

import torch
import torch.distributed as dist
from torch import Tensor

from pathmoe.balancing import sum_over_ranks
from pathmoe.model import PathMoECausalLMOutput


class StepTotals:
    """Losses, expert load and contents of the micro-batches that one optimizer step has had so far on this rank."""

    def __init__(self) -> None:
        self.balance_load_LE: Tensor | None = None
        """Load that the balance loss of the next micro-batch goes on from."""
        self._loads: list[Tensor] = []
        self._losses: list[dict[str, Tensor]] = []
        self._contents: list[str] = []

    def add(self, output: PathMoECausalLMOutput, contents: str) -> None:
        """Add a micro-batch: what the model returned, and what it was given, in words."""
        assert output.expert_load is not None, "the model counts it in every forward"
        losses = {"loss": output.cross_entropy, "balance_loss": output.aux_loss, "z_loss": output.z_loss}
        self._losses.append({name: loss.detach() for name, loss in losses.items() if loss is not None})
        self._contents.append(contents)
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

    def suspects(self) -> list[str]:
        """The micro-batches of all ranks whose loss is not finite, or all of them where none is to blame alone.

        Every rank must call this; each gets the same.
        """
        gathers = dist.is_available() and dist.is_initialized()
        rank = dist.get_rank() if gathers else 0
        mine = [
            (bool(losses["loss"].isfinite()), f"rank {rank}, micro-batch {number}, {contents}")
            for number, (losses, contents) in enumerate(zip(self._losses, self._contents, strict=True))
        ]
        of_ranks = [mine]
        if gathers:
            of_ranks = [mine] * dist.get_world_size()
            dist.all_gather_object(of_ranks, mine)
        of_all = [micro_batch for of_one in of_ranks for micro_batch in of_one]
        return [words for is_finite, words in of_all if not is_finite] or [words for _, words in of_all]
