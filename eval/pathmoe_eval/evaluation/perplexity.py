"""Perplexity and bits per byte from scored tokens: of all, of each domain, of each document, with intervals.

What enters: every token that was predicted from something. A document's first token, its bos where it has one, is
not; its eos is. Bits per byte divide by the UTF-8 bytes of the text that the predicted tokens stand for: of all of it
after a bos, of all but the first token's without. It compares models of different tokenizers, as perplexity does not.
"""

# Shapes: N scored tokens, M documents with scored tokens.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.bootstrap import Bootstrap
from pathmoe_eval.evaluation.scoring import TokenScores

_MAX_PERPLEXITY = 1e100
"""Its square, which the deviation of several takes, is a float too."""


class ScoredDocument(Protocol):
    """What a document must tell; see `EvaluatedDocument`."""

    @property
    def name(self) -> str:
        """Name in the result."""
        ...

    @property
    def domain(self) -> str:
        """Domain that it counts to."""
        ...

    @property
    def token_bytes(self) -> NDArray[np.floating]:
        """UTF-8 bytes behind each token."""
        ...


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """How well some text was predicted; every sum is over its scored tokens."""

    num_documents: int
    """Documents with at least one scored token."""
    num_tokens: int
    """Scored tokens."""
    num_bytes: float
    """UTF-8 bytes of text behind them; whole but for tokenizers that are not byte-level."""
    nats: float
    """Sum of -ln p, correctly rounded over a document's tokens and then over documents, hence the same in any order."""
    perplexity: float | None
    """exp(nats / num_tokens); None without tokens, or beyond 1e100."""
    bits_per_byte: float | None
    """nats / ln 2 / num_bytes; None without bytes."""


@dataclass(frozen=True, kw_only=True)
class PerplexityWithInterval(Perplexity):
    """The same with 95% bootstrap intervals over documents: of the draw of documents, not of the model's training."""

    perplexity_interval: tuple[float, float] | None
    """Lower and upper end; None with fewer than two documents, or where `perplexity` is None."""
    bits_per_byte_interval: tuple[float, float] | None
    """Lower and upper end; None with fewer than two documents, or where one of them has no bytes."""


@dataclass(frozen=True, kw_only=True)
class DomainPerplexity(PerplexityWithInterval):
    """The documents of one domain."""

    domain: str


@dataclass(frozen=True, kw_only=True)
class DocumentPerplexity(Perplexity):
    """One document."""

    name: str
    domain: str


@dataclass(frozen=True, kw_only=True)
class PerplexityResult:
    """All of it."""

    total: PerplexityWithInterval
    by_domain: tuple[DomainPerplexity, ...]
    """In the order in which domains first occur."""
    by_document: tuple[DocumentPerplexity, ...]
    """In the order of the documents, those without scored tokens included."""
    confidence: float
    """Of the intervals, which are the percentiles of the bootstrap."""
    num_resamples: int
    seed: int


def perplexity(
    scores: TokenScores,
    documents: Sequence[ScoredDocument],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> PerplexityResult:
    """Perplexity of scored tokens, over documents, domains and all.

    Intervals are those of a ratio of sums over documents: see `Bootstrap`.

    Args:
        scores: in any order; each token once.
        documents: those that the scores number.
        num_resamples: of each bootstrap.
        seed: of each bootstrap.
        confidence: of the intervals.

    Raises:
        ValueError: no scored token, a score of a document that is not there, or a bootstrap setting out of range.
    """
    settings = Bootstrap(num_resamples=num_resamples, seed=seed, confidence=confidence)
    by_document = _by_document(scores, documents)
    scored = [document for document in by_document if document.num_tokens]
    if not scored:
        raise ValueError("--data (0 scored tokens) must hold a document of at least 2 tokens; give longer text")
    of_domain: dict[str, list[DocumentPerplexity]] = {}
    for document in scored:
        of_domain.setdefault(document.domain, []).append(document)
    return PerplexityResult(
        total=PerplexityWithInterval(**_pooled(scored, settings)),
        by_domain=tuple(DomainPerplexity(domain=name, **_pooled(some, settings)) for name, some in of_domain.items()),
        by_document=by_document,
        confidence=confidence,
        num_resamples=num_resamples,
        seed=seed,
    )


def perplexity_of(nats_per_token: float) -> float | None:
    """exp(nats per token); None beyond 1e100."""
    return math.exp(nats_per_token) if nats_per_token < math.log(_MAX_PERPLEXITY) else None


def _by_document(scores: TokenScores, documents: Sequence[ScoredDocument]) -> tuple[DocumentPerplexity, ...]:
    last = int(scores.document_N.max(initial=-1))
    if last >= len(documents):
        raise ValueError(f"scores (document {last}) must be of the {len(documents)} documents given; pass all of them")
    order_N = np.argsort(scores.document_N, kind="stable")
    bounds = np.searchsorted(scores.document_N[order_N], np.arange(len(documents) + 1))
    of_document = []
    for number, document in enumerate(documents):
        tokens = order_N[bounds[number] : bounds[number + 1]]
        figures = _figures(
            num_documents=int(len(tokens) > 0),
            num_tokens=len(tokens),
            num_bytes=math.fsum(document.token_bytes[scores.position_N[tokens]]),
            nats=math.fsum(-scores.log_probability_N[tokens]),
        )
        of_document.append(DocumentPerplexity(name=document.name, domain=document.domain, **figures))
    return tuple(of_document)


def _figures(*, num_documents: int, num_tokens: int, num_bytes: float, nats: float) -> dict[str, Any]:
    """The fields of `Perplexity`."""
    return {
        "num_documents": num_documents,
        "num_tokens": num_tokens,
        "num_bytes": num_bytes,
        "nats": nats,
        "perplexity": perplexity_of(nats / num_tokens) if num_tokens else None,
        "bits_per_byte": nats / math.log(2) / num_bytes if num_bytes else None,
    }


def _pooled(documents: Sequence[DocumentPerplexity], settings: Bootstrap) -> dict[str, Any]:
    """The fields of `PerplexityWithInterval`."""
    figures = _figures(
        num_documents=len(documents),
        num_tokens=sum(document.num_tokens for document in documents),
        num_bytes=math.fsum(document.num_bytes for document in documents),
        nats=math.fsum(document.nats for document in documents),
    )
    nats_M = np.array([document.nats for document in documents])
    per_token = _interval(nats_M, np.array([document.num_tokens for document in documents]), settings)
    ends = None if per_token is None else (perplexity_of(per_token[0]), perplexity_of(per_token[1]))
    per_byte = _interval(nats_M / math.log(2), np.array([document.num_bytes for document in documents]), settings)
    return figures | {
        "perplexity_interval": None if ends is None or None in ends else ends,
        "bits_per_byte_interval": per_byte,
    }


def _interval(
    numerator_M: NDArray[np.floating], denominator_M: NDArray[Any], settings: Bootstrap
) -> tuple[float, float] | None:
    """Of sum(numerator) / sum(denominator)."""
    if not denominator_M.all():
        return None
    return settings.interval(
        (numerator_M, denominator_M),
        lambda numerator, denominator, axis: numerator.sum(axis=axis) / denominator.sum(axis=axis),
    )
