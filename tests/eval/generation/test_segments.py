"""Segments of several depths decoded together against each alone, and options that are refused."""

# Shapes: V vocabulary.

import re

import numpy as np
import pytest

from pathmoe_eval.generation.decoder import Decoder
from pathmoe_eval.generation.segments import Row, Sampling, Segment, advance, decode_segments
from pathmoe_eval.generation.tree import CUT, END_OF_SEQUENCE, GOES_ON

EOS = frozenset({0})
SAMPLING = Sampling(temperature=1.0, top_tokens=1, max_mass=0.08, num_children=3, max_new_tokens=12)


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_segments_of_any_depth_are_decoded_together_as_alone(build_moe, batch_size):
    model = build_moe("path_b4", num_hidden_layers=4)
    places = [((number,), depth) for number, depth in enumerate([4, 0, 2, 2, 0, 7, 2])]
    prefixes = [[5, 9, *range(10, 10 + depth)] for _, depth in places]

    def decoded(numbers, size):
        found = {}
        rows = [
            Row(place=places[n][0], depth=places[n][1], segment=Segment(token_ids=[3], log_probabilities=[-1.0]))
            for n in numbers
        ]
        with Decoder(model) as decoder:
            caches = [decoder.prefill(prefixes[n]).cache for n in numbers]
            num_prefilled = decoder.num_forwarded
            decode_segments(
                decoder, rows, caches, SAMPLING, EOS, size, lambda row, cache: found.update({row.place: (row, cache)})
            )
            fed = sum(len(row.segment.expert_ids) for row, _ in found.values())
            assert decoder.num_forwarded - num_prefilled == fed
        return found

    together = decoded(range(len(places)), batch_size)
    assert len(together) == len(places)
    assert {row.segment.end for row, _ in together.values()} > {CUT}
    for number, (place, _) in enumerate(places):
        (expected, _), (row, cache) = decoded([number], 1)[place], together[place]
        assert row.segment.token_ids == expected.segment.token_ids
        assert row.segment.end == expected.segment.end
        assert [token for token, _ in row.segment.children] == [token for token, _ in expected.segment.children]
        np.testing.assert_allclose(row.segment.log_probabilities, expected.segment.log_probabilities, atol=1e-5)
        np.testing.assert_array_equal(row.segment.expert_ids, expected.segment.expert_ids)
        assert (cache is not None) == bool(row.segment.children)


@pytest.mark.parametrize(
    ("probabilities", "depth", "goes_on", "end", "num_children"),
    [
        ([0.01, 0.9, 0.09], 3, True, GOES_ON, 0),
        ([1.0, 0.0, 0.0], 3, False, END_OF_SEQUENCE, 0),
        ([0.01, 0.9, 0.09], 12, False, CUT, 0),
        ([0.3, 0.4, 0.3], 3, False, GOES_ON, 3),
        ([0.5, 0.5, 0.0], 3, False, GOES_ON, 2),
        ([0.25, 0.51, 0.24], 3, True, GOES_ON, 0),
    ],
)
def test_what_comes_next(probabilities, depth, goes_on, end, num_children):
    row = Row(place=(), depth=depth, segment=Segment())
    sampling = Sampling(temperature=0, top_tokens=1, max_mass=0.5, num_children=3, max_new_tokens=12)
    with np.errstate(divide="ignore"):
        log_V = np.log(probabilities)
    assert advance(row, log_V, sampling, EOS) == goes_on
    assert row.segment.end == end
    assert len(row.segment.children) == num_children
    if num_children:
        assert row.segment.fork_mass == pytest.approx(max(probabilities))


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("temperature", -0.1, "be at least 0 and finite"),
        ("temperature", float("nan"), "be at least 0 and finite"),
        ("top_tokens", 0, "be at least 1"),
        ("max_mass", 1.1, "be between 0 and 1"),
        ("num_children", 1, "be at least 2"),
        ("max_new_tokens", 0, "be at least 1"),
        ("seed", -1, "be at least 0"),
    ],
)
def test_refused_options(name, value, rule):
    with pytest.raises(ValueError, match=rf"^--{name} \({re.escape(str(value))}\) must {rule}; change it$"):
        Sampling(**{name: value})
