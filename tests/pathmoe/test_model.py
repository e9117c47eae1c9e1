"""The language model's forward: padding, routing precision, losses, checkpoints, bad numbers."""

# Shapes: B batch, S sequence, T = B*S tokens, D hidden, E experts, K experts per token, L layers.

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func

from pathmoe import PathMoEConfig, PathMoEForCausalLM
from pathmoe.losses import routing_losses
from pathmoe.routing import decide

ROUTERS = sorted((Path(__file__).resolve().parents[2] / "configs" / "routers").glob("*.yaml"))
VOCABULARY = 40
# Nine layers, so that neither blocks of four nor of eight divide them.
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 9,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 16,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    # Wide enough for uneven routing and logits that differ.
    "initializer_range": 0.15,
}

IMPORTING_INDUCTOR = "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"
every_router = pytest.mark.parametrize("router", ROUTERS, ids=lambda path: path.stem)


def build(router: Path | None = None, **fields: Any) -> PathMoEForCausalLM:
    from_yaml = yaml.safe_load(router.read_text())["model"]["config"] if router else {}
    return PathMoEForCausalLM(PathMoEConfig(**SHAPE | from_yaml | fields)).eval()


def tokens(*shape: int) -> Tensor:
    return torch.randint(1, VOCABULARY, shape)


def next_tokens(input_ids: Tensor) -> Tensor:
    """Aligned targets; none where the token or the next one is padding (0)."""
    following = torch.nn.functional.pad(input_ids, (0, 1))[:, 1:]
    return following.masked_fill((input_ids == 0) | (following == 0), -100)


def restarting_positions(lengths: list[int]) -> Tensor:
    return torch.cat([torch.arange(length) for length in lengths])[None]


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_padding_counts_neither_as_targets_nor_as_load(left: bool) -> None:
    model = build(router_aux_loss_coef=0.1, router_z_loss_coef=0.1, layers_per_decision=2, layers_per_router=4)
    long, short, padding = tokens(1, 9), tokens(1, 4), torch.zeros(1, 5, dtype=torch.int64)
    row = torch.cat([padding, short] if left else [short, padding], dim=1)
    batch = torch.cat([long, row])
    padded = model(batch, attention_mask=(batch != 0).long(), shift_labels=next_tokens(batch))

    # The same two sequences one behind the other need no padding.
    packed = model(
        torch.cat([long, short], dim=1),
        position_ids=restarting_positions([9, 4]),
        shift_labels=torch.cat([next_tokens(long), next_tokens(short)], dim=1),
    )
    for name in ("loss", "cross_entropy", "aux_loss", "z_loss"):
        # Positions shift by the padding, to which the rotary embedding is blind up to rounding.
        torch.testing.assert_close(getattr(padded, name), getattr(packed, name), atol=1e-5, rtol=0)
    assert packed.aux_loss > 0 and packed.z_loss > 0


@every_router
def test_routes_in_fp32_under_autocast(router: Path) -> None:
    model = build(router)
    seen: dict[int, Tensor] = {}
    for layer, decoder_layer in enumerate(model.model.layers):
        decoder_layer.mlp.register_forward_pre_hook(lambda _, args, layer=layer: seen.update({layer: args[0]}))
    input_ids = tokens(2, 8)
    for keep_logits in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            output = model(input_ids, labels=input_ids, output_router_logits=keep_logits)
        assert output.loss.dtype == torch.float32
        assert all(routing.expert_weights_TK.dtype == torch.float32 for routing in output.routings)
        assert not keep_logits or all(routing.logits_TE.dtype == torch.float32 for routing in output.routings)
        if model.config.router_type == "linear":
            plan = model.model.sharing
            for layer in plan.deciding_layers:
                matrix_ED = model.model.routers[plan.router_of_layer[layer]].matrix(plan.slot_of_layer[layer])
                logits_TE, routing = seen[layer].flatten(0, 1).float() @ matrix_ED.T, output.routings[layer]
                assert torch.equal(routing.routed.logsumexp_T, logits_TE.logsumexp(dim=-1))
                assert not keep_logits or torch.equal(routing.logits_TE, logits_TE)


