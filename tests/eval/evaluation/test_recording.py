"""Documents recorded in windows, against forwards of the model by hand."""

# Shapes: N tokens, L MoE layers, K experts per token, V vocabulary.

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from pathmoe import PathMoEConfig, PathMoEForCausalLM
from pathmoe.data import train_bpe
from pathmoe_eval.evaluation.evaluated_data import EvaluatedData, EvaluatedDocument, read_evaluated
from pathmoe_eval.evaluation.evaluated_model import EvaluatedModel
from pathmoe_eval.evaluation.recording import record, score_function
from pathmoe_eval.evaluation.scoring import join_scores, scored_batches
from pathmoe_eval.evaluation.windows import score_windows
from pathmoe_eval.traces.recorded_routing import RecordedRouting
from pathmoe_eval.traces.recorder import RoutingRecorder
from pathmoe_eval.traces.trace import RoutingTrace, open_trace

SHAPE: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "num_experts_per_tok": 2,
    "initializer_range": 0.4,
}  # fmt: skip
OURS = SHAPE | {"num_experts": 4, "moe_intermediate_size": 8}
DEEPSEEK = SHAPE | {
    "intermediate_size": 8, "moe_intermediate_size": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "num_key_value_heads": 2, "kv_lora_rank": 4, "q_lora_rank": 4, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4, "v_head_dim": 4,
}  # fmt: skip


@cache
def language_model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "mixtral":
        config = MixtralConfig(**SHAPE, intermediate_size=8, num_local_experts=4, num_key_value_heads=2)
        return MixtralForCausalLM(config).eval()
    if kind == "deepseek":
        return DeepseekV3ForCausalLM(DeepseekV3Config(**DEEPSEEK)).eval()
    return PathMoEForCausalLM(PathMoEConfig(**OURS, scoring_func=kind, layers_per_router=[2, 1])).eval()


@cache
def evaluated(kind: str) -> EvaluatedModel:
    tokenizer = train_bpe(["a text of a few words, more or less, to learn from"], 280)
    return EvaluatedModel(
        model=language_model(kind), tokenizer=tokenizer, name="a model", ends_documents=True, run_data=None
    )


@pytest.fixture
def documents(tmp_path: Path) -> list[EvaluatedDocument]:
    for name, text in {"a": "some words of a text, a longer one", "b": "x", "c": "words " * 9}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    return list(read_evaluated(EvaluatedData(data=str(tmp_path)), evaluated("softmax")))


def recorded(kind: str, documents: list[EvaluatedDocument], folder: Path, **options: Any) -> RoutingTrace:
    record(evaluated(kind), documents, folder, data="texts", **options)
    return open_trace(folder)


@pytest.mark.parametrize(("max_length", "stride"), [(1000, 1000), (8, 8), (8, 3), (7, 1)])
@pytest.mark.parametrize("kind", ["softmax", "mixtral", "deepseek"])
def test_each_token_is_recorded_once_as_the_model_routed_it_there(
    kind: str, max_length: int, stride: int, documents: list[EvaluatedDocument], tmp_path: Path
) -> None:
    options = {"max_length": max_length, "stride": stride}
    trace = recorded(kind, documents, tmp_path / "trace", logits=True, **options)
    (chunk,) = trace.chunks()
    assert chunk.token_ids_N.tolist() == [id for document in documents for id in document.token_ids.tolist()]
    assert trace.sequences()["name"].to_pylist() == ["a.txt", "b.txt", "c.txt"]
    assert trace.sequences()["domain"].to_pylist() == ["a.txt", "b.txt", "c.txt"]

    row = 0
    for document in documents:
        for position in range(len(document.token_ids)):
            begin = 0  # of the first window that reaches the token
            while position >= begin + max_length:
                begin += stride
            ids = torch.from_numpy(document.token_ids[None, begin : begin + max_length])
            with RoutingRecorder(language_model(kind), logits=True) as recorder, torch.inference_mode():
                logits_V = language_model(kind)(ids).logits[0, position - begin]
            routing = recorder.take()
            assert (chunk.expert_ids_NLK[row] == routing.expert_ids_NLK[position - begin]).all()
            assert chunk.logits_NLE is not None and routing.logits_NLE is not None
            assert (chunk.logits_NLE[row] == routing.logits_NLE[position - begin]).all()
            assert chunk.predicted_ids_N is not None and chunk.predicted_ids_N[row] == logits_V.argmax()
            row += 1
    assert row == trace.num_tokens


