"""The optimizer of a run: which parameter goes to AdamW, Muon or the experts' Muon, all behind one torch optimizer."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import AdamW, Muon
from torch.optim.optimizer import Optimizer

from pathmoe.training.muon import ExpertMuon

# Path components of the matrices that Muon is not for: lookups, the output layer, and what decides the routing.
# "gate" is how transformers' own MoE models name their routers, so that a peer trains under the same rules.
_NOT_FOR_MUON = {"embed_tokens", "lm_head", "routers", "router_cell", "gate"}
_MATRICES_PER_EXPERT = {"gate_up_proj": 2, "down_proj": 1}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer and its hyperparameters.

    Raises:
        ValueError: a value out of its range; the message names the key and the range.
    """

    name: Literal["adamw", "muon"] = "adamw"
    """adamw for everything, or muon for the hidden matrices and adamw for embeddings, head, routers and vectors."""
    lr: float = 4e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the gradient's first and second moment."""
    eps: float = 1e-8
    """AdamW's guard against division by zero."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; embeddings and vectors have none."""
    muon_lr: float | None = None
    """Peak learning rate of Muon, whose updates are scaled to the size of AdamW's; lr when unset."""
    muon_momentum: float = 0.95
    """Momentum of Muon."""

    def __post_init__(self) -> None:
        self._check("name", self.name in ("adamw", "muon"), "be adamw or muon; pick one of them")
        for field in ("lr", "eps") if self.muon_lr is None else ("lr", "eps", "muon_lr"):
            self._check(
                field, 0 < getattr(self, field) < math.inf, "be above 0 and finite; set a small positive number"
            )
        self._check("weight_decay", 0 <= self.weight_decay < math.inf, "be at least 0 and finite; 0 turns it off")
        self._check("betas", all(0 <= beta < 1 for beta in self.betas), "lie in [0, 1); set two numbers below 1")
        self._check("muon_momentum", 0 <= self.muon_momentum < 1, "lie in [0, 1); set a number below 1")

    def _check(self, field: str, valid: bool, requirement: str) -> None:
        if not valid:
            raise ValueError(f"model.optimizer.{field} ({getattr(self, field)}) must {requirement}")


class CombinedOptimizer(Optimizer):
    """Several optimizers over disjoint parameters behind the face of one, since Lightning's own loop drives one.

    Its groups and its state are the members' own objects, so that schedulers, clipping and checkpoints see plain torch
    structures: what a scheduler writes into a group reaches the member, and `state_dict` is like any optimizer's.
    """

    def __init__(self, members: Sequence[Optimizer]) -> None:
        super().__init__([group for member in members for group in member.param_groups], {})
        self.members = list(members)
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for member in self.members:
            member.param_groups = [next(groups) for _ in member.param_groups]
            member.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave; the base class makes new groups and state, which the members then share."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every member once; returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for member in self.members:
            member.step()
        return loss


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> CombinedOptimizer:
    """The optimizer over the model's trainable parameters, each in exactly one group; reads shapes only.

    AdamW comes wrapped even when it is alone: Lightning refuses to clip gradients in mixed precision beside a bare
    fused AdamW, although only a gradient scaler would be in the way.
    """
    muon: dict[str, Any] = {
        "lr": config.lr if config.muon_lr is None else config.muon_lr,
        "weight_decay": config.weight_decay,
        "momentum": config.muon_momentum,
        "adjust_lr_fn": "match_rms_adamw",
    }
    constructors: dict[str, Callable[..., Optimizer]] = {
        "AdamW": partial(AdamW, lr=config.lr, betas=config.betas, eps=config.eps, fused=True),
        "Muon": partial(Muon, **muon),
        "ExpertMuon": partial(ExpertMuon, **muon),
    }
    return CombinedOptimizer([constructors[name](groups) for name, groups in _groups(model, config).items()])


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """`lr`, AdamW's rate at this step, and under Muon also its `muon_lr`; of an optimizer of `build_optimizer`."""
    of_adamw = ("decay", "no_decay")
    return {"lr" if group["name"] in of_adamw else "muon_lr": group["lr"] for group in optimizer.param_groups}


def parameters_per_optimizer(model: nn.Module, config: OptimizerConfig) -> dict[str, int]:
    """Number of trainable parameters under each optimizer that `build_optimizer` makes."""
    return {
        name: sum(parameter.numel() for group in groups for parameter in group["params"])
        for name, groups in _groups(model, config).items()
    }


def _groups(model: nn.Module, config: OptimizerConfig) -> dict[str, list[dict[str, Any]]]:
    """Optimizer name to its torch parameter groups; empty ones are left out."""
    members: Mapping[tuple[str, str], list[nn.Parameter]] = defaultdict(list)
    for parameter, components in _path_components(model).items():
        members[_place(parameter, components, use_muon=config.name == "muon")].append(parameter)

    settings: dict[tuple[str, str], dict[str, Any]] = {
        ("AdamW", "decay"): {"weight_decay": config.weight_decay},
        ("AdamW", "no_decay"): {"weight_decay": 0.0},
        ("Muon", "matrices"): {},
    } | {("ExpertMuon", name): {"num_matrices": count} for name, count in _MATRICES_PER_EXPERT.items()}
    groups: dict[str, list[dict[str, Any]]] = {}
    for (optimizer, name), extra in settings.items():
        if parameters := members[optimizer, name]:
            groups.setdefault(optimizer, []).append({"name": name, "params": parameters, **extra})

    grouped = [id(parameter) for of_one in groups.values() for group in of_one for parameter in group["params"]]
    trainable = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(grouped) == sorted(trainable), "each trainable parameter is in exactly one group"
    return groups


def _path_components(model: nn.Module) -> dict[nn.Parameter, set[str]]:
    """Trainable parameters with the components of all their dotted names; a tied one has several."""
    components: dict[nn.Parameter, set[str]] = defaultdict(set)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            components[parameter] |= set(name.split("."))
    return components


def _place(parameter: nn.Parameter, components: set[str], use_muon: bool) -> tuple[str, str]:
    """Optimizer and group of one parameter.

    That Muon leaves embeddings, head and vectors to AdamW is Jordan et al. 2024; that it leaves routers too is our
    choice. Embeddings, tied ones included, do not decay: OLMo 2 (arXiv 2501.00656) found that more stable.
    """
    if parameter.ndim < 2 or "embed_tokens" in components:
        return "AdamW", "no_decay"
    if use_muon and not components & _NOT_FOR_MUON:
        if parameter.ndim == 2:
            return "Muon", "matrices"
        if parameter.ndim == 3 and (names := components & _MATRICES_PER_EXPERT.keys()):
            return "ExpertMuon", names.pop()
    return "AdamW", "decay"
