"""Which experts the documents of a domain use: domain specialisation (OLMoE, arXiv 2409.02060, Eq. 7)."""

# Shapes: N tokens, S documents, G groups of documents, D domains, L MoE layers, E experts, K experts per token, P
# permutations.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.id_range import check_id_range
from pathmoe_eval.layers.agreement import mutual_information_bits
from pathmoe_eval.mergeable import check_mergeable
from pathmoe_eval.routing_shape import RoutingShape, check_some_tokens

_PERMUTATIONS = 200
_NULL_SEED = 0
_NULL_INTERVAL = (0.025, 0.975)


@dataclass(frozen=True, kw_only=True)
class DomainShares:
    """The experts of one domain; tuples have one entry per layer and in it one per expert."""

    domain: str
    """Its name."""
    num_documents: int
    """Its documents with tokens."""
    num_tokens: int
    """Its tokens."""
    share: tuple[tuple[float, ...], ...]
    """Eq. 7: share of the domain's tokens for which the expert is in the top-k. OLMoE's notebook divides by picks, not
    by tokens, so what it plots is smaller by a factor of k."""
    share_null_permuted_low: tuple[tuple[float, ...], ...]
    """Lower end of the middle 95% of what the share is when documents get the domain of a random other one."""
    share_null_permuted_high: tuple[tuple[float, ...], ...]
    """Upper end of it."""


@dataclass(frozen=True, kw_only=True)
class DomainSpecialisation:
    """Domain specialisation; tuples have one entry per layer.

    The nulls permute the domains of whole documents: tokens of a document are no independent draws, so permuting
    tokens would call every difference between documents one between domains.
    """

    num_tokens: int
    """Tokens that were counted."""
    num_documents: int
    """Documents with tokens."""
    num_groups: int
    """What exchanges domains in the nulls: these documents, or groups of them where memory is bounded."""
    share_null_uniform: float
    """num_experts_per_tok / num_experts: every share if the domain did not matter and the load was equal."""
    domains: tuple[DomainShares, ...]
    """Each domain's shares, in the order of the names."""
    information_bits: tuple[float, ...]
    """Mutual information, in bits per pick, of a pick's domain and its expert (plug-in)."""
    information_bits_null: tuple[float, ...]
    """Its mean over the permutations."""
    information_p_value: tuple[float, ...]
    """Share of the permutations, and of the true domains among them, with at least this information."""
    outside_share: tuple[float, ...]
    """Share of the pairs of domain and expert whose share lies outside its 95% by chance; about 0.05 by chance."""
    mean_information_bits: float
    """Mean of `information_bits` over layers."""
    mean_information_bits_null: float
    """Mean of `information_bits_null` over layers."""


