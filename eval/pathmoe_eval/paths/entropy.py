"""Entropy of a distribution from a sample: the plug-in value, its standard error, and corrections of its bias.

Everything is computed from how many outcomes were seen c times, for each c: few numbers even for millions of paths.
"""

# Shapes: C distinct values of a count.

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, special


@dataclass(frozen=True, kw_only=True)
class EntropyEstimates:
    """What a sample says about the entropy of its source, in bits; all take the tokens as independent draws."""

    plug_in_bits: float
    """Entropy of the sample itself; on average too low."""
    plug_in_standard_error_bits: float
    """Delta-method standard error of the plug-in value around its own (biased) mean: the bias is not in it."""
    miller_madow_bits: float
    """See `miller_madow_bits`."""
    chao_shen_bits: float
    """See `chao_shen_bits`."""
    chao_wang_jost_bits: float
    """See `chao_wang_jost_bits`."""
    coverage: float
    """Good-Turing estimate 1 - f1/N of the probability that the next token takes a path that was already seen."""


def entropy_estimates(sizes_C: NDArray[np.int64], multiplicity_C: NDArray[np.int64]) -> EntropyEstimates:
    """All estimates from one frequency of frequencies.

    Args:
        sizes_C: int64 [C], distinct values that the count of an outcome takes, each at least 1.
        multiplicity_C: int64 [C], how many outcomes have that count, each at least 1.
    """
    return EntropyEstimates(
        plug_in_bits=plug_in_bits(sizes_C, multiplicity_C),
        plug_in_standard_error_bits=plug_in_standard_error_bits(sizes_C, multiplicity_C),
        miller_madow_bits=miller_madow_bits(sizes_C, multiplicity_C),
        chao_shen_bits=chao_shen_bits(sizes_C, multiplicity_C),
        chao_wang_jost_bits=chao_wang_jost_bits(sizes_C, multiplicity_C),
        coverage=1.0 - _seen_times(1, sizes_C, multiplicity_C) / _num_samples(sizes_C, multiplicity_C),
    )


def plug_in_bits(sizes_C: NDArray[np.int64], multiplicity_C: NDArray[np.int64]) -> float:
    """Shannon entropy of the sample in bits (arguments as in `entropy_estimates`)."""
    num_samples = _num_samples(sizes_C, multiplicity_C)
    return float(np.sum(multiplicity_C * sizes_C / num_samples * np.log2(num_samples / sizes_C)))


def plug_in_standard_error_bits(sizes_C: NDArray[np.int64], multiplicity_C: NDArray[np.int64]) -> float:
    """Standard error of the plug-in entropy: sqrt((sum p log2(p)^2 - H^2) / N) (Basharin 1959), for independent draws.

    Neighbouring tokens are not independent, so the spread between texts is larger; and where most paths were seen once
    the bias exceeds it by far. Arguments as in `entropy_estimates`.
    """
    num_samples = _num_samples(sizes_C, multiplicity_C)
    surprise_C = np.log2(num_samples / sizes_C)
    share_C = multiplicity_C * sizes_C / num_samples
    mean = float(np.sum(share_C * surprise_C))
    return math.sqrt(float(np.sum(share_C * (surprise_C - mean) ** 2)) / num_samples)


def miller_madow_bits(sizes_C: NDArray[np.int64], multiplicity_C: NDArray[np.int64]) -> float:
    """Plug-in entropy plus (K - 1) / (2 N ln 2) bits, with K outcomes seen in N samples (Miller 1955).

    It removes the bias of order 1/N, which is all of it only where N is far above the number of possible outcomes: good
    for loads and short blocks, next to no help for whole paths. Arguments as in `entropy_estimates`.
    """
    excess = int(multiplicity_C.sum()) - 1
    return plug_in_bits(sizes_C, multiplicity_C) + excess / (2 * _num_samples(sizes_C, multiplicity_C) * math.log(2))


