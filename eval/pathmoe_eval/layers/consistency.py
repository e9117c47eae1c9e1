"""Cross-layer consistency of expert paths in one pass: index figures, their nulls, and companions free of naming."""

# Shapes: N tokens, L MoE layers, K experts per token, W words of a set.

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.layer_blocks import LayerPairMeans, layer_blocks, layer_pair_means
from pathmoe_eval.layers.agreement import IndexAgreement, index_agreement
from pathmoe_eval.layers.engagement import Engagement, EngagementCounts
from pathmoe_eval.layers.expert_sets import set_blocks
from pathmoe_eval.layers.information import LayerInformation, layer_information
from pathmoe_eval.layers.joint_counts import JointCounts
from pathmoe_eval.layers.layer_overlap import LayerOverlap, LayerOverlapCounts
from pathmoe_eval.layers.matching import LayerMatching, layer_matching


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """Whether layers route a token alike. `agreement`, `overlap` and `engagement` compare expert indices;
    `information` and `matching` are their companions, which no relabelling of a layer's experts changes."""

    num_tokens: int
    """Tokens that were counted."""
    leads_with: Literal["companions", "indices"]
    """What to read first: the companions where no two neighbouring layers share a router."""
    why: str
    """The reason, in a sentence for the reader of a report."""
    agreement: IndexAgreement
    """Same top-1 index in neighbouring layers."""
    agreement_means: LayerPairMeans
    """Means of `agreement.agreement` over pairs."""
    overlap: LayerOverlap
    """Jaccard of the top-k sets of all pairs of layers."""
    engagement: Engagement
    """Runs of layers that keep an index."""
    information: LayerInformation
    """Mutual information of top-1 experts."""
    matching: LayerMatching
    """Overlap after the best matching of experts."""


class ConsistencyCounts:
    """All that cross-layer consistency is made from, from chunks of any size.

    The counts are integers, so the result does not depend on the order of the tokens or on batching and merging.

    Attributes:
        joint: what `information`, `matching` and `agreement` are made from.
        overlap: of top-k sets.
        engagement: of runs.
        router_of_layer: one integer a layer.
    """

    def __init__(
        self, *, num_layers: int, num_experts: int, num_experts_per_tok: int, router_of_layer: Sequence[int]
    ) -> None:
        """Count routing of this shape, of at least two layers.

        `router_of_layer` has one integer a layer, equal where layers share a router's parameters.
        """
        shape = {"num_layers": num_layers, "num_experts": num_experts, "num_experts_per_tok": num_experts_per_tok}
        self.joint = JointCounts(**shape)
        self.overlap = LayerOverlapCounts(**shape, router_of_layer=router_of_layer)
        self.engagement = EngagementCounts(**shape, router_of_layer=router_of_layer)
        self.router_of_layer = self.engagement.router_of_layer

    def update(self, expert_ids_NLK: NDArray[np.integer]) -> None:
        """Add a chunk: integers [tokens, layers, experts per token], counted from 0, highest weight first.

        Raises:
            ValueError: wrong shape or dtype, an id out of range, or an expert twice in one token and layer.
        """
        for ids_KLN, masks_WLN in set_blocks(self.joint.shape, expert_ids_NLK):
            for part in (self.overlap, self.engagement, self.joint):
                part.add_block(ids_KLN, masks_WLN)

    def merge(self, other: ConsistencyCounts) -> None:
        """Add everything that `other`, of the same shape and routers, has counted; `other` keeps its counts.

        Raises:
            ValueError: the two have different shapes or routers.
        """
        self.engagement.merge(other.engagement)
        self.overlap.merge(other.overlap)
        self.joint.merge(other.joint)

    def without(self, part: ConsistencyCounts) -> ConsistencyCounts:
        """Counts of the tokens that are not in `part`, some of those that were counted here."""
        rest = copy.copy(self)
        rest.joint = self.joint.without(part.joint)
        rest.overlap = self.overlap.without(part.overlap)
        rest.engagement = self.engagement.without(part.engagement)
        return rest

    def adjacent_top1(self) -> NDArray[np.int64]:
        """Tokens whose top-1 expert is e in layer l and f in layer l + 1, [adjacent pairs, experts, experts]."""
        return self.joint.adjacent_top1()

    def result(self) -> Consistency:
        """Consistency over all tokens counted so far.

        Raises:
            ValueError: no token was counted.
        """
        overlap = self.overlap.result()
        agreement = index_agreement(self.joint.adjacent_top1())
        adjacent = [(layer, layer + 1) for layer in range(len(agreement.agreement))]
        leads_with, why = _what_leads(self.router_of_layer)
        return Consistency(
            num_tokens=overlap.num_tokens,
            leads_with=leads_with,
            why=why,
            agreement=agreement,
            agreement_means=layer_pair_means(agreement.agreement, adjacent, self.router_of_layer),
            overlap=overlap,
            engagement=self.engagement.result(),
            information=layer_information(self.joint, self.router_of_layer),
            matching=layer_matching(self.joint, self.router_of_layer),
        )


def _what_leads(router_of_layer: Sequence[int]) -> tuple[Literal["companions", "indices"], str]:
    num_layers, num_blocks = len(router_of_layer), len(layer_blocks(router_of_layer))
    companions = "mutual information and matched overlap, which do not depend on the names of experts"
    if num_blocks == num_layers:
        return "companions", (
            "No two neighbouring layers share a router, so that which expert of one layer has the index of another's "
            f"is a matter of naming: read {companions}."
        )
    if num_blocks == 1:
        return "indices", "All layers share one router, so that an expert's index means the same in each of them."
    return "indices", (
        f"The {num_layers} layers form {num_blocks} blocks that each share a router: an expert's index means the same "
        f"within a block; between blocks read {companions}."
    )
