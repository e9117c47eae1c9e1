"""Perplexity: sums written out, closed forms, intervals against the theory of a ratio of means."""

# Shapes: N scored tokens, M documents.

import json
import math
from dataclasses import asdict, dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pathmoe_eval.evaluation.perplexity import PerplexityResult, perplexity
from pathmoe_eval.evaluation.scoring import TokenScores


@dataclass
class Doc:
    name: str
    domain: str
    token_bytes: NDArray[np.float64]


Rows = list[tuple[str, list[float]]]
"""Domain and log-probabilities of the tokens after the first, of each document."""


def build(rows: Rows) -> tuple[TokenScores, list[Doc]]:
    lengths = [len(values) for _, values in rows]
    scores = TokenScores(
        document_N=np.repeat(np.arange(len(rows)), lengths),
        position_N=np.concatenate([np.empty(0, int), *(np.arange(1, n + 1) for n in lengths)]),
        token_id_N=np.zeros(sum(lengths), dtype=int),
        log_probability_N=np.array([value for _, values in rows for value in values], dtype=float),
    )
    # The token at position p has p + 2 bytes.
    documents = [Doc(f"d{i}", rows[i][0], np.arange(n + 1) + 2.0) for i, n in enumerate(lengths)]
    return scores, documents


def result(rows: Rows, num_resamples: int = 20, seed: int = 0) -> PerplexityResult:
    return perplexity(*build(rows), num_resamples=num_resamples, seed=seed)


some_rows = st.lists(
    st.tuples(st.sampled_from("ab"), st.lists(st.floats(-50, 0), max_size=6)), min_size=1, max_size=6
).filter(lambda rows: any(values for _, values in rows))


@given(some_rows)
def test_sums_are_those_written_out(rows: Rows) -> None:
    found = result(rows)
    parts = [(found.total, rows)]
    parts += [(part, [row for row in rows if row[0] == part.domain]) for part in found.by_domain]
    parts += [(part, [row]) for part, row in zip(found.by_document, rows, strict=True)]
    for part, of_part in parts:
        tokens = [(position, value) for _, values in of_part for position, value in enumerate(values, start=1)]
        assert part.num_documents == sum(bool(values) for _, values in of_part)
        assert part.num_tokens == len(tokens)
        assert part.num_bytes == sum(position + 2 for position, _ in tokens)
        assert part.nats == pytest.approx(-sum(value for _, value in tokens), abs=1e-12)
        if tokens:
            assert part.perplexity == pytest.approx(math.exp(part.nats / len(tokens)))
            assert part.bits_per_byte == pytest.approx(part.nats / math.log(2) / part.num_bytes)
        else:
            assert part.perplexity is None and part.bits_per_byte is None
    assert [part.domain for part in found.by_domain] == list(dict.fromkeys(d for d, values in rows if values))
    assert [(part.name, part.domain) for part in found.by_document] == [(f"d{i}", d) for i, (d, _) in enumerate(rows)]


@given(some_rows, st.randoms(use_true_random=False))
def test_the_order_of_tokens_changes_no_bit(rows: Rows, order: st.randoms) -> None:  # type: ignore[valid-type]  # hypothesis' own
    scores, documents = build(rows)
    shuffled = list(range(len(scores.document_N)))
    order.shuffle(shuffled)  # type: ignore[attr-defined]  # a random.Random
    moved = TokenScores(**{name: values[shuffled] for name, values in vars(scores).items()})
    assert perplexity(scores, documents, num_resamples=5) == perplexity(moved, documents, num_resamples=5)


def test_uniform_predictions_have_the_perplexity_of_their_number() -> None:
    found = result([("a", [-math.log(64)] * 5), ("b", [-math.log(64)] * 9)])
    assert found.total.perplexity == pytest.approx(64)
    assert found.total.perplexity_interval == pytest.approx((64, 64))
    assert found.by_domain[0].perplexity_interval is None and found.by_domain[0].bits_per_byte_interval is None


def test_duplicating_the_data_changes_the_sums_and_not_the_figures() -> None:
    rows: Rows = [("a", [-1.0, -3.0]), ("b", [-0.5])]
    once, twice = result(rows).total, result(rows * 2).total
    assert twice.nats == 2 * once.nats and twice.perplexity == once.perplexity
    assert twice.bits_per_byte == once.bits_per_byte


