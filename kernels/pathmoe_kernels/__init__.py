"""Routing kernels of PathMoE: route tokens to experts, sort them by expert, and run the experts on them."""

from pathmoe_kernels.expert_mlp import expert_mlp
from pathmoe_kernels.route import route, route_logits
from pathmoe_kernels.route_rule import Dispatch, Routed, RouteRule
from pathmoe_kernels.sort import sort_by_expert

__all__ = ["Dispatch", "RouteRule", "Routed", "expert_mlp", "route", "route_logits", "sort_by_expert"]
