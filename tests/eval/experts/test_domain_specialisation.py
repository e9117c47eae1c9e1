"""Domain specialisation against counting by hand, its null against every permutation, and closed forms."""

# Shapes: N tokens, S documents, D domains, L MoE layers, E experts, K experts per token.

import json
import math
from dataclasses import asdict
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.experts.domain_specialisation import DomainCounts


@st.composite
def corpora(draw):
    """A model's numbers and documents' domains, expert ids, and each token's document."""
    num_experts = draw(st.sampled_from([1, 2, 6]))
    per_token = draw(st.integers(1, min(num_experts, 3)))
    num_domains, num_layers = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    num_documents = draw(st.integers(num_domains, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    domain_S = np.concatenate([np.arange(num_domains), rng.integers(0, num_domains, num_documents - num_domains)])
    # a token for the first document of each domain, then tokens of any document: some documents have none
    document_N = np.concatenate([np.arange(num_domains), rng.integers(0, num_documents, draw(st.integers(0, 40)))])
    scores = rng.random((len(document_N), num_layers, num_experts)) + domain_S[document_N][:, None, None] * 0.1
    model = {"num_layers": num_layers, "num_experts": num_experts, "num_experts_per_tok": per_token}
    corpus = {"domains": [f"domain {d}" for d in range(num_domains)], "domain_of_document_S": domain_S}
    return model | corpus, np.argsort(scores, axis=-1)[..., :per_token].astype(np.uint8), document_N


def counted(what, *chunks):
    counts = DomainCounts(**what)
    for chunk in chunks:
        counts.update(*chunk)
    return counts


def information(pairs):
    """Mutual information in bits of a list of pairs."""
    n = len(pairs)
    left, right = zip(*pairs, strict=True)
    return math.fsum(
        pairs.count(pair) / n * math.log2(pairs.count(pair) * n / (left.count(pair[0]) * right.count(pair[1])))
        for pair in set(pairs)
    )


@given(corpora())
def test_equals_brute_force(case):
    what, ids_NLK, document_N = case
    result = counted(what, (ids_NLK, document_N)).result()
    domain_N = what["domain_of_document_S"][document_N].tolist()
    assert (result.num_tokens, result.num_documents) == (len(document_N), len(set(document_N.tolist())))
    assert result.share_null_uniform == what["num_experts_per_tok"] / what["num_experts"]
    for layer in range(what["num_layers"]):
        sets = ids_NLK[:, layer].tolist()
        for domain, shares in enumerate(result.domains):
            mine = [experts for experts, of in zip(sets, domain_N, strict=True) if of == domain]
            documents = {doc for doc in document_N.tolist() if what["domain_of_document_S"][doc] == domain}
            assert (shares.domain, shares.num_tokens) == (what["domains"][domain], len(mine))
            assert shares.num_documents == len(documents)
            assert shares.share[layer] == tuple(
                sum(expert in experts for experts in mine) / len(mine) for expert in range(what["num_experts"])
            )
            assert sum(shares.share[layer]) == pytest.approx(what["num_experts_per_tok"])
        pairs = [(of, expert) for experts, of in zip(sets, domain_N, strict=True) for expert in experts]
        assert result.information_bits[layer] == pytest.approx(information(pairs), abs=1e-9)
    assert result.mean_information_bits == pytest.approx(np.mean(result.information_bits))
    assert result.mean_information_bits_null == pytest.approx(np.mean(result.information_bits_null))


@given(corpora(), st.data())
def test_batching_order_and_merging_do_not_change_one_bit(count_in_parts, case, data):
    what, *arrays = case
    assert count_in_parts(lambda: counted(what), data, *arrays).result() == counted(what, arrays).result()


@given(corpora(), st.integers(0, 2**32 - 1))
def test_relabelling_permutes_shares_and_leaves_the_information(case, seed):
    what, ids_NLK, document_N = case
    rng = np.random.default_rng(seed)
    names_LE = np.stack([rng.permutation(what["num_experts"]) for _ in range(what["num_layers"])])
    relabelled_NLK = np.stack([names_E[ids_NLK[:, layer]] for layer, names_E in enumerate(names_LE)], axis=1)
    ours, theirs = (counted(what, (ids, document_N)).result() for ids in (ids_NLK, relabelled_NLK))
    for name in ("information_bits", "information_bits_null"):
        assert getattr(theirs, name) == pytest.approx(getattr(ours, name), abs=1e-12)
    assert theirs.information_p_value == ours.information_p_value
    for mine, other in zip(ours.domains, theirs.domains, strict=True):
        for name in ("share", "share_null_permuted_low", "share_null_permuted_high"):
            renamed_LE = np.take_along_axis(np.array(getattr(other, name)), names_LE, axis=1)
            np.testing.assert_array_equal(renamed_LE, np.array(getattr(mine, name)))


def test_the_null_is_that_of_all_permutations_of_documents():
    rng = np.random.default_rng(0)
    domain_S, document_N = np.array([0, 0, 1, 1, 1, 0]), np.repeat(np.arange(6), [3, 9, 4, 7, 5, 6])
    ids_N = (rng.integers(0, 3, len(document_N)) + document_N // 3) % 3
    model = {"num_layers": 1, "num_experts": 3, "num_experts_per_tok": 1}
    what = model | {"domains": ("a", "b"), "domain_of_document_S": domain_S}
    result = counted(what, (ids_N[:, None, None], document_N)).result()
    every = [np.array(order) for order in set(permutations(domain_S.tolist()))]
    values = [information(list(zip(order[document_N].tolist(), ids_N.tolist(), strict=True))) for order in every]
    truth = information(list(zip(domain_S[document_N].tolist(), ids_N.tolist(), strict=True)))
    spread = np.std(values) / math.sqrt(200)
    assert result.information_bits_null[0] == pytest.approx(np.mean(values), abs=4 * spread)
    assert result.information_p_value[0] == pytest.approx(np.mean(np.array(values) >= truth - 1e-12), abs=0.12)
    shares_DE = np.array([[[np.mean(ids_N[o[document_N] == d] == e) for e in range(3)] for d in (0, 1)] for o in every])
    for domain, shares in enumerate(result.domains):
        for expert in range(3):
            possible = shares_DE[:, domain, expert]
            low, high = (ends[0][expert] for ends in (shares.share_null_permuted_low, shares.share_null_permuted_high))
            assert possible.min() - 1e-12 <= low <= np.median(possible) <= high <= possible.max() + 1e-12


@given(corpora(), st.integers(1, 9))
def test_groups_of_documents_change_nothing_but_the_nulls(case, max_groups):
    what, ids_NLK, document_N = case
    alone = counted(what, (ids_NLK, document_N)).result()
    counts = counted(what | {"max_groups": max_groups}, (ids_NLK, document_N))
    assert counts.num_groups == max(1, max_groups // len(what["domains"])) * len(what["domains"])
    grouped = counts.result()
    assert alone.num_groups == alone.num_documents == grouped.num_documents
    assert len(what["domains"]) <= grouped.num_groups <= min(counts.num_groups, alone.num_documents)
    assert (grouped.num_tokens, grouped.information_bits) == (alone.num_tokens, alone.information_bits)
    for ours, theirs in zip(grouped.domains, alone.domains, strict=True):
        assert (ours.share, ours.num_documents, ours.num_tokens) == (
            theirs.share, theirs.num_documents, theirs.num_tokens,
        )  # fmt: skip


def test_the_null_of_many_groups_is_as_wide_as_that_of_documents():
    rng = np.random.default_rng(6)
    domain_S = rng.integers(0, 2, 800)
    ids_NLK = np.repeat(rng.integers(0, 4, 800), 3)[:, None, None]
    documents_N = np.repeat(np.arange(800), 3)
    what = {"num_layers": 1, "num_experts": 4, "num_experts_per_tok": 1, "domains": ["a", "b"]}
    widths = []
    for max_groups in (None, 200):
        result = counted(
            what | {"domain_of_document_S": domain_S, "max_groups": max_groups}, (ids_NLK, documents_N)
        ).result()
        one = result.domains[0]
        widths.append(np.subtract(one.share_null_permuted_high[0], one.share_null_permuted_low[0]).mean())
    assert widths[1] == pytest.approx(widths[0], rel=0.25)


def test_domains_with_experts_of_their_own():
    domain_S = np.arange(40) % 2
    document_N = np.repeat(np.arange(40), 5)
    ids_NLK = domain_S[document_N][:, None, None]
    model = {"num_layers": 1, "num_experts": 2, "num_experts_per_tok": 1}
    result = counted(
        model | {"domains": ("code", "text"), "domain_of_document_S": domain_S}, (ids_NLK, document_N)
    ).result()
    assert [domain.share for domain in result.domains] == [((1.0, 0.0),), ((0.0, 1.0),)]
    assert result.information_bits == pytest.approx([1.0])
    assert result.information_p_value == pytest.approx([1 / 201])
    assert result.outside_share == (1.0,)
    assert json.loads(json.dumps(asdict(result), allow_nan=False))["domains"][0]["domain"] == "code"


def test_documents_that_differ_without_domains_stay_within_the_null():
    # each document has an expert of its own liking: permuting tokens would find domains, permuting documents does not
    rng = np.random.default_rng(3)
    domain_S, document_N = rng.permutation(np.arange(60) % 2), np.repeat(np.arange(60), 50)
    ids_NL = np.where(
        rng.random((3000, 200)) < 0.7, rng.integers(0, 4, (60, 200))[document_N], rng.integers(0, 4, (3000, 200))
    )
    model = {"num_layers": 200, "num_experts": 4, "num_experts_per_tok": 1}
    what = model | {"domains": ("a", "b"), "domain_of_document_S": domain_S}
    result = counted(what, (ids_NL[..., None], document_N)).result()
    assert result.mean_information_bits == pytest.approx(result.mean_information_bits_null, rel=0.15)
    assert np.mean(result.outside_share) == pytest.approx(0.05, abs=0.025)
    assert np.mean(np.array(result.information_p_value) <= 0.1) == pytest.approx(0.1, abs=0.06)


def test_one_domain_has_the_load_as_its_share_and_no_information():
    model = {"num_layers": 1, "num_experts": 2, "num_experts_per_tok": 1}
    what = model | {"domains": ("all",), "domain_of_document_S": np.zeros(4, dtype=int)}
    result = counted(what, (np.array([0, 0, 0, 1])[:, None, None], np.arange(4))).result()
    only = result.domains[0]
    assert only.share == only.share_null_permuted_low == only.share_null_permuted_high
    assert (result.information_bits, result.information_p_value, result.outside_share) == ((0.0,), (1.0,), (0.0,))


IDS = np.array([[[0, 1], [2, 3]]] * 3)
DOCUMENTS = np.array([0, 1, 1])


def counts_with(**changes):
    what = {"num_layers": 2, "num_experts": 4, "num_experts_per_tok": 2, "domains": ("a", "b")}
    return DomainCounts(**what | {"domain_of_document_S": np.array([0, 1])} | changes)


def result_of(ids_NLK=IDS, documents_N=DOCUMENTS):
    counts = counts_with()
    counts.update(ids_NLK, documents_N)
    return counts.result()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: counts_with(domain_of_document_S=[0, 2]), r"domain_of_document \(2\) must be at least 0 and below 2"),
        (lambda: counts_with(domain_of_document_S=[0.0]), r"domain_of_document \(float64 \[1\]\) must be integers"),
        (lambda: counts_with(num_experts=0), r"num_experts \(0\) must be at least 1"),
        (lambda: result_of(documents_N=DOCUMENTS[:2]), r"document_of_token \(\[2\]\) must be \[3\]"),
        (lambda: result_of(documents_N=DOCUMENTS - 1), r"document_of_token \(-1\) must be at least 0 and below 2"),
        (lambda: result_of(documents_N=DOCUMENTS + 1), r"document_of_token \(2\) must be at least 0 and below 2"),
        (lambda: result_of(documents_N=DOCUMENTS * 1.0), r"document_of_token \(float64 \[3\]\) must be integers"),
        (lambda: result_of(documents_N=DOCUMENTS * 0), r"domains \(b\) must have at least 1 token each"),
        (lambda: result_of(IDS + 1), r"expert_ids \(4\) must be at least 0"),
        (lambda: counts_with().result(), r"^num_tokens \(0\) must be at least 1; "),
        (
            lambda: counts_with().merge(counts_with(domains=("a", "c"))),
            r"other \(2 documents of a, c\) must have the same",
        ),
        (lambda: counts_with().merge(counts_with(domain_of_document_S=[0, 0])), r"other \(2 documents of a, b\) must"),
        (lambda: counts_with().merge(counts_with(num_layers=3)), r"other.num_layers \(3\) must equal num_layers \(2\)"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
