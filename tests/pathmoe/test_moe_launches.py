"""What one MoE layer launches on a GPU, counted with its kernels in Triton's interpreter."""

# Shapes: B batch, S sequence, T = B*S tokens, E experts, K experts per token, D hidden, F expert width.

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bounds
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from pathmoe import PathMoEConfig
from pathmoe.moe import MoELayer
from pathmoe.routers import LayerRouter, build_router
from pathmoe.routing import Routing

interpreter = pytest.importorskip("triton.runtime.interpreter", reason="Triton is for Linux")
launch = pytest.importorskip("pathmoe_kernels.launch")

README = (Path(__file__).resolve().parents[2] / "kernels" / "README.md").read_text()

# `expert_mlp` is also the name of a function of the package, and hides the module.
OPS = [sys.modules[f"pathmoe_kernels.{name}"] for name in ("route", "sort", "expert_mlp")]

WITHOUT_LAUNCH = {
    "_unsafe_view",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "promote_types",
}
"""Operators beside what torch calls views that leave the GPU alone."""


class Launches(TorchDispatchMode):
    """Names of the kernels, and of torch's operators that would launch one or set memory, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:
            if func.namespace == "pathmoe":
                return func.redispatch(torch._C.DispatchKeySet(torch.DispatchKey.CPU), *args, **kwargs)
            # What an operator of others launches is what those launch.
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        name = func.overloadpacket.__name__
        if not func.is_view and name not in WITHOUT_LAUNCH:
            self.names.append(name)
        return func(*args, **kwargs)


@pytest.fixture
def launches_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Calls a function with the ops' kernels, and returns what it launched."""
    mode, run = Launches(), interpreter.InterpretedFunction.run

    def named_run(self: Any, *args: Any, **options: Any) -> None:
        mode.names.append(self.fn.__name__)
        with _disable_current_modes():  # the interpreter is written in torch
            run(self, *args, **options)

    def call(function: Callable[..., Any], *arguments: Any) -> list[str]:
        mode.names = []
        with monkeypatch.context() as patch, mode:
            for module in OPS:
                patch.setattr(module, "runs_triton", lambda tensor: True)
            patch.setattr(interpreter.InterpretedFunction, "run", named_run)
            function(*arguments)
        return mode.names

    launch.ticket(torch.device("cpu"))  # made once
    return call


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda x: x.T.view(-1, 2, 3)[:, 1:].unsqueeze(0).detach(), []),
        (lambda x: torch.empty_like(x), []),
        (lambda x: x.T.T.contiguous().to(x.dtype).reshape(-1), []),
        (lambda x: x.T.contiguous(), ["clone"]),
        (lambda x: x.T.reshape(-1), ["clone"]),
        (lambda x: x.to(torch.bfloat16), ["_to_copy"]),
        (lambda x: x.new_zeros(3).fill_(2), ["new_zeros", "fill_"]),
        (lambda x: x.diff(prepend=x[:, :1]), ["cat", "sub"]),
        (lambda x: x.T @ x, ["mm"]),
        (lambda x: x.sum().item(), ["sum", "_local_scalar_dense"]),
    ],
)
def test_launches_are_counted(launches_of: Callable[..., list[str]], function: Any, names: list[str]) -> None:
    assert launches_of(function, torch.ones(6, 6)) == names


# Widths that grouped GEMMs take as they are.
SIZES = {"num_experts": 6, "num_experts_per_tok": 2, "hidden_size": 32, "moe_intermediate_size": 16}


class Layer:
    """A layer with all that routing can be asked for."""

    def __init__(self, dtype: torch.dtype) -> None:
        kwargs = {"vocab_size": 11, "num_attention_heads": 2, "num_hidden_layers": 4, "router_aux_loss_coef": 0.1}
        config = PathMoEConfig(**SIZES, **kwargs, router_bias_update_rate=0.1, experts_implementation="pathmoe")
        self.moe, self.router = MoELayer(config, decides=True).to(dtype), build_router(config, 1).to(dtype)
        self.parameters = [*self.moe.parameters(), *self.router.parameters()]
        for parameter in self.parameters:
            nn.init.normal_(parameter, std=0.5)
        self.moe.selection_bias_E = torch.randn(config.num_experts)
        self.x_BSD = torch.randn(2, 20, config.hidden_size, dtype=dtype, requires_grad=True)
        self.mask_T = torch.arange(40) % 3 > 0

    def forward(self) -> None:
        self.outputs = self.moe(self.x_BSD, LayerRouter(self.router), token_mask_T=self.mask_T)

    def route(self) -> Routing:
        x_TD = self.x_BSD.view(40, -1)
        return self.moe.route(x_TD, LayerRouter(self.router), None, None, self.mask_T, keep_logits=False)

    def backward(self, gradients: list[Tensor]) -> None:
        y_BSD, routing = self.outputs
        outputs = [y_BSD, routing.routed.logsumexp_T, routing.routed.probability_sum_E]
        torch.autograd.grad(outputs, [self.x_BSD, *self.parameters], gradients)

    def gradients(self) -> list[Tensor]:
        return [torch.randn_like(self.outputs[0]), torch.randn(40), torch.randn(SIZES["num_experts"])]


def on_paper(steps: list[bounds.Step]) -> list[str]:
    return [step.kernel for step in steps]


def plain(names: list[str]) -> list[str]:
    return [name.removeprefix("_").removesuffix("_kernel") for name in names]


def readme_counts(row: str) -> list[int]:
    (line,) = re.findall(rf"^\| {re.escape(row)} \|(.*)\|$", README, flags=re.MULTILINE)
    return [int(cell) for cell in line.split("|")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_layer_launches_what_its_roofline_lists(launches_of: Callable[..., list[str]], dtype: torch.dtype) -> None:
    shape = bounds.Shape(T=40, E=6, K=2, D=32, F=16, b=dtype.itemsize, tile=128)
    layer = Layer(dtype)
    routed, forward = plain(launches_of(layer.route)), plain(launches_of(layer.forward))
    backward = plain(launches_of(layer.backward, layer.gradients()))
    assert routed == ["route_forward", "place_rows"]
    assert forward == on_paper(bounds.forward(shape))
    assert backward == on_paper(bounds.backward(shape))
    assert readme_counts("bf16 or fp32") == [len(routed), len(forward), len(backward)]


def test_autocast_adds_casts(launches_of: Callable[..., list[str]]) -> None:
    shape = bounds.Shape(T=40, E=6, K=2, D=32, F=16, b=2, tile=128)
    layer = Layer(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        routed, forward = launches_of(layer.route), launches_of(layer.forward)
    backward = launches_of(layer.backward, layer.gradients())
    others = [[name for name in plain(names) if name != "to_copy"] for names in (forward, backward)]
    assert others == [on_paper(bounds.forward(shape)), on_paper(bounds.backward(shape))]
    assert readme_counts("fp32 with bf16 autocast") == [len(routed), len(forward), len(backward)]


def test_the_first_launch_of_a_stream_makes_its_ticket(launches_of: Callable[..., list[str]]) -> None:
    launch._ticket.cache_clear()
    layer = Layer(torch.float32)
    first, second = launches_of(layer.route), launches_of(layer.route)
    assert first == ["zeros", *second]
