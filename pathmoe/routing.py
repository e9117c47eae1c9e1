"""From hidden states or router logits to a decision: which experts, with which weights."""

# Shapes: T tokens, E experts, K experts per token, D hidden, P router state width.

from typing import NamedTuple

from torch import Tensor

from pathmoe.config import PathMoEConfig
from pathmoe_kernels import Routed, RouteRule, route, route_logits


class Routing(NamedTuple):
    """One layer's decision; what a layer that follows takes over as it is."""

    routed: Routed
    """Experts, weights, load and the rows sorted by expert."""
    logits_TE: Tensor | None = None
    """Router logits, fp32, with any noise that the choice saw; None where the kernel kept them to itself."""
    router_state_TP: Tensor | None = None
    """What a recurrent router carries to the next deciding layer, fp32."""

    @property
    def expert_ids_TK(self) -> Tensor:
        """Chosen experts [T, K] int32, highest ranked first."""
        return self.routed.expert_ids_TK

    @property
    def expert_weights_TK(self) -> Tensor:
        """Weight [T, K] of each chosen expert's output, fp32."""
        return self.routed.weights_TK


def route_rule(config: PathMoEConfig) -> RouteRule:
    """What `config` asks of the choice.

    The order is softmax (or sigmoid) over all experts, then top-k, then renormalisation if `norm_topk_prob`, as in the
    RMoE code; the PathMoE paper is silent.
    """
    return RouteRule(
        config.num_experts_per_tok,
        sigmoid=config.scoring_func == "sigmoid",
        norm_topk_prob=config.norm_topk_prob,
        routed_scaling_factor=config.routed_scaling_factor,
        probability_sum=config.router_aux_loss_coef > 0,
        uniform=config.force_uniform_routing,
    )


def decide(
    logits_TE: Tensor,
    config: PathMoEConfig,
    selection_bias_E: Tensor | None = None,
    token_mask_T: Tensor | None = None,
    state_TP: Tensor | None = None,
) -> Routing:
    """Choose experts by score and weigh them; see `pathmoe_kernels.route`.

    Args:
        logits_TE: [T, E] router logits.
        config: what `route_rule` reads.
        selection_bias_E: [E] fp32 added to the scores for the choice (Wang et al. 2024, arXiv 2408.15664).
        token_mask_T: [T] bool, False for padding, which is no load.
        state_TP: [T, P] router state to hand on.
    """
    logits_TE = logits_TE.float()
    routed = route_logits(logits_TE, route_rule(config), selection_bias_E=selection_bias_E, token_mask_T=token_mask_T)
    return Routing(routed, logits_TE, state_TP)


def decide_from_hidden(
    x_TD: Tensor,
    gate_ED: Tensor,
    config: PathMoEConfig,
    selection_bias_E: Tensor | None = None,
    token_mask_T: Tensor | None = None,
) -> Routing:
    """As `decide` for the logits x W^T, without keeping them.

    Args:
        x_TD: [T, D] hidden states.
        gate_ED: [E, D] router matrix.
        config: what `route_rule` reads.
        selection_bias_E: [E] fp32 added to the scores for the choice.
        token_mask_T: [T] bool, False for padding, which is no load.
    """
    routed = route(x_TD, gate_ED, route_rule(config), selection_bias_E=selection_bias_E, token_mask_T=token_mask_T)
    return Routing(routed)