def many_documents(num_documents: int, seed: int) -> Rows:
    """Documents of different lengths and difficulties, whose tokens depend on each other."""
    rng = np.random.default_rng(seed)
    lengths, means = rng.integers(1, 40, num_documents), rng.gamma(4.0, 0.6, num_documents)
    return [("a", list(-mean * rng.uniform(0.5, 1.5, n))) for n, mean in zip(lengths, means, strict=True)]


def test_the_interval_is_that_of_the_ratio_estimator() -> None:
    rows = many_documents(800, seed=0)
    found = result(rows, num_resamples=4000).total
    nats_M = np.array([-sum(values) for _, values in rows])
    tokens_M = np.array([len(values) for _, values in rows])
    mean = nats_M.sum() / tokens_M.sum()
    # Delta method: the variance of a ratio of means over independent documents.
    deviation = np.std(nats_M - mean * tokens_M) / tokens_M.mean() / math.sqrt(len(rows))
    assert found.perplexity_interval is not None
    low, high = np.log(found.perplexity_interval)
    assert (low, high) == pytest.approx((mean - 1.96 * deviation, mean + 1.96 * deviation), abs=0.12 * deviation)


def test_the_interval_is_the_percentiles_of_resampled_documents() -> None:
    rows = many_documents(12, seed=1)
    rng = np.random.default_rng(5)
    ratios = []
    for _ in range(4000):
        drawn = [rows[number][1] for number in rng.integers(0, len(rows), len(rows))]
        ratios.append(-sum(map(sum, drawn)) / sum(map(len, drawn)))
    found = result(rows, num_resamples=4000).total.perplexity_interval
    assert found is not None
    # Both are percentiles of finite samples.
    assert np.log(found) == pytest.approx(np.percentile(ratios, [2.5, 97.5]), abs=0.2 * np.std(ratios))


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    everything = many_documents(20_000, seed=2)
    truth = math.exp(-sum(sum(v) for _, v in everything) / sum(len(v) for _, v in everything))
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        rows = [everything[number] for number in rng.integers(0, len(everything), 100)]
        interval = result(rows, num_resamples=400).total.perplexity_interval
        assert interval is not None
        hits += interval[0] <= truth <= interval[1]
    # 95% nominal; four standard deviations of 300 draws.
    assert hits / 300 == pytest.approx(0.95, abs=0.05)


def test_the_seed_decides_the_interval_and_nothing_else() -> None:
    rows = many_documents(30, seed=4)
    first, again, other = result(rows, seed=1), result(rows, seed=1), result(rows, seed=2)
    assert first == again
    assert first.total.perplexity == other.total.perplexity
    assert first.total.perplexity_interval != other.total.perplexity_interval


def test_more_documents_than_a_batch_of_the_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = many_documents(30, seed=6)
    whole = result(rows)
    monkeypatch.setattr("pathmoe_eval.bootstrap._CELLS_PER_BATCH", 1)
    assert result(rows) == whole


def test_what_is_beyond_floats_is_none_and_all_of_it_is_json() -> None:
    found = result([("a", [-800.0]), ("a", [-800.0]), ("b", [])])
    assert found.total.perplexity is None and found.total.perplexity_interval is None
    assert found.total.bits_per_byte is not None
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["total"]["nats"] == 1600.0


def test_bad_input_is_refused() -> None:
    scores, documents = build([("a", [-1.0]), ("b", [-1.0])])
    with pytest.raises(ValueError, match=r"scores \(document 1\) must be of the 1 documents given; pass all of them"):
        perplexity(scores, documents[:1])
    with pytest.raises(ValueError, match=r"--num_resamples \(1\) must be at least 2; raise it"):
        perplexity(scores, documents, num_resamples=1)
    with pytest.raises(ValueError, match=r"--confidence \(1\.0\) must lie between 0 and 1; change it"):
        perplexity(scores, documents, confidence=1.0)
    with pytest.raises(ValueError, match=r"--data \(0 scored tokens\) must hold a document of at least 2 tokens; give"):
        perplexity(*build([("a", [])]))