@every_router
@torch.no_grad()
def test_returns_router_logits_of_the_layers_that_decide(router: Path) -> None:
    model = build(router)
    input_ids = tokens(2, 7)
    output = model(input_ids, output_router_logits=True)
    assert len(output.routings) == 9
    deciding = [output.routings[layer] for layer in model.model.sharing.deciding_layers]
    assert len(output.router_logits) == len(deciding) == (2 if router.stem == "mono_b8" else 9)
    for logits_TE, routing in zip(output.router_logits, deciding, strict=True):
        assert logits_TE.shape == (14, 6)
        assert torch.equal(logits_TE, routing.logits_TE)
    quiet = model(input_ids)
    assert quiet.router_logits is None
    # A router that is one matrix leaves its logits to the kernel.
    assert all((routing.logits_TE is None) == (model.config.router_type == "linear") for routing in quiet.routings)
    for routing, recorded in zip(model(input_ids, keep_router_logits=True).routings, output.routings, strict=True):
        assert torch.equal(routing.logits_TE, recorded.logits_TE)


@every_router
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_asking_for_router_logits_changes_nothing_else(router: Path, dtype: torch.dtype) -> None:
    model = build(router, router_aux_loss_coef=0.1, router_z_loss_coef=0.1, num_hidden_layers=8).to(dtype).train()
    input_ids, mask = tokens(2, 9), torch.ones(2, 9, dtype=torch.int64)
    mask[1, 6:] = 0

    def results(keep_logits: bool) -> tuple[list[Tensor], dict[str, Tensor | None]]:
        model.zero_grad()
        output = model(input_ids, attention_mask=mask, labels=input_ids, output_router_logits=keep_logits)
        output.loss.backward()
        routed = [routing.routed for routing in output.routings]
        forward = [output.loss, output.logits, *(t for r in routed for t in (*r[:-1], *r.dispatch))]
        return forward, {name: parameter.grad for name, parameter in model.named_parameters()}

    (forward, gradients), (with_logits, gradients_with_logits) = results(False), results(True)
    assert all(torch.equal(*pair) for pair in zip(forward, with_logits, strict=True))
    torch.testing.assert_close(gradients, gradients_with_logits, atol=1e-6, rtol=1e-4)


