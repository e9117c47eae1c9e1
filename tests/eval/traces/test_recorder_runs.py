"""Recording under everything a model is run in: checkpointing, padding, implementations, compilation, errors."""

# Shapes: N tokens, L MoE layers, K experts per token, B batch, S sequence.

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.models.deepseek_v4 import DeepseekV4Config, DeepseekV4ForCausalLM
from transformers.models.olmoe import OlmoeConfig, OlmoeForCausalLM

from pathmoe import PathMoEConfig, PathMoEForCausalLM
from pathmoe_eval.traces.recorder import RoutingRecorder

VOCABULARY = 40
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "eos_token_id": None,
}


def ours(**fields: Any) -> PathMoEForCausalLM:
    return PathMoEForCausalLM(PathMoEConfig(**SHAPE | {"moe_intermediate_size": 8} | fields)).eval()


def olmoe(**fields: Any) -> OlmoeForCausalLM:
    return OlmoeForCausalLM(OlmoeConfig(**SHAPE | {"intermediate_size": 8} | fields)).eval()


def mono() -> PathMoEForCausalLM:
    return ours(layers_per_decision=2, layers_per_router=2)


every_model = pytest.mark.parametrize("build", [ours, mono, olmoe])


def tokens(*shape: int) -> Tensor:
    return torch.randint(2, VOCABULARY, shape)


def scored(model: PreTrainedModel, input_ids: Tensor, **inputs: Any) -> np.ndarray:
    """Expert ids [N, L, K] of a forward without gradients."""
    with RoutingRecorder(model) as recorder, torch.no_grad():
        model(input_ids=input_ids, **inputs)
    return recorder.take().expert_ids_NLK


def hooks(model: nn.Module) -> list[Any]:
    """Everything that a module holds beside its parameters, by module."""
    return [
        (set(vars(module)), *(list(hooks) for name, hooks in vars(module).items() if "_hooks" in name))
        for module in model.modules()
    ]


@pytest.mark.parametrize("reentrant", [True, False])
@every_model
def test_gradient_checkpointing_counts_once(build: Any, reentrant: bool) -> None:
    model, input_ids = build(), tokens(2, 7)
    expected_NLK = scored(model, input_ids)
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    for name, module in model.named_modules():
        if name.endswith(".experts"):
            module.register_forward_pre_hook(lambda *_: calls.append(1))
    with RoutingRecorder(model, weights=True, logits=True) as recorder:
        for _ in range(2):
            model(input_ids=input_ids, labels=input_ids, use_cache=False).loss.backward()
    assert len(calls) == 2 * 2 * 3, "each layer was computed twice"
    recorded = recorder.take()
    assert recorded.shapes == ((2, 7), (2, 7))
    np.testing.assert_array_equal(recorded.expert_ids_NLK, np.concatenate([expected_NLK] * 2))


@pytest.mark.parametrize("reentrant", [True, False])
@every_model
def test_a_checkpoint_around_the_model_counts_once(build: Any, reentrant: bool) -> None:
    model = build()
    embedded = model.get_input_embeddings()(tokens(2, 7))
    times = []
    model.model.norm.register_forward_pre_hook(lambda *_: times.append(1))
    with RoutingRecorder(model) as recorder:
        output = checkpoint(lambda x: model.model(inputs_embeds=x)[0], embedded, use_reentrant=reentrant)
        output.sum().backward()
    assert len(times) == 2, "the model was computed twice"
    assert recorder.take().shapes == ((2, 7),)


@every_model
def test_the_rows_of_a_padded_batch_are_those_of_its_mask(build: Any) -> None:
    model = build()
    long, short = tokens(1, 9), tokens(1, 4)
    input_ids = torch.cat([long, torch.cat([torch.zeros(1, 5, dtype=torch.int64), short], dim=1)])
    mask = (input_ids != 0).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    recorded_NLK = scored(model, input_ids, attention_mask=mask, position_ids=positions)
    expected_NLK = np.concatenate([scored(model, long), scored(model, short)])
    np.testing.assert_array_equal(recorded_NLK[mask.flatten().bool().numpy()], expected_NLK)


@every_model
def test_generation_is_routed_as_its_text_is_scored(build: Any) -> None:
    model, input_ids = build(), tokens(3, 5)
    with RoutingRecorder(model) as recorder:
        generated = model.generate(
            input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=6, do_sample=False
        )
    recorded = recorder.take()
    rows_BS = recorded.rows_by_sequence()
    assert rows_BS.shape == (3, 10)
    np.testing.assert_array_equal(recorded.expert_ids_NLK[rows_BS.ravel()], scored(model, generated[:, :-1]))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("experts", ["eager", "grouped_mm", "batched_mm", "pathmoe"])
@pytest.mark.parametrize("build", [ours, olmoe])
def test_any_implementation_is_recorded(build: Any, experts: str, attention: str) -> None:
    model, input_ids = build(), tokens(2, 7)
    expected_NLK = scored(model, input_ids)
    model.set_experts_implementation(experts)
    model.set_attn_implementation(attention)
    np.testing.assert_array_equal(scored(model, input_ids), expected_NLK)


