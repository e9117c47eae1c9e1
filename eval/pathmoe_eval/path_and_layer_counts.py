"""The first part of an analysis, in one pass: concentration of paths, exact or in fixed memory, and consistency."""

# Shapes: N tokens, L MoE layers, K experts per token.

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.layer_blocks import fixed_blocks, layer_blocks
from pathmoe_eval.layers.consistency import ConsistencyCounts
from pathmoe_eval.paths.concentration import concentration
from pathmoe_eval.paths.path_blocks import BlockCounts
from pathmoe_eval.paths.paths import PathCounts
from pathmoe_eval.paths.sketched_paths import SketchedPathCounts
from pathmoe_eval.traces.trace_header import TraceHeader

_LAYERS_OF_A_BLOCK = 4  # where no layers share a router: as many as in PathB4, so that the two compare


class PathAndLayerCounts:
    """Paths through all layers and through blocks, and what layers have in common; of a trace's shape.

    Attributes:
        consistency: what layers have in common; None of a single layer.
    """

    def __init__(self, header: TraceHeader, *, sets: bool = False, sketch: bool = False) -> None:
        """Count, with `sets` also paths of sets of experts, or with `sketch` paths in fixed memory instead."""
        layers = {"num_layers": header.num_layers, "num_experts": header.num_experts}
        per_token, routers = header.num_experts_per_tok, header.router_of_layer
        shared = len(set(routers)) < len(routers)
        blocks = layer_blocks(routers) if shared else fixed_blocks(header.num_layers, _LAYERS_OF_A_BLOCK)
        self._paths: PathCounts | SketchedPathCounts = (
            SketchedPathCounts(**layers, blocks=blocks) if sketch else PathCounts(**layers)
        )
        self._blocks = None if sketch else BlockCounts(blocks=blocks, **layers)
        self._sets = PathCounts(**layers, set_size=per_token) if sets else None
        self.consistency: ConsistencyCounts | None = None
        if header.num_layers > 1:
            self.consistency = ConsistencyCounts(**layers, num_experts_per_tok=per_token, router_of_layer=routers)

    @property
    def exact_paths(self) -> PathCounts | None:
        """Counts of whole paths; None of a sketch."""
        return self._paths if isinstance(self._paths, PathCounts) else None

    def update(self, expert_ids_NLK: NDArray[np.integer]) -> None:
        """Add a chunk: integers [tokens, layers, experts per token], counted from 0, highest weight first.

        Raises:
            ValueError: wrong shape or dtype, an id out of range, or an expert twice in one token and layer.
        """
        top1_NL = expert_ids_NLK[..., 0]
        self._paths.update(top1_NL)
        if self._blocks is not None:
            self._blocks.update(top1_NL)
        for counts in (self._sets, self.consistency):
            if counts is not None:
                counts.update(expert_ids_NLK)

    def sections(self) -> dict[str, Any]:
        """Sections of a report: `concentration` or `sketch`, and of several layers `consistency` and `flow`.

        Raises:
            ValueError: no token was counted.
        """
        sections: dict[str, Any] = {}
        if isinstance(self._paths, SketchedPathCounts):
            sections["sketch"] = asdict(self._paths.result())
        else:
            assert self._blocks is not None
            sections["concentration"] = {
                "whole": asdict(concentration(self._paths)),
                "blocks": [asdict(block) for block in self._blocks.result()],
            }
            if self._sets is not None:
                sections["concentration"]["sets"] = asdict(concentration(self._sets))
        if self.consistency is not None:
            sections["consistency"] = asdict(self.consistency.result())
            sections["flow"] = self.consistency.adjacent_top1().tolist()
        return sections
