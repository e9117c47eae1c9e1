"""What the routing of a model in training looks like on a few batches, as numbers to log."""

# Shapes: B batch, S sequence, T = B*S tokens of a batch, N tokens of all batches, L MoE layers, E experts.

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pathmoe.config import PathMoEConfig
from pathmoe.model import PathMoEForCausalLM
from pathmoe.routing import Routing
from pathmoe_eval.experts.load import balance_figures
from pathmoe_eval.geometry.monitored import GeometrySums
from pathmoe_eval.geometry.router_map import router_maps
from pathmoe_eval.layers.agreement import AdjacentCounts
from pathmoe_eval.paths.paths import PathCounts
from pathmoe_eval.ranks import merged_over_ranks


def monitor(
    model: PathMoEForCausalLM,
    batches: Iterable[Mapping[str, Tensor]],
    per_layer: bool = False,
    geometry: bool = False,
) -> dict[str, float]:
    """Figures of how `model` routes the tokens of all ranks' batches, the same on every rank.

    The model is left as it was: no gradients, no random numbers, each module in its mode, sharded weights sharded.

    Args:
        model: may be sharded by FSDP2; then every rank must have equally many batches, as each forward is of all ranks.
        batches: `input_ids` and `position_ids` [B, S] of this rank, at least one token on some rank.
        per_layer: add the figures of each layer to their means.
        geometry: add those of `GeometrySums`, means over layers with a router of their own, for a model that is whole.

    Returns:
        `tokens`, `entropy_bits`, `effective_paths`, `distinct` (paths) and `entropy_ceiling_bits`: see `PathEntropy`.
        Means over MoE layers, a decision that layers share counting for each: `load_entropy` (of the tokens per expert,
        as a share of log2 of the experts), `max_over_mean_load`, `dead_experts`, and `router_entropy_bits`. Means over
        adjacent pairs: `adjacent_agreement`, which means nothing between independent routers, its value by chance, and
        the corrected `adjacent_mutual_information_bits`, which does; see `AdjacentAgreement`. `load_entropy` is left
        out where there is one expert, and what is of pairs where there is one layer. With `per_layer` also
        `layer_00/load_entropy` and so on, a pair under its first layer.
    """
    counts = MonitorCounts(model.config)
    sums = GeometrySums(router_maps(model), model.config.hidden_size) if geometry else None
    with _evaluating(model), nullcontext() if sums is None else sums.recording(model):
        for batch in batches:
            output = model(
                input_ids=batch["input_ids"].to(model.device),
                position_ids=batch["position_ids"].to(model.device),
                return_logits=False,
                use_cache=False,
                keep_router_logits=True,
            )
            counts.update(output.routings)
    figures = merged_over_ranks(counts).figures(per_layer)
    if sums is not None:
        for name, of_layers in merged_over_ranks(sums).figures().items():
            figures[name] = statistics.fmean(of_layers.values())
            if per_layer:
                figures |= {f"layer_{layer:02d}/{name}": value for layer, value in of_layers.items()}
    return figures


class MonitorCounts:
    """Counts of one model's routing over batches and ranks.

    Logits stay on their device, since they can take gigabytes: of all that `RouterScoreSums` takes from them this needs
    the entropy alone.
    """

    def __init__(self, config: PathMoEConfig) -> None:
        """Count for a model of this configuration."""
        shape = {"num_layers": config.num_moe_layers, "num_experts": config.num_experts}
        self._scoring_func = config.scoring_func
        self._paths = PathCounts(**shape)
        self._adjacent = AdjacentCounts(**shape) if config.num_moe_layers > 1 else None
        self._load_LE = np.zeros((config.num_moe_layers, config.num_experts), dtype=np.int64)
        self._router_entropy_bits_L = np.zeros(config.num_moe_layers)

    def update(self, routings: tuple[Routing, ...]) -> None:
        """Add a batch: one routing a MoE layer, with its logits, and no padding."""
        path_ids_TL = torch.stack([routing.expert_ids_TK[:, 0] for routing in routings], dim=-1)
        load_LE = torch.stack([routing.routed.load_E for routing in routings])
        entropy_bits_TL = torch.stack([self._router_entropy_bits(routing) for routing in routings], dim=-1)
        path_ids_NL = path_ids_TL.cpu().numpy()
        self._paths.update(path_ids_NL)
        if self._adjacent is not None:
            self._adjacent.update(path_ids_NL)
        self._load_LE += load_LE.cpu().numpy()
        # In double precision, so that the mean hardly depends on the batches; on the CPU, as not every device has it.
        self._router_entropy_bits_L += entropy_bits_TL.cpu().numpy().sum(axis=0, dtype=np.float64)

    def _router_entropy_bits(self, routing: Routing) -> Tensor:
        assert routing.logits_TE is not None, "asked for with keep_router_logits"
        return router_entropy_bits(routing.logits_TE, self._scoring_func)

    def merge(self, other: MonitorCounts) -> None:
        """Add everything that `other`, of the same model, has counted."""
        self._paths.merge(other._paths)
        if self._adjacent is not None and other._adjacent is not None:
            self._adjacent.merge(other._adjacent)
        self._load_LE += other._load_LE
        self._router_entropy_bits_L += other._router_entropy_bits_L

    def figures(self, per_layer: bool) -> dict[str, float]:
        """See `monitor`."""
        paths = self._paths.result()
        figures = {
            "tokens": paths.num_tokens,
            "entropy_bits": paths.entropy_bits,
            "effective_paths": paths.effective_paths,
            "distinct": paths.num_paths,
            "entropy_ceiling_bits": paths.ceiling_bits,
        }
        of_layers = _load_figures(self._load_LE)
        of_layers["router_entropy_bits"] = self._router_entropy_bits_L / paths.num_tokens
        if self._adjacent is not None:
            adjacent = self._adjacent.result()
            of_layers["adjacent_agreement"] = np.array(adjacent.agreement)
            of_layers["adjacent_agreement_null"] = np.array(adjacent.agreement_null)
            of_layers["adjacent_mutual_information_bits"] = np.array(adjacent.mutual_information_corrected_bits)
        figures |= {name: float(np.mean(values_L)) for name, values_L in of_layers.items()}
        if per_layer:
            for name, values_L in of_layers.items():
                figures |= {f"layer_{layer:02d}/{name}": float(value) for layer, value in enumerate(values_L)}
        return figures


def router_entropy_bits(logits_TE: Tensor, scoring_func: str) -> Tensor:
    """Entropy, in bits, of each token's scores: [T] in the logits' dtype, on their device.

    Args:
        logits_TE: [T, E] router logits.
        scoring_func: "softmax", or "sigmoid", whose scores are scaled to sum to one (our choice).
    """
    # Sigmoids over their sum are a softmax of their logarithms, which no small logits make 0 / 0.
    logits_TE = nn.functional.logsigmoid(logits_TE) if scoring_func == "sigmoid" else logits_TE
    return torch.special.entr(logits_TE.softmax(dim=-1)).sum(dim=-1) / math.log(2)


def _load_figures(load_LE: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    balance, num_experts = balance_figures(load_LE), load_LE.shape[1]
    figures = {"max_over_mean_load": balance["max_over_mean"], "dead_experts": balance["dead_experts"]}
    if num_experts > 1:
        figures["load_entropy"] = balance["entropy_bits"] / math.log2(num_experts)
    return figures


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within it `model` evaluates without gradients; afterwards it is as before."""
    training_modules = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training_modules:
            module.training = True
        # A backward would do it. Weights that stay gathered are not gathered anew once the optimizer has moved them.
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
