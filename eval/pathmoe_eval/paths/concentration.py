"""Everything that a report says of how concentrated paths are, from one set of counts."""

# Shapes: C distinct values of a count.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pathmoe_eval.paths.coverage import PathCoverage, RankFrequency, coverage, rank_frequency
from pathmoe_eval.paths.entropy import EntropyEstimates, entropy_estimates
from pathmoe_eval.paths.path_blocks import BlockConcentration, block_concentration
from pathmoe_eval.paths.paths import PathCounts, PathEntropy
from pathmoe_eval.paths.rarefaction import Rarefaction, rarefaction

# An entropy that still grows by more than this from half the tokens to all is limited by the sample (our choice).
_SATURATED_BITS = 0.1


@dataclass(frozen=True, kw_only=True)
class PathConcentration:
    """Concentration of counted paths, with the ceilings, nulls and corrections that belong to it."""

    entropy: PathEntropy
    """Distinct paths and entropy of the sample."""
    share_of_ceiling: float | None
    """entropy_bits / ceiling_bits; None for a single token, whose ceiling is 0."""
    last_doubling_bits: float | None
    """Entropy gained from a random half of the tokens to all: 1 if every path is new, 0 if saturated; None: 1 token."""
    in_words: str
    """What the ceiling and the last doubling say of the entropy."""
    estimates: EntropyEstimates
    """Entropy with its bias corrected in several ways; where they differ, the sample does not tell."""
    rarefaction: Rarefaction
    """The same at smaller numbers of tokens: compare models at equal numbers."""
    independence: BlockConcentration
    """Against layers that choose independently with the same loads."""
    coverage: PathCoverage
    """Tokens on the most frequent paths."""
    rank_frequency: RankFrequency
    """The Zipf plot."""


def concentration(counts: PathCounts, num_tokens: Sequence[int] | None = None) -> PathConcentration:
    """All statistics of concentration of the paths in `counts` (whole paths, or those through a block).

    Args:
        counts: exact counts; they are not changed.
        num_tokens: numbers of tokens of the rarefaction curve; None takes the powers of two, and all tokens.

    Raises:
        ValueError: no token was counted, or a number of tokens that `rarefaction` refuses.
    """
    sizes_C, multiplicity_C = counts.frequencies()
    entropy = counts.result()
    share = entropy.entropy_bits / entropy.ceiling_bits if entropy.ceiling_bits else None
    gained = None
    if entropy.num_tokens > 1:
        half = rarefaction(sizes_C, multiplicity_C, [entropy.num_tokens // 2])
        gained = entropy.entropy_bits - half.entropy_bits[0]
    layers = [counts.between(layer, layer + 1).frequencies() for layer in range(counts.num_layers)]
    layer_shares = [np.repeat(sizes, multiplicity) / entropy.num_tokens for sizes, multiplicity in layers]
    return PathConcentration(
        entropy=entropy,
        share_of_ceiling=share,
        last_doubling_bits=gained,
        in_words=in_words(entropy, gained),
        estimates=entropy_estimates(sizes_C, multiplicity_C),
        rarefaction=rarefaction(sizes_C, multiplicity_C, num_tokens),
        independence=block_concentration(counts),
        coverage=coverage(sizes_C, multiplicity_C, layer_shares),
        rank_frequency=rank_frequency(sizes_C, multiplicity_C),
    )


def in_words(entropy: PathEntropy, last_doubling_bits: float | None) -> str:
    """A sentence on how far an entropy is one of the sample instead of the model."""
    if last_doubling_bits is None:
        return "One token has no entropy."
    share = entropy.entropy_bits / entropy.ceiling_bits
    verdict = (
        "the sample limits this entropy; compare it at equal numbers of tokens only"
        if last_doubling_bits > _SATURATED_BITS
        else "more tokens would hardly change this entropy"
    )
    return (
        f"{entropy.entropy_bits:.2f} bits are {share:.0%} of the {entropy.ceiling_bits:.2f} bits that "
        f"{entropy.num_tokens:,} tokens can show, and doubling the tokens to that number added "
        f"{last_doubling_bits:z.2f} bits (1 if every path were new, 0 if no more were to come): {verdict}."
    )
