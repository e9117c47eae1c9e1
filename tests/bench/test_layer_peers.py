# Shapes: B batch, S sequence, T = B*S tokens, K experts per token, D hidden.
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from pathmoe import PathMoEForCausalLM
from pathmoe.bench.layer import layer_shape
from pathmoe.bench.layer_peers import (
    LOADERS,
    PEERS,
    TENSORS,
    Layers,
    agreeing_layers,
    disagreement,
    results,
    same_choice,
)
from pathmoe.bench.peer import build_peer

CPU = torch.device("cpu")
SHAPE = layer_shape(num_tokens=48, hidden_size=32, width=16, num_experts=8, num_experts_per_tok=2)
ALWAYS_THERE = ("eager", "grouped_mm")


@pytest.mark.parametrize("norm_topk_prob", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_candidates_have_the_same_weights_and_give_the_same(dtype: torch.dtype, norm_topk_prob: bool) -> None:
    shape = layer_shape(48, 32, 16, 8, 2, norm_topk_prob)
    layers = agreeing_layers(shape, CPU, dtype, ALWAYS_THERE).layers
    assert list(layers) == ["ours", *ALWAYS_THERE]
    for layer in layers.values():
        assert [tuple(parameter.shape) for parameter in layer.parameters] == [(8, 32, 32), (8, 32, 16), (8, 32)]
        for mine, ours in zip(layer.parameters, layers["ours"].parameters, strict=True):
            assert mine.dtype == dtype
            assert torch.equal(mine, ours)


def test_each_peer_runs_the_implementation_of_its_name(
    operators_of: Callable[[Callable[[], object]], list[str]],
) -> None:
    candidates = agreeing_layers(SHAPE, CPU, torch.float32, ALWAYS_THERE)
    ran = {
        name: set(operators_of(partial(layer.forward, candidates.x_BSD))) for name, layer in candidates.layers.items()
    }
    assert {"pathmoe::route", "pathmoe::expert_mlp"} <= ran["ours"]
    assert {name for name in ran if any("grouped_mm" in operator for operator in ran[name])} == {"grouped_mm"}
    assert {name for name in ran if "aten::index_add_" in ran[name]} == {"eager"}


Forward = Callable[..., Tensor]


def right(experts: nn.Module, *inputs: Tensor) -> Tensor:
    return ALL_EXPERTS_FUNCTIONS["grouped_mm"](experts, *inputs)


def too_large(experts: nn.Module, *inputs: Tensor) -> Tensor:
    return 1.001 * right(experts, *inputs)


def not_a_number(experts: nn.Module, *inputs: Tensor) -> Tensor:
    return torch.nan * right(experts, *inputs)


def without_gradient_of_the_router(experts: nn.Module, *inputs: Tensor) -> Tensor:
    x_TD, ids_TK, weights_TK = inputs
    return right(experts, x_TD, ids_TK, weights_TK.detach()) + 0 * weights_TK.sum()


def that_fails(experts: nn.Module, *inputs: Tensor) -> Tensor:
    raise RuntimeError("no kernel\n  for this GPU")


def without_memory(experts: nn.Module, *inputs: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def with_peer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Layers]:
    """Layers with one more experts implementation of transformers as the only peer."""

    def layers(forward: Forward, loader: Callable[[], object] | None = None) -> Layers:
        monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS, "another", forward)
        if loader is not None:
            monkeypatch.setitem(LOADERS, "another", loader)
        return agreeing_layers(SHAPE, CPU, torch.float32, ("another",))

    return layers


WRONG = [
    (too_large, "its output differs by 0.001"),
    (not_a_number, "its output differs by nan"),
    (without_gradient_of_the_router, "its gradient of x differs by"),
]


@pytest.mark.parametrize(("forward", "words"), WRONG)
def test_nothing_is_timed_where_a_peer_that_is_always_there_does_not_agree(
    with_peer: Callable[..., Layers], capsys: pytest.CaptureFixture[str], forward: Forward, words: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        with_peer(forward)
    line = capsys.readouterr().err
    assert line.startswith(f"error: another must agree with ours, but {words}") and line.count("\n") == 1


@pytest.mark.parametrize(("forward", "words"), [*WRONG, (that_fails, "no kernel for this GPU")])
def test_an_optional_peer_that_fails_or_does_not_agree_is_left_out_with_the_reason(
    with_peer: Callable[..., Layers], forward: Forward, words: str
) -> None:
    candidates = with_peer(forward, loader=lambda: None)
    assert list(candidates.layers) == ["ours"]
    assert candidates.left_out["another"].startswith(words)


def test_a_peer_that_is_not_installed_is_left_out_with_the_reason(with_peer: Callable[..., Layers]) -> None:
    def loader() -> None:
        raise ImportError("another is not installed")

    assert with_peer(right, loader).left_out == {"another": "another is not installed"}
    assert list(with_peer(right, lambda: None).layers) == ["ours", "another"]


def test_a_failure_of_what_is_always_there_and_a_lack_of_memory_are_not_hidden(
    with_peer: Callable[..., Layers],
) -> None:
    with pytest.raises(RuntimeError, match="no kernel"):
        with_peer(that_fails)
    with pytest.raises(torch.OutOfMemoryError):
        with_peer(without_memory, loader=lambda: None)


def test_sonicmoe_needs_a_gpu_and_says_what_it_lacks() -> None:
    assert set(PEERS) == {"eager", "grouped_mm", "sonicmoe"}
    candidates = agreeing_layers(SHAPE, CPU, torch.float32)
    assert list(candidates.layers) == ["ours", "eager", "grouped_mm"]
    assert "sonic" in candidates.left_out["sonicmoe"]


def test_routers_that_choose_differently_end_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    ours, another = PathMoEForCausalLM(SHAPE.config), build_peer(SHAPE.config, seed=1)
    with pytest.raises(SystemExit, match="2"):
        same_choice(ours, another.model.layers[0].mlp, torch.randn(1, 48, 32))
    line = capsys.readouterr().err
    assert line.startswith("error: both routers must choose the same experts") and line.count("\n") == 1


def test_tokens_that_go_elsewhere_are_not_compared() -> None:
    candidates = agreeing_layers(SHAPE, CPU, torch.float32, ())
    here_S1 = (torch.arange(48) % 3 > 0)[:, None]
    kept_BSD = candidates.grad_BSD * here_S1
    y_BSD, grad_x_BSD, *_ = results(candidates.layers["ours"], candidates.x_BSD, kept_BSD)
    for compared_BSD in (y_BSD, grad_x_BSD):
        assert torch.equal(compared_BSD[0].any(dim=-1, keepdim=True), here_S1)


def test_differences_are_relative_to_the_norm() -> None:
    expected = [torch.ones(4) for _ in TENSORS]
    theirs = [tensor.clone() for tensor in expected]
    theirs[2][0] += 0.2  # a norm of 0.2 of 2
    assert disagreement(theirs, expected, tolerance=0.11) is None
    assert disagreement(theirs, expected, 0.09) == "its gradient of gate_up differs by 0.1 of its norm, above 0.09"