def test_whatever_runs_the_experts_gives_one_result() -> None:
    model = build(layers_per_decision=3, layers_per_router=3)
    input_ids = tokens(2, 9)
    expected = model(input_ids).logits
    for implementation in ("eager", "grouped_mm", "batched_mm"):
        model.set_experts_implementation(implementation)
        torch.testing.assert_close(model(input_ids).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_balance_loss_is_transformers_figure_of_each_layer_averaged(padded: bool) -> None:
    model = build(router_aux_loss_coef=0.3, num_hidden_layers=3)
    input_ids = tokens(2, 16)
    mask = torch.ones_like(input_ids)
    mask[1, 9:] = 0 if padded else 1
    output = model(input_ids, attention_mask=mask, labels=input_ids, output_router_logits=True)
    per_layer = [load_balancing_loss_func((logits_TE,), 6, 2, mask) for logits_TE in output.router_logits]
    pooled = load_balancing_loss_func(output.router_logits, 6, 2, mask)

    torch.testing.assert_close(output.aux_loss, torch.stack(per_layer).mean())
    torch.testing.assert_close(output.loss, output.cross_entropy + 0.3 * output.aux_loss)
    assert abs(output.aux_loss - pooled) > 1e-3


def test_a_collapsed_layer_cannot_hide_behind_another() -> None:
    # Each layer uses half of the experts, and together they use all alike.
    config = PathMoEConfig(num_experts=4, num_experts_per_tok=1, router_aux_loss_coef=1.0)
    first_TE = torch.tensor([[9.0, 0.0, -9.0, -9.0], [0.0, 9.0, -9.0, -9.0]])
    layers = [first_TE, first_TE.roll(2, dims=1)]
    pooled = load_balancing_loss_func(tuple(layers), 4, 1)
    ours, _ = routing_losses([decide(logits_TE, config) for logits_TE in layers], config)
    assert pooled == pytest.approx(1.0, abs=1e-3), "the least it can be"
    assert ours == pytest.approx(2.0, abs=1e-3)


def test_the_chunked_loss_is_the_loss() -> None:
    model = build(router_aux_loss_coef=0.1, layers_per_router=3)
    input_ids = tokens(2, 13)
    gradients = []
    for return_logits in (True, False):
        model.zero_grad()
        output = model(input_ids, labels=input_ids, return_logits=return_logits)
        assert (output.logits is None) != return_logits
        output.loss.backward()
        gradients.append({"loss": output.loss.detach()} | {name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


@every_router
@torch.no_grad()
def test_a_saved_model_loads_as_it_was(router: Path, tmp_path: Path) -> None:
    model = build(router, router_bias_update_rate=0.1)
    biases = {name: buffer for name, buffer in model.named_buffers() if name.endswith("selection_bias_E")}
    assert len(biases) == len(model.model.sharing.deciding_layers)
    for bias_E in biases.values():
        bias_E.normal_()
    input_ids = tokens(2, 8)
    expected = model(input_ids).logits
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)

    assert (tmp_path / "model.safetensors").is_file()
    assert isinstance(loaded, PathMoEForCausalLM)
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    state = loaded.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert biases.keys() <= state.keys()
    # Not to the bit: loaded weights lie in the mapped file, and MKL's GEMMs depend on where memory is aligned.
    torch.testing.assert_close(loaded(input_ids).logits, expected, rtol=1e-5, atol=1e-6)
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in loaded.named_parameters()} == trainable


def test_selection_biases_stay_in_fp32_when_weights_are_loaded_in_bf16(tmp_path: Path) -> None:
    model = build(router_bias_update_rate=0.001)
    model.model.layers[4].mlp.selection_bias_E.add_(1.001)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    layers = [candidate.model.layers[4].mlp for candidate in (loaded, model)]
    assert torch.equal(layers[0].selection_bias_E, layers[1].selection_bias_E)


@pytest.mark.parametrize("all_layers", [9, None])
def test_one_router_for_all_layers_is_one_router(all_layers: int | None) -> None:
    state = build(layers_per_router=all_layers).state_dict()
    assert [name for name in state if "router" in name] == ["model.routers.0.weight"]


@every_router
@torch.no_grad()
def test_a_bad_number_stays_in_its_sequence(router: Path) -> None:
    model = build(router)
    embeddings_BSD = model.model.embed_tokens(tokens(2, 6))
    expected = model(inputs_embeds=embeddings_BSD).logits
    embeddings_BSD[0, 3] = torch.nan
    actual = model(inputs_embeds=embeddings_BSD).logits
    assert actual[0, 3].isnan().all()
    torch.testing.assert_close(actual[1], expected[1])


@every_router
@torch.no_grad()
def test_a_bad_number_stays_with_its_token_in_an_moe_layer(router: Path) -> None:
    # Attention spreads it over the sequence, since zero times NaN is NaN even where the mask says zero.
    model = build(router)
    layer, x_BSD = model.model.layers[0].mlp, torch.randn(1, 6, 32)
    expected, routing = layer(x_BSD, model.model.router_of(0))
    x_BSD[0, 3] = torch.nan
    actual, with_nan = layer(x_BSD, model.model.router_of(0))
    others = [0, 1, 2, 4, 5]
    assert actual[0, 3].isnan().all() and with_nan.expert_weights_TK[3].isnan().all()
    assert torch.equal(with_nan.expert_ids_TK[others], routing.expert_ids_TK[others])
    torch.testing.assert_close(actual[:, others], expected[:, others])


# The first shows that a layer traces whole, forward and backward; the second takes half a minute and generates code.
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings(IMPORTING_INDUCTOR, "ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_layer_computes_the_same(backend: str) -> None:
    model = build(num_hidden_layers=2, layers_per_router=2, n_shared_experts=1).train()
    input_ids = tokens(2, 16)

    def logits_and_gradients() -> dict[str, Tensor]:
        model.zero_grad()
        output = model(input_ids, labels=input_ids, use_cache=False)
        output.loss.backward()
        return {"logits": output.logits.detach()} | {name: p.grad for name, p in model.named_parameters()}

    expected = logits_and_gradients()
    model.model.layers[1].compile(fullgraph=True, backend=backend)
    torch.testing.assert_close(logits_and_gradients(), expected, atol=1e-4, rtol=1e-4)


def test_wants_token_ids_or_embeddings_and_not_both() -> None:
    model = build(num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ValueError, match=r"exactly one of input_ids and inputs_embeds"):
        model(tokens(1, 2), inputs_embeds=torch.zeros(1, 2, 32))
