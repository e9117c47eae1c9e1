"""The parts of a concentration are those of one set of counts, and its sentence tells a sample from a model."""

# Shapes: N tokens, L MoE layers.

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from pathmoe_eval.paths.concentration import concentration
from pathmoe_eval.paths.coverage import independent_top_shares
from pathmoe_eval.paths.paths import PathCounts, path_entropy
from pathmoe_eval.paths.rarefaction import rarefaction


def counted(path_ids_NL, num_experts=16):
    counts = PathCounts(num_layers=path_ids_NL.shape[1], num_experts=num_experts)
    counts.update(path_ids_NL)
    return counts


def test_the_parts_belong_together():
    path_ids_NL = np.random.default_rng(0).zipf(1.5, (2000, 3)).clip(max=16) - 1
    counts = counted(path_ids_NL)
    result = concentration(counts, [10, 2000])
    assert result.entropy == path_entropy(path_ids_NL)
    assert result.share_of_ceiling == result.entropy.entropy_bits / math.log2(2000)
    half = rarefaction(*counts.frequencies(), [1000]).entropy_bits[0]
    assert result.last_doubling_bits == result.entropy.entropy_bits - half
    assert result.rarefaction.num_tokens == (10, 2000)
    assert result.estimates.plug_in_bits == result.entropy.entropy_bits
    assert result.independence.entropy_bits == result.entropy.entropy_bits
    assert result.coverage.num_tokens == 2000
    loads = [np.bincount(column, minlength=16) / 2000 for column in path_ids_NL.T]
    assert result.coverage.share_null == pytest.approx(independent_top_shares(loads, result.coverage.top_paths))
    assert result.rank_frequency.rank[-1] == result.entropy.num_paths


def test_an_entropy_at_its_ceiling_is_said_to_be_the_samples():
    path_ids_NL = np.stack(np.unravel_index(np.arange(4096), (16, 16, 16)), axis=1)
    result = concentration(counted(path_ids_NL))
    assert (result.share_of_ceiling, result.last_doubling_bits) == (1.0, pytest.approx(1.0))
    assert result.in_words == (
        "12.00 bits are 100% of the 12.00 bits that 4,096 tokens can show, and doubling the tokens to that number "
        "added 1.00 bits (1 if every path were new, 0 if no more were to come): the sample limits this entropy; "
        "compare it at equal numbers of tokens only."
    )


def test_a_saturated_entropy_is_said_to_be_so():
    path_ids_NL = np.random.default_rng(1).integers(0, 4, (5000, 2))
    result = concentration(counted(path_ids_NL))
    assert result.last_doubling_bits < 0.01
    assert "4.00 bits are 33% of the 12.29 bits that 5,000 tokens can show" in result.in_words
    assert result.in_words.endswith("more tokens would hardly change this entropy.")


def test_one_token_gives_no_numbers_that_are_not_there():
    result = concentration(counted(np.zeros((1, 3), dtype=np.int64)))
    assert (result.share_of_ceiling, result.last_doubling_bits) == (None, None)
    assert result.in_words == "One token has no entropy."
    json.dumps(asdict(result), allow_nan=False)


@pytest.mark.parametrize("num_tokens", [2, 3, 500])
def test_results_are_plain_finite_numbers(num_tokens):
    result = concentration(counted(np.random.default_rng(2).integers(0, 16, (num_tokens, 4))))
    assert json.loads(json.dumps(asdict(result), allow_nan=False))["entropy"]["num_tokens"] == num_tokens


def test_nothing_counted_is_refused():
    with pytest.raises(ValueError, match=r"^num_tokens \(0\) must be at least 1; "):
        concentration(PathCounts(num_layers=2, num_experts=2))
