"""trace.json: what it says, and what is refused of it."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from pathmoe_eval.traces.trace_header import TraceHeader, TraceIndex, read_index, token_columns, tokens_schema

FIELDS = {
    "num_layers": 2,
    "num_experts": 4,
    "num_experts_per_tok": 3,
    "layer_names": ("a", "b"),
    "router_of_layer": (0, 1),
    "model": "m",
    "tokenizer": "",
    "data": "d",
    "vocab_size": 10,
    "has_weights": True,
    "has_logits": True,
    "has_predicted_ids": True,
}


def make_index(**changes):
    sizes = {"num_tokens": 5, "num_sequences": 1, "tokens_per_batch": 3, "tokens_bytes": 100, "sequences_bytes": 50}
    return TraceIndex(header=TraceHeader(**(FIELDS | changes)), **sizes)


def test_an_index_is_read_as_it_was_written(tmp_path):
    index = make_index(provenance={"versions": {"torch": "2"}, "seeds": [1, 2]}, is_sorted_by_weight=False)
    (tmp_path / "trace.json").write_text(index.to_json())
    assert read_index(tmp_path) == index
    written = json.loads(index.to_json())
    assert written["format_version"] == 1
    header = asdict(index.header) | {"layer_names": ["a", "b"], "router_of_layer": [0, 1]}
    assert written.items() >= header.items()


def test_columns_are_those_that_the_header_promises():
    header = make_index().header
    found = {column.attribute: (column.dtype, column.shape, column.size) for column in token_columns(header)}
    assert found == {
        "expert_ids_NLK": (np.uint8, (2, 3), 6),
        "token_ids_N": (np.int32, (), 1),
        "weights_NLK": (np.float32, (2, 3), 6),
        "logits_NLE": (np.float32, (2, 4), 8),
        "predicted_ids_N": (np.int32, (), 1),
    }
    assert tokens_schema(header).names == ["expert_ids", "token_ids", "weights", "logits", "predicted_ids"]
    bare = make_index(has_weights=False, has_logits=False, has_predicted_ids=False).header
    assert tokens_schema(bare).names == ["expert_ids", "token_ids"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, r"num_layers \(0\) must be at least 1"),
        ({"num_experts": 0}, r"num_experts \(0\) must be between 1 and 65536"),
        ({"num_experts": 65537}, r"num_experts \(65537\) must be between 1 and 65536"),
        ({"num_experts_per_tok": 5}, r"num_experts_per_tok \(5\) must be between 1 and num_experts \(4\)"),
        ({"num_experts_per_tok": 0}, r"num_experts_per_tok \(0\) must be between 1 and"),
        ({"layer_names": ("a",)}, r"^layer_names \(1 of them\) must be as many as num_layers \(2\); take"),
        ({"router_of_layer": (0, 0, 0)}, r"^router_of_layer \(3 of them\) must be as many as num_layers \(2\); take"),
        ({"vocab_size": 0}, r"vocab_size \(0\) must be between 1 and 2147483648"),
    ],
)
def test_a_header_that_no_model_has_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TraceHeader(**(FIELDS | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, r"format_version \(2\) must be 1; read it with the release that wrote it"),
        ({"format_version": None}, r"format_version \(None\) must be 1"),
        ({"model": None}, r"model \(None\) must be of the type that was written"),
        ({"num_tokens": 5.0}, r"num_tokens \(5\.0\) must be of the type"),
        ({"num_layers": True}, r"num_layers \(True\) must be of the type"),
        ({"layer_names": "ab"}, r"layer_names \('ab'\) must be of the type"),
        ({"layer_names": ["a", 1]}, r"layer_names \(\['a', 1\]\) must be of the type"),
        ({"router_of_layer": [0, None]}, r"router_of_layer \(\[0, None\]\) must be of the type"),
        ({"num_sequences": 0}, r"num_sequences \(0\) must be at least 1"),
        ({"num_experts": 2}, r"trace\.json: num_experts_per_tok \(3\) must be between 1 and num_experts \(2\)"),
        ({"colour": "red"}, r"colour \(unknown\) must be as it was written"),
    ],
)
def test_a_changed_index_is_refused(tmp_path, changes, message):
    (tmp_path / "trace.json").write_text(json.dumps(json.loads(make_index().to_json()) | changes))
    with pytest.raises(ValueError, match=message) as error:
        read_index(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", [*FIELDS, "provenance", "num_tokens", "tokens_bytes"])
def test_an_index_without_a_key_is_refused(tmp_path, key):
    values = json.loads(make_index().to_json())
    del values[key]
    (tmp_path / "trace.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"{key} \(missing\) must be as it was written"):
        read_index(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "1", '{"format_version"', "\x00"])
def test_a_file_that_is_no_index_is_refused(tmp_path, text):
    (tmp_path / "trace.json").write_text(text)
    with pytest.raises(ValueError, match=r"trace\.json.* must be"):
        read_index(tmp_path)


def test_a_folder_without_an_index_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=r"\(no trace\.json\) must be the folder of a trace; record one"):
            read_index(folder)
