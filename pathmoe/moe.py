"""The MoE layer: route, then dispatch, experts and combine, which are one call of transformers' experts interface."""

# Shapes: B batch, S sequence, T = B*S tokens, D hidden, E experts, P router state width.

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeMLP

from pathmoe.config import PathMoEConfig
from pathmoe.experts import Experts
from pathmoe.routers import LayerRouter
from pathmoe.routing import Routing, decide, decide_from_hidden


class MoELayer(nn.Module):
    """Routed experts and shared experts. The router is the model's and is handed in."""

    def __init__(self, config: PathMoEConfig, decides: bool) -> None:
        super().__init__()
        self.config = config
        self.experts = Experts(config)
        self.shared_experts = (
            Qwen2MoeMLP(config, config.n_shared_experts * config.moe_intermediate_size)
            if config.n_shared_experts
            else None
        )
        self.selection_bias_E: Tensor | None
        bias = (
            torch.zeros(config.num_experts, dtype=torch.float32) if decides and config.router_bias_update_rate else None
        )
        self.register_buffer("selection_bias_E", bias)

    def forward(
        self,
        x_BSD: Tensor,
        router: LayerRouter | None,
        previous: Routing | None = None,
        noise_TE: Tensor | None = None,
        token_mask_T: Tensor | None = None,
        keep_logits: bool = False,
    ) -> tuple[Tensor, Routing]:
        """Output [B, S, D] and the routing it took.

        Args:
            x_BSD: [B, S, D] normalised hidden states.
            router: of a layer that decides; None for a follower.
            previous: the last decision, which a follower takes over and a recurrent router continues.
            noise_TE: [T, E] noise on the logits.
            token_mask_T: [T] bool, False for padding, which is no load.
            keep_logits: have the routing hold its logits, also where the kernel needs no more than the router's matrix.
        """
        x_TD = rearrange(x_BSD, "b s d -> (b s) d")
        routing = previous
        if router is not None:
            routing = self.route(x_TD, router, previous, noise_TE, token_mask_T, keep_logits)
        assert routing is not None, "the first MoE layer decides"
        y_TD = self.experts(x_TD, routing.expert_ids_TK, routing.expert_weights_TK, dispatch=routing.routed.dispatch)
        if self.shared_experts is not None:
            y_TD = y_TD + self.shared_experts(x_TD)
        return rearrange(y_TD, "(b s) d -> b s d", b=x_BSD.shape[0]), routing

    def route(
        self,
        x_TD: Tensor,
        router: LayerRouter,
        previous: Routing | None,
        noise_TE: Tensor | None,
        token_mask_T: Tensor | None,
        keep_logits: bool,
    ) -> Routing:
        """This layer's own decision."""
        decide_as = {"selection_bias_E": self.selection_bias_E, "token_mask_T": token_mask_T}
        # The kernel would route double precision in double precision, and routers compute in fp32.
        wants_logits = keep_logits or noise_TE is not None or x_TD.dtype == torch.float64
        gate_ED = None if wants_logits else router.gate()
        if gate_ED is not None:
            return decide_from_hidden(x_TD, gate_ED, self.config, **decide_as)
        logits_TE, state_TP = router.logits(x_TD, None if previous is None else previous.router_state_TP)
        if noise_TE is not None:
            logits_TE = logits_TE + noise_TE
        return decide(logits_TE, self.config, **decide_as, state_TP=state_TP)