def chao_shen_bits(sizes_C: NDArray[np.int64], multiplicity_C: NDArray[np.int64]) -> float:
    """Chao-Shen estimate, in bits, of the entropy of a distribution with unseen outcomes.

    With n samples of which f1 outcomes were seen once, coverage c = 1 - f1/n and q = c * count/n, the estimate is the
    sum over seen outcomes of -q log2(q) / (1 - (1 - q)^n): Good-Turing coverage inside a Horvitz-Thompson sum (Chao
    and Shen, Environmental and Ecological Statistics 10, 2003, 429-443). When every outcome was seen once we set
    f1 = n - 1, since coverage 0 has no estimate (our choice).

    Limits: it assumes independent draws, which the tokens of a text are not; it has a large variance when most paths
    were seen once, and stays too low on heavy tails. No estimator is unbiased for every distribution (Paninski,
    Neural Computation 15, 2003), so read it as a hint of how far `entropy_bits` is limited by the sample, not as a
    measurement. Arguments as in `entropy_estimates`.
    """
    num_samples = _num_samples(sizes_C, multiplicity_C)
    num_singletons = _seen_times(1, sizes_C, multiplicity_C)
    coverage = 1.0 - min(num_singletons, num_samples - 1) / num_samples
    q_C = coverage * sizes_C / num_samples
    with np.errstate(divide="ignore"):  # q = 1 is certain to be seen: log1p(-1) = -inf gives that probability, 1
        seen_probability_C = -np.expm1(num_samples * np.log1p(-q_C))
    return float(np.sum(multiplicity_C * q_C * -np.log2(q_C) / seen_probability_C)) + 0.0  # + 0.0: no negative zero


def chao_wang_jost_bits(sizes_C: NDArray[np.int64], multiplicity_C: NDArray[np.int64]) -> float:
    """Chao-Wang-Jost estimate, in bits: the entropy to which the rarefaction curve would go on (its slopes continued).

    Chao, Wang and Jost, Methods in Ecology and Evolution 4, 2013, 1091-1100. In nats, with n samples, f1 and f2
    outcomes seen once and twice, and A = 2 f2 / ((n - 1) f1 + 2 f2), or 2 / ((n - 1)(f1 - 1) + 2) without f2, or 1
    without f1: the sum over outcomes with count x < n of x/n (1/x + ... + 1/(n-1)), plus

        f1/n (1 - A)^(1-n) (-ln A - sum over r < n of (1 - A)^r / r)
            = f1/n  integral over s > 0 of (1 - A) e^(-n s) / (1 - (1 - A) e^-s),

    whose second form neither overflows nor cancels.

    Limits: as for `chao_shen_bits`; usually nearer the truth than that where most outcomes are rare, and still too low
    when the tail is heavier than f1 and f2 show. Arguments as in `entropy_estimates`.
    """
    n = _num_samples(sizes_C, multiplicity_C)
    seen = float(np.sum(multiplicity_C * sizes_C / n * (special.digamma(n) - special.digamma(sizes_C))))
    f1, f2 = (_seen_times(times, sizes_C, multiplicity_C) for times in (1, 2))
    if f1 == 0:
        return seen / math.log(2)
    a = 2 * f2 / ((n - 1) * f1 + 2 * f2) if f2 else 2 / ((n - 1) * (f1 - 1) + 2)
    return (seen + f1 / n * _unseen_term(n, a)) / math.log(2)


def _unseen_term(n: int, a: float) -> float:
    """The integral in `chao_wang_jost_bits`; with u = n s = e^v, since it may be spread over many orders of u."""
    if a == 1:
        return 0.0
    knee = min(math.log(n * a), 1.0)  # below it the integrand falls off like e^v
    integral, _ = integrate.quad(
        lambda v: (1 - a) * math.exp(v - math.exp(v)) / (n * -math.expm1(math.log1p(-a) - math.exp(v) / n)),
        knee - 40,
        math.log(750),
        points=[knee],
        epsabs=0,
        epsrel=1e-11,
        limit=200,
    )
    return float(integral)


def _num_samples(sizes_C: NDArray[np.int64], multiplicity_C: NDArray[np.int64]) -> int:
    return int(np.sum(sizes_C * multiplicity_C))


def _seen_times(times: int, sizes_C: NDArray[np.int64], multiplicity_C: NDArray[np.int64]) -> int:
    """How many outcomes have that count."""
    return int(np.sum(multiplicity_C[sizes_C == times]))