def test_more_experts_than_a_byte_holds() -> None:
    recorded_NLK = scored(ours(num_experts=300), tokens(8, 32))
    assert recorded_NLK.dtype == np.uint16
    assert recorded_NLK.max() > 255


def test_what_is_taken_is_forgotten_and_the_rest_can_be_taken_later() -> None:
    model = ours()
    with RoutingRecorder(model) as recorder:
        for length in (3, 4):
            model(tokens(2, length))
        assert recorder.take().shapes == ((2, 3), (2, 4))
        model(tokens(1, 5))
    model(tokens(1, 6))
    assert recorder.take().shapes == ((1, 5),)
    with recorder:
        model(tokens(1, 2))
    assert recorder.take().shapes == ((1, 2),)


@every_model
def test_nothing_is_left_on_the_model(build: Any) -> None:
    model = build()
    before = hooks(model)
    with RoutingRecorder(model, weights=True, logits=True):
        assert hooks(model) != before
        model(tokens(1, 3))
    assert hooks(model) == before

    with pytest.raises(KeyError), RoutingRecorder(model, logits=True):
        raise KeyError
    assert hooks(model) == before


def test_a_forward_that_raised_is_none() -> None:
    model = ours()

    def fail(*_: Any) -> None:
        raise KeyError

    with RoutingRecorder(model, logits=True) as recorder:
        handle = model.model.layers[1].register_forward_hook(fail)
        with pytest.raises(KeyError):
            model(tokens(2, 3))
        handle.remove()
        model(tokens(2, 4))
    assert recorder.take().shapes == ((2, 4),)


def test_two_recorders_at_once_record_the_same() -> None:
    model = mono()
    with RoutingRecorder(model, logits=True) as outer:
        with RoutingRecorder(model) as inner:
            model(tokens(2, 4))
        model(tokens(2, 3))
    theirs, ours = outer.take(), inner.take()
    assert theirs.shapes == ((2, 4), (2, 3))
    np.testing.assert_array_equal(theirs.expert_ids_NLK[:8], ours.expert_ids_NLK)


def test_recording_changes_no_output_and_keeps_no_graph() -> None:
    model, input_ids = ours(), tokens(2, 7)
    plain = model(input_ids).logits
    with RoutingRecorder(model, weights=True, logits=True) as recorder:
        assert torch.equal(model(input_ids).logits, plain)
        assert not any(
            tensor.requires_grad
            for forward in recorder._forwards
            for tensor in (forward.weights_LTK, forward.logits_LTE)
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_a_model_compiled_inside_is_recorded_and_one_compiled_before_is_refused() -> None:
    model, input_ids = mono(), tokens(2, 7)
    expected_NLK = scored(model, input_ids)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        with RoutingRecorder(model, weights=True, logits=True) as recorder:
            compiled(input_ids)
            compiled(input_ids)
            recorded = recorder.take()
        np.testing.assert_array_equal(recorded.expert_ids_NLK, np.concatenate([expected_NLK] * 2))
        compiled(input_ids)
        with pytest.raises(ValueError, match="must have seen a forward"):
            recorder.take()  # graphs do not go on with it
        torch._dynamo.reset()
        compiled(input_ids)
        with RoutingRecorder(model) as later, pytest.raises(ValueError, match="compile it there too"):
            compiled(input_ids)
            later.take()
    torch._dynamo.reset()


def skips_its_last_layer() -> RoutingRecorder:
    model = olmoe()
    model.config.num_hidden_layers = 2  # what its forward goes by
    recorder = RoutingRecorder(model)
    with recorder:
        model(tokens(2, 3))
    return recorder


def entered_twice() -> None:
    recorder = RoutingRecorder(ours())
    with recorder, recorder:
        pass


def undeclared_router() -> None:
    with torch.device("meta"):
        model = DeepseekV4ForCausalLM(DeepseekV4Config(num_hidden_layers=2, mlp_layer_types=["hash_moe", "moe"]))
    RoutingRecorder(model)
    RoutingRecorder(model, logits=True)


def other_logits() -> None:
    model = olmoe()
    model.set_experts_implementation("eager")
    for layer in model.model.layers:
        layer.mlp.experts.num_experts = 8  # two that its router does not know
    with RoutingRecorder(model, logits=True):
        model(tokens(2, 3))


def uneven() -> None:
    model = olmoe()
    model.model.layers[1].mlp = olmoe(num_experts=8).model.layers[1].mlp
    RoutingRecorder(model)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (skips_its_last_layer, r"model \(OlmoeForCausalLM\) must call model.layers.2.mlp.experts once in a forward"),
        (entered_twice, r"recorder \(of PathMoEForCausalLM\) must not be entered while it records"),
        (lambda: RoutingRecorder(ours()).take(), r"recorder \(of PathMoEForCausalLM\) must have seen a forward"),
        (undeclared_router, r"must declare the router of model.layers.0.mlp.experts to give its logits"),
        (
            other_logits,
            r"must give model.layers.0.mlp.experts router logits \[6, 8\], not \[\[6, 6\]\]; leave logits out",
        ),
        (uneven, r"must have as many experts in each MoE layer, not \[6, 8\]"),
    ],
)
def test_bad_use_is_named_in_one_line(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
