"""The routers: modules from hidden states to router logits, any of them shareable by several layers.

A router is called with the hidden states, the layer's slot (its position among the router's deciding layers), the
state that the last decision left (recurrent routers), and the GRU cell that all recurrent routers share; `LayerRouter`
binds what is the layer's. Every router computes in fp32 whatever the autocast: its logits decide a discrete choice. A
router that is one matrix product lends its matrix to the routing kernel instead, which keeps the logits to itself.
"""

# Shapes: T tokens, D hidden, E experts, P router width, R rank of a correction, L deciding layers of a router.

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from pathmoe.config import PathMoEConfig


class Router(nn.Module):
    """Hidden states to router logits."""

    def forward(
        self, x_TD: Tensor, slot: int, state_TP: Tensor | None = None, cell: nn.GRUCell | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Router logits [T, E] in fp32, and the state [T, P] for the next decision (None without recurrence)."""
        with torch.autocast(x_TD.device.type, enabled=False):
            return self.route(x_TD.float(), slot, state_TP, cell)

    def route(
        self, x_TD: Tensor, slot: int, state_TP: Tensor | None, cell: nn.GRUCell | None
    ) -> tuple[Tensor, Tensor | None]:
        """The router's formula, outside autocast."""
        raise NotImplementedError

    def gate(self, slot: int) -> Tensor | None:
        """The matrix [E, D] whose product with the hidden states is the whole formula; None if there is more to it."""
        return None

    def reset_parameters(self, std: float) -> None:
        """Initialise with standard deviation `std` where the formula has no scale of its own."""
        raise NotImplementedError


@dataclass(frozen=True)
class LayerRouter:
    """A router as one deciding layer uses it."""

    router: Router
    slot: int = 0
    """The layer's position among the router's deciding layers."""
    cell: nn.GRUCell | None = None
    """What all recurrent routers share."""

    def logits(self, x_TD: Tensor, state_TP: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Router logits and the next state, see `Router.forward`."""
        return self.router(x_TD, slot=self.slot, state_TP=state_TP, cell=self.cell)

    def gate(self) -> Tensor | None:
        """See `Router.gate`."""
        return self.router.gate(self.slot)


class LinearRouter(Router):
    """logits = x W^T (+ b); with rank R > 0, x (W + A_l B_l)^T (+ b) in layer l (PathMoE appendix D.1).

    A starts at zero and B Gaussian, so that training starts from the shared matrix (our choice).
    """

    def __init__(self, config: PathMoEConfig, num_layers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(config.num_experts)) if config.router_bias else None
        self.rank = config.router_rank
        if self.rank:
            self.low_rank_a = nn.Parameter(torch.empty(num_layers, config.num_experts, self.rank))
            self.low_rank_b = nn.Parameter(torch.empty(num_layers, self.rank, config.hidden_size))

    def route(
        self, x_TD: Tensor, slot: int, state_TP: Tensor | None, cell: nn.GRUCell | None
    ) -> tuple[Tensor, Tensor | None]:
        """See the class."""
        return F.linear(x_TD, self.matrix(slot).float(), None if self.bias is None else self.bias.float()), None

    def matrix(self, slot: int) -> Tensor:
        """The matrix [E, D] that the layer in `slot` routes with; fp32 if it is low-rank corrected."""
        if not self.rank:
            return self.weight
        with torch.autocast(self.weight.device.type, enabled=False):
            return self.weight.float() + self.low_rank_a[slot].float() @ self.low_rank_b[slot].float()

    def gate(self, slot: int) -> Tensor | None:
        """The layer's matrix, unless logits have a bias."""
        return self.matrix(slot) if self.bias is None else None

    def reset_parameters(self, std: float) -> None:
        """Gaussian matrices, zero bias and A."""
        init.normal_(self.weight, mean=0.0, std=std)
        if self.bias is not None:
            init.zeros_(self.bias)
        if self.rank:
            init.zeros_(self.low_rank_a)
            init.normal_(self.low_rank_b, mean=0.0, std=std)


class CosineRouter(Router):
    """X-MoE's router: logits = s * cos(W x + b, c_e), s = min(exp(t), 100) with t learnt.

    Initial values and the cap of the scale are those of Tutel's cosine gate; the PathMoE paper gives none.
    """

    MAX_LOG_SCALE = math.log(100.0)

    def __init__(self, config: PathMoEConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(config.hidden_size, config.router_dim)
        self.expert_embedding_PE = nn.Parameter(torch.empty(config.router_dim, config.num_experts))
        self.log_scale = nn.Parameter(torch.empty(1))

    def route(
        self, x_TD: Tensor, slot: int, state_TP: Tensor | None, cell: nn.GRUCell | None
    ) -> tuple[Tensor, Tensor | None]:
        """See the class."""
        projected_TP = F.linear(x_TD, self.projection.weight.float(), self.projection.bias.float())
        cosine_TE = F.normalize(projected_TP, dim=-1) @ F.normalize(self.expert_embedding_PE.float(), dim=0)
        return cosine_TE * self.log_scale.float().clamp(max=self.MAX_LOG_SCALE).exp(), None

    def reset_parameters(self, std: float) -> None:
        """Gaussian expert embeddings (0.01) and projection, scale 1 / 0.5."""
        init.normal_(self.projection.weight, mean=0.0, std=std)
        init.zeros_(self.projection.bias)
        init.normal_(self.expert_embedding_PE, mean=0.0, std=0.01)
        init.constant_(self.log_scale, math.log(1 / 0.5))


class RecurrentRouter(Router):
    """RMoE's router: h_l = GRU(W_in x, h_{l-1}), logits = W_out h_l, with h_0 = 0 and one GRU cell for all layers.

    The depth that the state runs along is that of the deciding layers.
    """

    def __init__(self, config: PathMoEConfig) -> None:
        super().__init__()
        self.in_projection = nn.Linear(config.hidden_size, config.router_dim, bias=False)
        self.out_projection = nn.Linear(config.router_dim, config.num_experts, bias=False)

    def route(
        self, x_TD: Tensor, slot: int, state_TP: Tensor | None, cell: nn.GRUCell | None
    ) -> tuple[Tensor, Tensor | None]:
        """See the class."""
        assert cell is not None, "a recurrent router needs the model's GRU cell"
        projected_TP = F.linear(x_TD, self.in_projection.weight.float())
        if state_TP is None:
            state_TP = torch.zeros_like(projected_TP)
        # Not `cell(...)`, which computes in the dtype of its weights.
        weights = [weight.float() for weight in (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)]
        state_TP = torch.gru_cell(projected_TP, state_TP, *weights)
        return F.linear(state_TP, self.out_projection.weight.float()), state_TP

    def reset_parameters(self, std: float) -> None:
        """Gaussian projections."""
        init.normal_(self.in_projection.weight, mean=0.0, std=std)
        init.normal_(self.out_projection.weight, mean=0.0, std=std)


def build_router(config: PathMoEConfig, num_layers: int) -> Router:
    """The router that `config` asks for, with adapters for `num_layers` deciding layers."""
    if config.router_type == "cosine":
        return CosineRouter(config)
    if config.router_type == "recurrent":
        return RecurrentRouter(config)
    return LinearRouter(config, num_layers)