class DomainCounts:
    """Picks of every expert by every document, in 4 * layers * documents * experts bytes; integers, in any order.

    With `max_groups` a document's picks go to one of so many groups, each of documents of one domain, and the nulls
    exchange the domains of groups; shares and information stay the same.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_experts: int,
        num_experts_per_tok: int,
        domains: Sequence[str],
        domain_of_document_S: NDArray[np.integer],
        max_groups: int | None = None,
    ) -> None:
        """Count for a model of this shape and known documents.

        Args:
            num_layers: as for `RoutingShape`.
            num_experts: as for `RoutingShape`.
            num_experts_per_tok: as for `RoutingShape`.
            domains: names of the domains.
            domain_of_document_S: integers [documents], the index in `domains` of each document.
            max_groups: groups in which documents are counted; one for each domain at least. None counts each alone.

        Raises:
            ValueError: as in `RoutingShape`, or a domain that is no index of `domains`.
        """
        self.shape = RoutingShape(
            num_layers=num_layers, num_experts=num_experts, num_experts_per_tok=num_experts_per_tok
        )
        self.domains = tuple(domains)
        self._domain_of_document_S = _check_indices(
            "domain_of_document",
            np.asarray(domain_of_document_S),
            len(self.domains),
            "pass an index of domains for each",
        )
        num_documents = len(self._domain_of_document_S)
        self._group_of_document_S, self._domain_of_group_G = np.arange(num_documents), self._domain_of_document_S
        if max_groups is not None:
            self._group_of_document_S, self._domain_of_group_G = _groups(
                self._domain_of_document_S, len(self.domains), max_groups
            )
        self._tokens_S = np.zeros(num_documents, dtype=np.int64)
        # A group may have more picks than a document.
        picks_dtype = np.int32 if max_groups is None else np.int64
        self._picks_LGE = np.zeros((num_layers, len(self._domain_of_group_G), num_experts), dtype=picks_dtype)

    def update(self, expert_ids_NLK: NDArray[np.integer], document_of_token_N: NDArray[np.integer]) -> None:
        """Add a chunk, which may begin and end inside documents.

        Args:
            expert_ids_NLK: as in `RoutingShape.check`.
            document_of_token_N: integers [tokens], the document of each, an index of `domain_of_document_S`.

        Raises:
            ValueError: as in `RoutingShape.check`, or documents of another shape or out of range.
        """
        expert_ids_NLK = self.shape.check(expert_ids_NLK)
        document_of_token_N = np.asarray(document_of_token_N)
        if document_of_token_N.shape != expert_ids_NLK.shape[:1]:
            raise ValueError(
                f"document_of_token ({list(document_of_token_N.shape)}) must be [{len(expert_ids_NLK)}]; "
                "pass one document per row of expert_ids"
            )
        num_documents = len(self._tokens_S)
        documents_N = _check_indices(
            "document_of_token", document_of_token_N, num_documents, "pass every document's domain at the start"
        )
        self._tokens_S += np.bincount(documents_N, minlength=num_documents)
        groups_N = self._group_of_document_S[documents_N]
        for layer, picks_GE in enumerate(self._picks_LGE):
            cells_NK = groups_N[:, None] * self.shape.num_experts + expert_ids_NLK[:, layer].astype(np.int64)
            np.add.at(picks_GE.reshape(-1), cells_NK.reshape(-1), picks_GE.dtype.type(1))

    def merge(self, other: DomainCounts) -> None:
        """Add everything that `other` has counted of the same documents; `other` keeps its counts.

        Raises:
            ValueError: the two are of different shapes, domains or documents.
        """
        self.shape.check_mergeable(other.shape)
        if self.domains != other.domains or not np.array_equal(self._domain_of_document_S, other._domain_of_document_S):
            raise ValueError(
                f"other ({len(other._tokens_S)} documents of {', '.join(other.domains)}) must have the same documents "
                f"({len(self._tokens_S)} of {', '.join(self.domains)}); give both parts all documents' domains"
            )
        check_mergeable(self, other, "num_groups")
        self._tokens_S += other._tokens_S
        self._picks_LGE += other._picks_LGE

    @property
    def num_groups(self) -> int:
        """Groups of documents, or documents."""
        return len(self._domain_of_group_G)

    def result(self) -> DomainSpecialisation:
        """Domain specialisation over all tokens counted so far.

        Raises:
            ValueError: no token was counted, or none of a domain.
        """
        num_tokens = int(self._tokens_S.sum())
        check_some_tokens(num_tokens)
        documents_D = np.bincount(self._domain_of_document_S[self._tokens_S > 0], minlength=len(self.domains))
        if not documents_D.all():
            missing = self.domains[int(np.argmin(documents_D))]
            raise ValueError(f"domains ({missing}) must have at least 1 token each; leave it out or pass its documents")
        tokens_G = np.zeros(self.num_groups, dtype=np.int64)
        np.add.at(tokens_G, self._group_of_document_S, self._tokens_S)
        # A document without tokens, permuted, would take a domain's place without filling it.
        kept_G = tokens_G > 0
        domain_G, tokens_G = self._domain_of_group_G[kept_G], tokens_G[kept_G]
        rng = np.random.default_rng(_NULL_SEED)
        domain_PG = np.stack([domain_G, *(rng.permutation(domain_G) for _ in range(_PERMUTATIONS))])
        layers = [
            _layer_figures(picks_GE[kept_G], tokens_G, domain_PG, len(self.domains)) for picks_GE in self._picks_LGE
        ]
        share_LDE, low_LDE, high_LDE = (np.stack([layer[index] for layer in layers]) for index in range(3))
        information_LP = np.stack([layer[3] for layer in layers])
        # a permutation that only swaps equals gives the same information, up to the rounding of its sum
        reached_LP = information_LP >= information_LP[:, :1] - 1e-12
        outside_LDE = (share_LDE < low_LDE) | (share_LDE > high_LDE)
        null_L = information_LP[:, 1:].mean(axis=1)
        return DomainSpecialisation(
            num_tokens=num_tokens,
            num_documents=int(documents_D.sum()),
            num_groups=len(tokens_G),
            share_null_uniform=self.shape.num_experts_per_tok / self.shape.num_experts,
            domains=tuple(
                DomainShares(
                    domain=name,
                    num_documents=int(documents_D[domain]),
                    num_tokens=int(tokens_G[domain_G == domain].sum()),
                    share=_nested(share_LDE[:, domain]),
                    share_null_permuted_low=_nested(low_LDE[:, domain]),
                    share_null_permuted_high=_nested(high_LDE[:, domain]),
                )
                for domain, name in enumerate(self.domains)
            ),
            information_bits=tuple(information_LP[:, 0].tolist()),
            information_bits_null=tuple(null_L.tolist()),
            information_p_value=tuple(reached_LP.mean(axis=1).tolist()),
            outside_share=tuple(outside_LDE.mean(axis=(1, 2)).tolist()),
            mean_information_bits=float(information_LP[:, 0].mean()),
            mean_information_bits_null=float(null_L.mean()),
        )


def domain_picks(picks_SE: NDArray[np.float64], domain_S: NDArray[np.integer], num_domains: int) -> NDArray[np.float64]:
    """Sums over each domain's documents, float64 [domains, experts], exact for counts below 2^53."""
    of_domain_DS = (domain_S == np.arange(num_domains)[:, None]).astype(np.float64)
    return of_domain_DS @ picks_SE


