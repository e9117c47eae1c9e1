"""Top-k choice of experts with an explicit rule of ties."""

# Shapes: T tokens, E experts, K experts per token.

import torch
from torch import Tensor


def choose_experts(ranking_TE: Tensor, num_experts_per_tok: int) -> Tensor:
    """Ids of each token's `num_experts_per_tok` highest-ranked experts, best first; the lower index wins a tie.

    `torch.topk` leaves ties open, and on a CPU returns the last of equal values.

    Args:
        ranking_TE: [T, E] floating point; a NaN ranks as plus infinity, minus infinity as the lowest finite number.
        num_experts_per_tok: K, at most E.

    Returns:
        [T, K] int64, distinct within a row, also where the row holds NaN.
    """
    # Minus infinity marks what is taken, so it can't also be a rank.
    lowest = torch.finfo(ranking_TE.dtype).min
    remaining_TE = ranking_TE.detach().nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=lowest)
    if num_experts_per_tok > 8:
        # A stable sort costs the same for any K; the loop below costs one pass per choice.
        return remaining_TE.argsort(dim=-1, descending=True, stable=True)[..., :num_experts_per_tok]
    chosen = []
    for _ in range(num_experts_per_tok):
        # argmax returns the first of equal maxima.
        best_T1 = remaining_TE.argmax(dim=-1, keepdim=True)
        chosen.append(best_T1)
        remaining_TE = remaining_TE.scatter(-1, best_T1, -torch.inf)
    return torch.cat(chosen, dim=-1)
