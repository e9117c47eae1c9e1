"""Routing kernels of PathMoE: route tokens to experts, sort them by expert, and run the experts on them."""

from pathmoe_kernels.expert_mlp import expert_mlp
from pathmoe_kernels.grouped_linear import grouped_linear
from pathmoe_kernels.route import route, route_logits
from pathmoe_kernels.route_rule import Dispatch, Routed, RouteRule
from pathmoe_kernels.row_ops import combine_rows, dispatch_rows, sum_rows
from pathmoe_kernels.sort import sort_by_expert

__all__ = [
    "Dispatch", "RouteRule", "Routed", "combine_rows", "dispatch_rows", "expert_mlp", "grouped_linear", "route",
    "route_logits", "sort_by_expert", "sum_rows",
]  # fmt: skip
