"""The MoE layers of a model: where its experts are called, and which router decides for them."""

# Shapes: T tokens, D hidden, E experts, K experts per token.

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import OutputRecorder

from pathmoe.model import PathMoEModel

_EXPERTS_CALL = ("hidden_states", "top_k_index", "top_k_weights")


@dataclass(frozen=True, eq=False, kw_only=True)
class MoELayer:
    """One MoE layer as a recorder sees it."""

    name: str
    """Dotted name of the experts module in the model."""
    block: nn.Module
    """The module that holds the experts module."""
    experts: nn.Module
    """Called with hidden states [T, D], expert ids [T, K] and weights [T, K], in this order."""
    router: nn.Module | None
    """What decides; None where the model declares no router here (DeepSeek-V4's layers that look experts up)."""
    logits_index: int
    """Which of the router's outputs are its logits, as the model declares it."""
    num_experts: int
    """Ids that a token can be given, experts that pass their input on included."""
    router_index: int
    """Equal for layers whose routers share parameters. As a tuple over layers, this is `router_of_layer`."""


def moe_layers(model: nn.Module) -> tuple[MoELayer, ...]:
    """The MoE layers of a transformers model, in order of depth; dense layers are left out.

    Experts are the modules that transformers' experts interface serves, and others named `experts` whose forward takes
    the same three arguments under the same names. The router beside them is an instance of the class that the model
    declares in `_can_record_outputs["router_logits"]`; ours is the one that decides for the layer.

    Raises:
        ValueError: no routers; experts that are not handed ids and weights; experts that are sharded.
    """
    kind = type(model).__name__
    declared = _declared_routers(model)
    found = [(name, module) for name, module in model.named_modules() if _is_experts(name, module)]
    if not found:
        raise ValueError(_no_experts(model, declared))
    for name, experts in found:
        if getattr(experts, "_is_expert_parallel", False):
            raise ValueError(
                f"model ({kind}) must have whole experts, and {name} is sharded; load it without expert parallelism"
            )
    routers: list[tuple[nn.Module | None, int]] = _our_routers(model) or [(None, index) for index in range(len(found))]
    return tuple(
        _moe_layer(name, model, declared, ours, index) for (name, _), (ours, index) in zip(found, routers, strict=True)
    )


def decoder_of(model: nn.Module, layers: tuple[MoELayer, ...]) -> PreTrainedModel:
    """The innermost transformers model around all MoE layers, whose forward is one pass through them.

    Raises:
        ValueError: there is none.
    """
    around = [
        module
        for name, module in model.named_modules()
        if isinstance(module, PreTrainedModel)
        and all(layer.name.startswith(f"{name}." if name else "") for layer in layers)
    ]
    if not around:
        kind = type(model).__name__
        raise ValueError(f"model ({kind}) must have its MoE layers in one transformers model; pass that model")
    return around[-1]


def _moe_layer(
    name: str, model: nn.Module, declared: dict[type[nn.Module], int], our_router: nn.Module | None, router_index: int
) -> MoELayer:
    block = model.get_submodule(name.rpartition(".")[0])
    experts = model.get_submodule(name)
    router = our_router or next((child for child in block.children() if type(child) in declared), None)
    return MoELayer(
        name=name,
        block=block,
        experts=experts,
        router=router,
        logits_index=declared.get(type(router), 0) if router is not None else 0,
        num_experts=_num_experts(experts),
        router_index=router_index,
    )


def _num_experts(experts: nn.Module) -> int:
    # LongCat-Flash counts its experts that pass their input on here.
    num_experts = getattr(experts, "total_experts", None) or getattr(experts, "num_experts", None)
    assert isinstance(num_experts, int), f"{type(experts).__name__} does not say how many experts it has"
    return num_experts


def _our_routers(model: nn.Module) -> list[tuple[nn.Module | None, int]]:
    """Our routers and their indices by layer; nothing for other models."""
    return [
        (module.routers[router], router)
        for module in model.modules()
        if isinstance(module, PathMoEModel)
        for router in module.sharing.router_of_layer
    ]


def _declared_routers(model: nn.Module) -> dict[type[nn.Module], int]:
    """Classes of routers that the model and the models inside it declare, and which output holds the logits."""
    specs = [
        spec
        for module in model.modules()
        if isinstance(module, PreTrainedModel)
        for spec in _as_list((module._can_record_outputs or {}).get("router_logits", []))
    ]
    return {spec.target_class: spec.index for spec in specs if isinstance(spec, OutputRecorder)}


def _as_list(spec: object) -> list[object]:
    return spec if isinstance(spec, list) else [spec]


def _is_experts(name: str, module: nn.Module) -> bool:
    # `use_experts_implementation` says these of each module whose class it decorates.
    if hasattr(module, "has_gate") and hasattr(module, "is_transposed"):
        return True
    # Names, since Switch Transformers' and NLLB's take three arguments of which the second is a mask.
    return name.rpartition(".")[2] == "experts" and tuple(inspect.signature(module.forward).parameters) == _EXPERTS_CALL


def _no_experts(model: nn.Module, declared: dict[type[nn.Module], int]) -> str:
    kind = type(model).__name__
    router = next(_instances(model, tuple(declared)), None)
    if router is None:
        return f"model ({kind}) must have routers; pass a mixture-of-experts model of transformers"
    return (
        f"model ({kind}) must hand {', '.join(_EXPERTS_CALL)} to a module of experts, and what {router} decides is "
        "used otherwise; pass a model of another family"
    )


def _instances(model: nn.Module, classes: tuple[type[nn.Module], ...]) -> Iterator[str]:
    return (
        f"{name} ({type(module).__name__})" for name, module in model.named_modules() if isinstance(module, classes)
    )
