"""Hashes of what was read and by what: those of documents and of their trace agree, and anything else is another."""

# Shapes: N tokens, S documents.

import copy
import hashlib
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pathmoe_eval.evaluation.identity import (
    IDENTITY,
    compared_keys,
    documents_identity,
    model_identity,
    recorded_identity,
    refuse_another_trace,
    trace_identity,
)
from pathmoe_eval.traces.routing_chunk import RoutingChunk
from pathmoe_eval.traces.trace import RoutingTrace, open_trace
from pathmoe_eval.traces.trace_header import TraceHeader
from pathmoe_eval.traces.trace_writer import TraceWriter

RUN = {"model": "m", "data": "d", "max_length": 8, "stride": 4, "dtype": "float32", "model_hash": "0123"}


def documents(*tokens_and_domains: tuple[list[int], str]) -> list[Any]:
    return [SimpleNamespace(token_ids=np.array(ids, dtype=np.int64), domain=name) for ids, name in tokens_and_domains]


def write(folder: Path, read: list[Any], identity: Any = None) -> RoutingTrace:
    header = TraceHeader(
        num_layers=1, num_experts=2, num_experts_per_tok=1, layer_names=("a",), router_of_layer=(0,), model="m",
        tokenizer="", data="d", vocab_size=1000, has_weights=False, has_logits=False, has_predicted_ids=False,
        provenance={} if identity is None else {"identity": identity},
    )  # fmt: skip
    with TraceWriter(folder, header) as writer:
        for number, document in enumerate(read):
            count = len(document.token_ids)
            if count:
                routing = {"expert_ids_NLK": np.zeros((count, 1, 1), np.uint8), "token_ids_N": document.token_ids}
                writer.append(RoutingChunk(**routing, starts_S1=np.array([0, count])), [f"{number}"], [document.domain])
    return open_trace(folder)


def test_the_hash_of_tokens_is_sha256_of_documents_that_begin_with_minus_one() -> None:
    bytes_ = struct.pack("<6i", -1, 5, 7, -1, 9, 999)
    expected = hashlib.sha256(bytes_).hexdigest()[:16]
    assert documents_identity(documents(([5, 7], ""), ([], ""), ([9, 999], ""))) == {"data_hash": expected}


@settings(max_examples=25, deadline=None)
@given(
    read=st.lists(
        st.tuples(st.lists(st.integers(0, 999), max_size=12), st.sampled_from(["", "news", "code", "\u05e9"])),
        min_size=1,
        max_size=6,
    ).filter(lambda read: any(ids for ids, _ in read)),
    per_batch=st.integers(1, 20),
    data=st.data(),
)
def test_a_trace_chunk_by_chunk_has_the_hashes_of_its_documents(read, per_batch, data, tmp_path_factory) -> None:
    with pytest.MonkeyPatch.context() as patch:  # so that chunks cut documents
        patch.setattr("pathmoe_eval.traces.trace_writer._MAX_BATCH_TOKENS", per_batch)
        trace = write(tmp_path_factory.mktemp("traces") / "trace", documents(*read))
    own = {"model": "m", "data": "d"}
    assert trace_identity(trace) == own | {"num_tokens": trace.num_tokens} | documents_identity(documents(*read))

    left = count = data.draw(st.integers(1, trace.num_tokens))
    first = []
    for ids, domain in read:
        first.append((ids[:left], domain))
        left -= len(first[-1][0])
    found = trace_identity(trace.first(count))
    assert found == own | {"num_tokens": count} | documents_identity(documents(*first))


@pytest.mark.parametrize(
    "other",
    [
        [([1, 2], "a"), ([3], "b"), ([4], "c")],
        [([1, 2, 3], "a"), ([4, 0], "b")],
        [([1, 2], "a"), ([3, 4], "b")],
        [([3, 4], "b"), ([1, 2, 0], "a")],
        [([1, 2, 3, 4], "a")],
    ],
)
def test_other_tokens_another_order_or_other_borders_are_other_data(other: list[tuple[list[int], str]]) -> None:
    mine = documents_identity(documents(([1, 2, 3], "a"), ([4], "b")))
    assert documents_identity(documents(*other))["data_hash"] != mine["data_hash"]