def test_scores_are_those_without_a_recorder(documents: list[EvaluatedDocument], tmp_path: Path) -> None:
    model, options = evaluated("softmax"), {"max_length": 8, "stride": 3}
    scores = record(model, documents, tmp_path / "trace", data="texts", **options)
    alone = join_scores(scored_batches(model.model, score_windows(documents, **options)))
    assert np.array_equal(scores.log_probability_N, alone.log_probability_N)
    assert np.array_equal(scores.position_N, alone.position_N)


def test_the_header_says_what_was_recorded(documents: list[EvaluatedDocument], tmp_path: Path) -> None:
    header = recorded("softmax", documents, tmp_path / "trace", max_length=8, stride=8, provenance={"a": 1}).header
    assert (header.num_layers, header.num_experts, header.num_experts_per_tok) == (3, 4, 2)
    assert (header.router_of_layer, header.vocab_size, header.model) == ((0, 0, 1), 300, "a model")
    assert (header.data, header.has_logits, dict(header.provenance)) == ("texts", False, {"a": 1})


@pytest.mark.parametrize(
    ("kind", "function", "how"),
    [
        ("softmax", "softmax", "config"),
        ("sigmoid", "sigmoid", "config"),
        ("mixtral", "softmax", "weights"),
        ("deepseek", "sigmoid", "weights"),
    ],
)
def test_the_score_function_is_found(
    kind: str, function: str, how: str, documents: list[EvaluatedDocument], tmp_path: Path
) -> None:
    trace = recorded(kind, documents, tmp_path / "trace", max_length=8, stride=8, logits=True)
    provenance = trace.header.provenance
    assert (provenance["score_function"], provenance["score_function_from"]) == (function, how)


def routing_of(num_experts_per_tok: int, function: str) -> RecordedRouting:
    config = PathMoEConfig(**OURS | {"num_experts_per_tok": num_experts_per_tok}, scoring_func=function)
    with RoutingRecorder(model := PathMoEForCausalLM(config), weights=True, logits=True) as recorder:
        model(torch.ones(1, 3, dtype=torch.long))
    return recorder.take()


@pytest.mark.parametrize("num_experts_per_tok", [1, 2])
@pytest.mark.parametrize("made_by", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"scoring_func": "softmax"}, "softmax"),
        ({"scoring_func": "sigmoid"}, "sigmoid"),
        ({"expert_selection_fn": "sigmoid"}, "sigmoid"),
        ({"scoring_func": "sqrtsoftplus"}, None),
        ({}, None),
    ],
)
def test_the_configuration_tells_the_score_function_else_the_weights_of_two_experts(
    fields: dict[str, str], says: str | None, made_by: str, num_experts_per_tok: int
) -> None:
    found = score_function(PreTrainedConfig(**fields), routing_of(num_experts_per_tok, made_by))
    expected = (says, "config") if says else ("softmax", "assumed")
    if not fields and num_experts_per_tok == 2:
        expected = (made_by, "weights")
    assert (found["score_function"], found["score_function_from"]) == expected


def test_a_recording_that_fails_leaves_no_trace(documents: list[EvaluatedDocument], tmp_path: Path) -> None:
    broken = PathMoEForCausalLM(PathMoEConfig(**OURS))
    with torch.no_grad():
        broken.lm_head.weight[7] = torch.nan
    model = EvaluatedModel(
        model=broken.eval(), tokenizer=evaluated("softmax").tokenizer, name="m", ends_documents=True, run_data=None
    )
    with pytest.raises(ValueError, match="must be finite"):
        record(model, documents, tmp_path / "out" / "trace", max_length=8, stride=8, data="texts")
    assert not (tmp_path / "out" / "trace").exists()
    assert not list((tmp_path / "out").glob(".*"))


def test_a_model_without_routers_is_refused(documents: list[EvaluatedDocument], tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    dense = LlamaForCausalLM(
        LlamaConfig(vocab_size=300, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    model = EvaluatedModel(
        model=dense.eval(), tokenizer=evaluated("softmax").tokenizer, name="m", ends_documents=True, run_data=None
    )
    with pytest.raises(ValueError, match=r"model \(LlamaForCausalLM\) must have routers; pass a mixture-of-experts"):
        record(model, documents, tmp_path / "trace", max_length=8, stride=8, data="texts")
