"""Pairs of sequences: how alike their mean hidden states are, and how alike the experts that they use.

Quantities of "The Myth of Expert Specialization" (arXiv 2604.09780); their forms are our reading where it is said so.
"""

# Shapes: M sequences, D hidden, E experts, R resamples.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.geometry.router_map import RouterMap

TOP_P = 0.8

USAGES = ("usage_cosine", "top_p_jaccard", "mask_overlap")
STATES = ("pooled_full", "pooled_row", "pooled_null")

_Square = NDArray[np.float64]
_Figure = Callable[[NDArray[np.float64]], NDArray[np.float64]]
_Sums = Callable[[_Square, NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over pairs of sequences."""

    value: float | None
    """None without a pair."""
    interval: tuple[float, float] | None
    """95% percentile interval over the draw of sequences; None for fewer than three of them, or where a resample has no
    pair."""


@dataclass(frozen=True, kw_only=True)
class SequencePairs:
    """Similarities of all pairs of different sequences in one layer, by the names in `STATES` and `USAGES`.

    pooled_full, pooled_row, pooled_null: cosine of the mean states (Equation 17 as we read it), whole, in the router's
    row space and outside of it. usage_cosine: cosine of the shares of visits of each expert (Equations 13 and 14).
    top_p_jaccard: Jaccard of the fewest experts that hold 0.8 of the visits (Equations 18 and 19). mask_overlap: share
    of its experts that a token of one has in common with a token of the other, on average (Equation 11, our reading).
    """

    num_sequences: int
    domains: tuple[str, ...]
    within: dict[str, Mean]
    """Of pairs within a domain."""
    across: dict[str, Mean]
    """Of pairs across domains."""
    correlation: dict[str, dict[str, Mean]]
    """Pearson correlation of each of `STATES` with each of `USAGES` over all pairs."""


def sequence_pairs(
    pooled_MD: NDArray[np.floating],
    usage_ME: NDArray[np.floating],
    num_experts_per_tok: int,
    domain_of_sequence: Sequence[str],
    router: RouterMap,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> SequencePairs:
    """All pairs of sequences.

    Args:
        pooled_MD: mean state of each sequence.
        usage_ME: share of the visits of each expert, rows that sum to 1.
        num_experts_per_tok: visits of a token.
        domain_of_sequence: its domain.
        router: of the layer.
        num_resamples: of the bootstrap over sequences.
        seed: of the bootstrap.

    Raises:
        ValueError: fewer than two sequences.
    """
    if len(pooled_MD) < 2:
        raise ValueError(f"--data ({len(pooled_MD)} sequences) must hold at least 2; give more documents")
    similarity = similarities(pooled_MD, usage_ME, num_experts_per_tok, router)
    names = np.array(domain_of_sequence)
    is_within_MM = names[:, None] == names[None, :]
    counts_RM = _resamples(len(names), num_resamples, seed)
    return SequencePairs(
        num_sequences=len(names),
        domains=tuple(dict.fromkeys(domain_of_sequence)),
        within={name: _mean(square, is_within_MM, counts_RM) for name, square in similarity.items()},
        across={name: _mean(square, ~is_within_MM, counts_RM) for name, square in similarity.items()},
        correlation={
            states: {usage: _correlation(similarity[states], similarity[usage], counts_RM) for usage in USAGES}
            for states in STATES
        },
    )


def overlap_of_trajectories(
    usage_ME: NDArray[np.floating],
    problems: Sequence[str],
    authors: Sequence[str],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Mean]:
    """Jaccard of the experts that hold 0.8 of the visits of pairs of texts, by who wrote them and of what.

    Figure 6 of the paper has trajectories of several models on several problems; that they are all read by one model is
    our reading, since experts of different models have nothing in common but their numbers.

    Args:
        usage_ME: share of the visits of each expert.
        problems: that each text answers.
        authors: of each text.
        num_resamples: of the bootstrap over problems, on each of which texts depend on one another.
        seed: of the bootstrap.

    Returns:
        Means over pairs, by `same problem, same author` and so on.
    """
    jaccard_MM = _jaccards(top_p_sets(usage_ME))
    _, problem_M = np.unique(problems, return_inverse=True)
    counts_RM = _resamples(int(problem_M.max()) + 1, num_resamples, seed)[:, problem_M]
    sums = {"same": _sums_of_problems, "different": _pair_sums}
    is_same = {}
    for name, labels in (("problem", problems), ("author", authors)):
        names = np.array(labels)
        is_same[name] = names[:, None] == names[None, :]
    return {
        f"{of_problem} problem, {of_author} author": _mean(
            jaccard_MM,
            (is_same["problem"] == (of_problem == "same")) & (is_same["author"] == (of_author == "same")),
            counts_RM,
            sums[of_problem],
        )
        for of_problem in ("same", "different")
        for of_author in ("same", "different")
    }


def similarities(
    pooled_MD: NDArray[np.floating], usage_ME: NDArray[np.floating], num_experts_per_tok: int, router: RouterMap
) -> dict[str, _Square]:
    """The similarities [M, M] by name; arguments as for `sequence_pairs`."""
    row_MR, null_MD = router.split(pooled_MD)
    rounding = 1e-6 * float(np.linalg.norm(pooled_MD, axis=1).max())
    return {
        "pooled_full": cosines(pooled_MD),
        "pooled_row": cosines(row_MR, rounding),
        "pooled_null": cosines(null_MD, rounding),
        "usage_cosine": cosines(usage_ME),
        "top_p_jaccard": _jaccards(top_p_sets(usage_ME)),
        "mask_overlap": num_experts_per_tok * (usage_ME @ usage_ME.T).astype(np.float64),
    }


def top_p_sets(usage_ME: NDArray[np.floating], p: float = TOP_P) -> NDArray[np.bool_]:
    """The fewest experts that hold a share p of the visits, [M, E]; of equally used ones, the lower ids first."""
    order_ME = np.argsort(-usage_ME, axis=1, kind="stable")
    sorted_ME = np.take_along_axis(usage_ME, order_ME, axis=1)
    # What comes before it does not suffice yet; rounding must not ask for one more.
    is_needed_ME = np.cumsum(sorted_ME, axis=1) - sorted_ME < p - 1e-9
    sets_ME = np.zeros(usage_ME.shape, dtype=bool)
    np.put_along_axis(sets_ME, order_ME, is_needed_ME, axis=1)
    return sets_ME


def cosines(vectors: NDArray[np.floating], least: float = 0.0) -> _Square:
    """Cosines of all pairs of rows; 0 where one is shorter than `least`, which is rounding."""
    vectors = vectors.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > least)
    return scaled @ scaled.T


def _jaccards(sets_ME: NDArray[np.bool_]) -> _Square:
    both = sets_ME.astype(np.float64) @ sets_ME.T
    sizes = sets_ME.sum(axis=1)
    return np.asarray(both / (sizes[:, None] + sizes[None, :] - both))


def _resamples(num_sequences: int, num_resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each sequence is drawn in each resample, [R, M]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_sequences, np.full(num_sequences, 1 / num_sequences), num_resamples).astype(np.float64)


def _pair_sums(square_MM: _Square, counts_RM: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over ordered pairs of different sequences, each as often as both were drawn: [R]."""
    return np.asarray(((counts_RM @ _beside_diagonal(square_MM)) * counts_RM).sum(axis=1))


def _sums_of_problems(square_MM: _Square, counts_RM: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over ordered pairs of different texts of one problem, each as often as the problem was drawn: [R]."""
    return np.asarray(counts_RM @ _beside_diagonal(square_MM).sum(axis=1))


def _beside_diagonal(square_MM: _Square) -> _Square:
    return np.asarray(square_MM - np.diag(np.diag(square_MM)))


def _mean(
    square_MM: _Square, is_counted_MM: NDArray[np.bool_], counts_RM: NDArray[np.float64], sums: _Sums = _pair_sums
) -> Mean:
    def means(counts_RM: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"):
            numbers_R = sums(is_counted_MM.astype(np.float64), counts_RM)
            return np.asarray(sums(square_MM * is_counted_MM, counts_RM) / numbers_R)

    return _with_interval(means, counts_RM)


def _correlation(x_MM: _Square, y_MM: _Square, counts_RM: NDArray[np.float64]) -> Mean:
    def correlations(counts_RM: NDArray[np.float64]) -> NDArray[np.float64]:
        number_R = _pair_sums(np.ones_like(x_MM), counts_RM)
        with np.errstate(invalid="ignore", divide="ignore"):
            x_R, y_R, xx_R, yy_R, xy_R = (
                _pair_sums(square, counts_RM) / number_R
                for square in (x_MM, y_MM, x_MM * x_MM, y_MM * y_MM, x_MM * y_MM)
            )
            spread_R = np.sqrt(np.maximum(xx_R - x_R**2, 0) * np.maximum(yy_R - y_R**2, 0))
            return np.asarray(np.where(spread_R > 1e-12, (xy_R - x_R * y_R) / spread_R, np.nan))

    return _with_interval(correlations, counts_RM)


def _with_interval(figure: _Figure, counts_RM: NDArray[np.float64]) -> Mean:
    (value,) = figure(np.ones((1, counts_RM.shape[1])))
    if not np.isfinite(value):
        return Mean(value=None, interval=None)
    of_resamples = figure(counts_RM)
    if counts_RM.shape[1] < 3 or not np.isfinite(of_resamples).all():
        return Mean(value=float(value), interval=None)
    low, high = np.quantile(of_resamples, [0.025, 0.975])
    return Mean(value=float(value), interval=(float(low), float(high)))
