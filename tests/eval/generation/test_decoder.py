"""Decoding from shared caches against a forward of each whole sequence, and tokens counted by hand."""

# Shapes: R rows, V vocabulary, L MoE layers, K experts per token.

import numpy as np
import pytest
import torch

from pathmoe_eval.generation.decoder import Decoder
from pathmoe_eval.generation.row_caches import join_rows, select_rows
from pathmoe_eval.traces.recorder import RoutingRecorder

PROMPT = [5, 9, 2, 30, 11, 7]
FIRST = [3, 17, 8]
STEPS = 6


def grown(model):
    """Three sequences from one prompt, each going on with its likeliest tokens; scores and routing, step by step."""
    with Decoder(model) as decoder:
        decoded = decoder.prefill(PROMPT)
        prompt_routing = decoded.expert_ids
        cache, rows, scores, routing = select_rows(decoded.cache, [0, 0, 0]), [[token] for token in FIRST], [], []
        for _ in range(STEPS):
            decoded = decoder.step(cache, [row[-1] for row in rows])
            cache = decoded.cache
            scores.append(decoded.log_probability_RV)
            routing.append(decoded.expert_ids)
            for row, log_V in zip(rows, decoded.log_probability_RV, strict=True):
                row.append(int(log_V.argmax()))
    assert decoder.num_forwarded == len(PROMPT) + STEPS * len(FIRST)
    assert decoder.num_steps == 1 + STEPS
    return rows, np.stack(scores, axis=1), prompt_routing, np.stack(routing, axis=1)


def check_against_whole_forwards(model):
    rows, scores, prompt_routing, routing = grown(model)
    for row, of_row, routed in zip(rows, scores, routing, strict=True):
        with RoutingRecorder(model) as recorder, torch.inference_mode():
            logits = model(input_ids=torch.tensor([PROMPT + row[:-1]])).logits[0].double()
        recorded = recorder.take().expert_ids_NLK
        log = logits.log_softmax(-1).numpy()[len(PROMPT) :]
        np.testing.assert_allclose(of_row, log, rtol=0, atol=2e-5)
        assert row[1:] == log.argmax(axis=-1).tolist()
        np.testing.assert_array_equal(prompt_routing, recorded[: len(PROMPT)])
        np.testing.assert_array_equal(routed, recorded[len(PROMPT) :])


def test_ours_decode_as_without_a_cache(build_moe, router):
    check_against_whole_forwards(build_moe(router))


def test_other_families_decode_as_without_a_cache(build_moe, family):
    check_against_whole_forwards(build_moe(family))


def test_rows_of_other_prefixes_share_a_forward(build_moe):
    model = build_moe("path_b4")
    with Decoder(model) as decoder:
        caches = [decoder.prefill(prefix).cache for prefix in ([5, 9, 2], [1, 4, 30])]
        together = decoder.step(join_rows(caches), [3, 8])
        for row, token in enumerate((3, 8)):
            alone = decoder.step(caches[row], [token])
            np.testing.assert_allclose(together.log_probability_RV[row], alone.log_probability_RV[0], rtol=0, atol=1e-5)
            np.testing.assert_array_equal(together.expert_ids[row], alone.expert_ids[0])


def test_scores_that_are_no_numbers_are_refused(build_moe):
    model = build_moe("path_b4")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with Decoder(model) as decoder, pytest.raises(ValueError, match=r"^--model \(logits that are NaN\) must .*; check"):
        decoder.prefill(PROMPT)