def test_domains_are_told_apart_by_name_and_by_document() -> None:
    ids = [[1], [2], [3], [4]]
    of = {
        names: documents_identity(documents(*zip(ids, names, strict=True)))
        for names in (("x", "y", "z", "w"), ("x", "x", "y", "y"), ("x", "y", "x", "y"), ("x", "y", "y", ""))
    }
    assert len({one["domains"] for one in of.values()}) == 4
    assert len({one["data_hash"] for one in of.values()}) == 1
    shown = [one["domains"].partition(" (")[0] for one in of.values()]
    assert shown == ["x, y, z, ...", "x, y", "x, y", "x, y, none"]


def test_the_same_weights_are_the_same_model_wherever_they_lie(build_moe, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for name in ("indep", "deepseek_v3"):
        model = build_moe(name)
        model.save_pretrained(tmp_path / name)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name, attn_implementation="eager")
        strided = copy.deepcopy(model)
        for parameter in strided.parameters():
            parameter.data = parameter.data.t().contiguous().t() if parameter.dim() == 2 else parameter.data
        assert model_identity(model) == model_identity(loaded) == model_identity(strided)
        assert model_identity(model)["dtype"] == "float32"


def test_another_bit_buffer_setting_or_dtype_is_another_model(build_moe) -> None:
    model = build_moe("deepseek_v3")
    others = [copy.deepcopy(model) for _ in range(5)]
    with torch.no_grad():
        last = list(others[0].parameters())[-1]
        last.view(-1)[-1] = torch.nextafter(last.view(-1)[-1], torch.tensor(9.0))
        next(value for name, value in others[1].named_buffers() if "correction_bias" in name)[0] += 1
        first, second = (layer.mlp.gate.weight for layer in others[2].model.layers[1:])
        first.data, second.data = second.data, first.data
    others[3].config.routed_scaling_factor = 1.25
    others[4].to(torch.bfloat16)
    hashes = [model_identity(one)["model_hash"] for one in (model, *others)]
    assert len(set(hashes)) == 6
    assert model_identity(others[4])["dtype"] == "bfloat16"


def test_a_trace_says_of_its_run_what_it_was_told_and_of_that_of_others_nothing(tmp_path: Path) -> None:
    read = documents(([1, 2], "a"))
    ours = trace_identity(write(tmp_path / "ours", read, recorded_identity(RUN | {"command": "c"})))
    assert ours.keys() == set(IDENTITY)
    assert {key: ours[key] for key in RUN} == RUN
    for number, unknown in enumerate((None, "text", {"other": 1})):
        theirs = trace_identity(write(tmp_path / str(number), read, unknown))
        assert theirs == {key: ours[key] for key in ("model", "data", "num_tokens", "data_hash", "domains")}


@pytest.mark.parametrize(
    ("changes", "logits", "rule"),
    [
        ({"stride": 3}, False, "has stride 4, not 3;"),
        ({"model_hash": "4567"}, False, "has model_hash 0123, not 4567;"),
        ({"domains": "b (0)"}, False, r"has domains a \(\w+\), not b \(0\);"),
        ({}, True, "has logits False, not True;"),
    ],
)
def test_a_trace_of_another_run_is_refused(changes: dict, logits: bool, rule: str, tmp_path: Path) -> None:
    trace = write(tmp_path / "trace", documents(([1, 2], "a")), recorded_identity(RUN))
    run = trace_identity(trace)
    refuse_another_trace(trace, run, False)
    with pytest.raises(ValueError, match=rf"^--out \(.*\) must hold no trace of another run, but .*trace {rule}") as no:
        refuse_another_trace(trace, run | changes, logits)
    assert "\n" not in str(no.value)


def test_a_trace_of_a_run_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    read = documents(([1, 2], "a"))
    run = RUN | {"num_tokens": 2} | documents_identity(read)
    with pytest.raises(ValueError, match=r"has max_length unknown, not 8; choose another folder, remove .*trace, or"):
        refuse_another_trace(write(tmp_path / "trace", read), run, False)


def test_names_are_compared_only_where_a_hash_does_not_tell() -> None:
    named = {"model": "a", "data": "b"}
    assert compared_keys(named, named) == list(IDENTITY)
    hashed = named | {"model_hash": "1", "data_hash": "2"}
    assert compared_keys(hashed, named) == list(IDENTITY)
    assert set(IDENTITY) - set(compared_keys(hashed, hashed)) == {"model", "data"}
