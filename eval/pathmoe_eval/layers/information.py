"""What a token's top-1 expert in one layer says about its expert in another: mutual information, free of naming."""

# Shapes: L MoE layers, P pairs of layers, A = L - 1 adjacent pairs, E experts, B experts that have tokens.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pathmoe_eval.layer_blocks import LayerPairMeans, check_router_of_layer, layer_pair_means, square
from pathmoe_eval.layers.agreement import mutual_information_bits
from pathmoe_eval.layers.joint_counts import JointCounts
from pathmoe_eval.layers.permuted_tables import permuted_tables
from pathmoe_eval.routing_shape import check_some_tokens


@dataclass(frozen=True, kw_only=True)
class LayerInformation:
    """Mutual information of layers' top-1 experts, in bits; no relabelling of a layer's experts changes a figure."""

    num_tokens: int
    """Tokens that were counted."""
    entropy_bits: tuple[float, ...]
    """Plug-in entropy of each layer's top-1 expert: no pair of layers can share more than the smaller of the two."""
    adjacent_bits: tuple[float, ...]
    """Plug-in mutual information of each pair (l, l + 1); too high in small samples."""
    adjacent_corrected_bits: tuple[float, ...]
    """The same with the Miller-Madow correction; near 0 (also below) for independent layers."""
    adjacent_normalised: tuple[float | None, ...]
    """`adjacent_bits` over the smaller of the two entropies; None where that is 0: a layer of one expert."""
    adjacent_bits_null: tuple[float, ...]
    """Mean of `adjacent_bits` when the tokens of one layer are permuted: independent layers with the same loads."""
    adjacent_bits_null_highest: tuple[float, ...]
    """Highest of the permutations, of which there are `num_permutations`."""
    num_permutations: int
    """Seeded permutations behind the two."""
    corrected_bits: tuple[tuple[float, ...], ...] | None
    """Corrected mutual information of all pairs of layers, [layer][layer], on the diagonal corrected entropy; None
    where the tables of all pairs take too much memory: see `JointCounts`."""
    normalised: tuple[tuple[float | None, ...], ...] | None
    """Plug-in mutual information of all pairs over the smaller entropy; None likewise, and for layers of one expert."""
    corrected_bits_means: LayerPairMeans
    """Means of the corrected mutual information over pairs."""
    normalised_means: LayerPairMeans
    """Means of the normalised mutual information over pairs."""


def layer_information(counts: JointCounts, router_of_layer: Sequence[int]) -> LayerInformation:
    """Mutual information of the top-1 experts of pairs of layers.

    Args:
        counts: joint counts of at least one token.
        router_of_layer: one integer a layer, equal where layers share a router; it only groups the means.

    Raises:
        ValueError: no token was counted, or `router_of_layer` does not fit.
    """
    router_of_layer = check_router_of_layer(router_of_layer, counts.shape.num_layers)
    check_some_tokens(counts.num_tokens)
    # Of a layer with itself the mutual information is the entropy.
    entropy_L = [mutual_information_bits(np.diag(load_E)) for load_E in counts.top1_loads()]
    bits_P = [mutual_information_bits(joint_EE) for joint_EE in counts.top1_PEE]
    corrected_P = [corrected for _, corrected in bits_P]
    normalised_P = [
        _normalised(plug_in, min(entropy_L[first][0], entropy_L[second][0]))
        for (plug_in, _), (first, second) in zip(bits_P, counts.pairs, strict=True)
    ]
    adjacent = [index for index, (first, second) in enumerate(counts.pairs) if second == first + 1]
    nulls = [
        [mutual_information_bits(table_AB)[0] for table_AB in permuted_tables(joint_EE, seed)]
        for seed, joint_EE in enumerate(counts.adjacent_top1())
    ]
    has_all = counts.has_all_pairs
    return LayerInformation(
        num_tokens=counts.num_tokens,
        entropy_bits=tuple(plug_in for plug_in, _ in entropy_L),
        adjacent_bits=tuple(bits_P[index][0] for index in adjacent),
        adjacent_corrected_bits=tuple(corrected_P[index] for index in adjacent),
        adjacent_normalised=tuple(normalised_P[index] for index in adjacent),
        adjacent_bits_null=tuple(float(np.mean(null)) for null in nulls),
        adjacent_bits_null_highest=tuple(max(null) for null in nulls),
        num_permutations=len(nulls[0]),
        corrected_bits=square(corrected_P, [corrected for _, corrected in entropy_L]) if has_all else None,
        normalised=square(normalised_P, [_normalised(bits, bits) for bits, _ in entropy_L]) if has_all else None,
        corrected_bits_means=layer_pair_means(corrected_P, counts.pairs, router_of_layer),
        normalised_means=layer_pair_means(normalised_P, counts.pairs, router_of_layer),
    )


def _normalised(bits: float, entropy_bits: float) -> float | None:
    return min(1.0, bits / entropy_bits) if entropy_bits > 0 else None
