"""Routing kernels of PathMoE: choose experts, sort tokens by expert, and run the experts on them."""

from pathmoe_kernels.choose import choose_experts
from pathmoe_kernels.expert_mlp import expert_mlp
from pathmoe_kernels.sort import sort_by_expert

__all__ = ["choose_experts", "expert_mlp", "sort_by_expert"]