def _layer_figures(
    picks_SE: NDArray[np.integer], tokens_S: NDArray[np.int64], domain_PS: NDArray[np.integer], num_domains: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Shares of the true domains (the first row of `domain_PS`), their null's ends, and every row's information."""
    # tokens as one more column: they are summed over documents as picks are
    counts_SE = np.column_stack([picks_SE, tokens_S]).astype(np.float64)
    sums_PDE = np.stack([domain_picks(counts_SE, domain_S, num_domains) for domain_S in domain_PS])
    share_PDE = sums_PDE[..., :-1] / sums_PDE[..., -1:]
    low_DE, high_DE = np.quantile(share_PDE[1:], _NULL_INTERVAL, axis=0)
    information_P = np.array([mutual_information_bits(sums_DE)[0] for sums_DE in sums_PDE[..., :-1].astype(np.int64)])
    return share_PDE[0], low_DE, high_DE, information_P


def _groups(
    domain_of_document_S: NDArray[np.int64], num_domains: int, max_groups: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Group of each document, dealt out in turn within its domain, and the domain of each group."""
    per_domain = max(1, max_groups // num_domains)
    order_S = np.argsort(domain_of_document_S, kind="stable")
    first_D = np.searchsorted(domain_of_document_S[order_S], np.arange(num_domains))
    place_S = np.empty_like(domain_of_document_S)
    place_S[order_S] = np.arange(len(order_S)) - first_D[domain_of_document_S[order_S]]
    group_of_document_S = domain_of_document_S * per_domain + place_S % per_domain
    return group_of_document_S, np.repeat(np.arange(num_domains), per_domain)


def _nested(values_LE: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values_LE.tolist())


def _check_indices(name: str, indices: NDArray[np.integer], limit: int, advice: str) -> NDArray[np.int64]:
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise ValueError(f"{name} ({indices.dtype} {list(indices.shape)}) must be integers in one dimension; {advice}")
    check_id_range(indices, limit, name=name, advice=advice)
    return indices.astype(np.int64)
