"""Every experts class of transformers against its own eager forward, output and all gradients; none is refused."""

# Shapes: T tokens, D hidden, E experts, K experts per token, F expert width, G = 2F.

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_tensor
from transformers import OlmoeConfig, PreTrainedConfig
from transformers.integrations.moe import use_experts_implementation
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

from pathmoe.other_experts import is_plain_swiglu

T, D, E, K, F = 9, 16, 5, 2, 12

OTHER_FORMS = {
    "AriaExperts": "transposed weights",
    "BeamExperts": "a gate of its own, in fp32",
    "DeepseekV4Experts": "a gate of its own, clamped",
    "DiffusionGemmaTextExperts": "GELU",
    "Gemma4TextExperts": "GELU",
    "Glm5NextTextExperts": "a gate of its own, clamped",
    "GptOssExperts": "biases, transposed weights, gate and up interleaved, a gate of its own",
    "HYV4Experts": "a gate of its own, clamped",
    "Inkling2Experts": "an activation of gate and up",
    "MiniMaxM3VLExperts": "a gate of its own, clamped",
    "MuseSparkExperts": "a norm after each expert",
    "NemotronHExperts": "no gate",
    "OpenAIPrivacyFilterExperts": "biases, transposed weights, a gate of its own",
}
"""All others are plain SwiGLU."""

NEVER_ASKED = {
    "AriaSharedExpertsMLP": "not routed",
    "InklingSharedExperts": "not routed",
    "DbrxExperts": "a loop of its own",
    "JetMoeParallelExperts": "a loop of its own",
    "Llama4TextExperts": "a batched product over all tokens and experts",
    "LongcatFlashExperts": "a loop of its own, with experts that pass their input on",
    "NllbMoeExperts": "a loop over modules",
    "Step3p7Experts": "a loop of its own",
    "SwitchTransformersExperts": "a loop over modules",
}
"""Experts that transformers runs by themselves, whatever `experts_implementation` is."""


def sources() -> Iterator[tuple[str, str]]:
    """Name and text of every modeling file of transformers."""
    spec = find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    for file in sorted(Path(spec.origin).parent.glob("models/*/modeling_*.py")):
        yield f"transformers.models.{file.parent.name}.{file.stem}", file.read_text(encoding="utf-8")


def decorated(text: str) -> list[str]:
    return re.findall(r"^@use_experts_implementation(?:\(.*\))?\n(?:@.*\n)*class (\w+)", text, re.MULTILINE)


CLASSES = {name: module for module, text in sources() for name in decorated(text)}


def random_parameters(module: nn.Module, std: float = 0.5) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module


def size_of(name: str) -> int | None:
    """What a field of a configuration is to be, by its name; None for what is no size."""
    if name.endswith("experts"):
        return E
    if "intermediate" in name:
        return F
    return D if name.endswith("hidden_size") else None


def tiny_config(experts_class: type[nn.Module]) -> PreTrainedConfig:
    """A configuration of the family with all that the class reads from it; what is no size is as the family has it."""
    fields = set(re.findall(r"\bconfig\.(\w+)", inspect.getsource(inspect.unwrap(experts_class.__init__))))
    for config_class in vars(sys.modules[experts_class.__module__]).values():
        if not (inspect.isclass(config_class) and issubclass(config_class, PreTrainedConfig)):
            continue
        config = config_class()
        if config.is_heterogeneous:
            config = config.per_layer_config[config.num_hidden_layers - 1]
        if all(hasattr(config, field) for field in fields):
            for field in fields:
                # A list has a size for each layer, and the class is given that of its own.
                if (size := size_of(field)) and not isinstance(getattr(config, field), list):
                    setattr(config, field, size)
            return config
    raise LookupError(f"no configuration of {experts_class.__module__} has {fields}")


def tiny_experts(name: str) -> nn.Module:
    experts_class = getattr(importlib.import_module(CLASSES[name]), name)
    more = [F] if "intermediate_size" in inspect.signature(experts_class.__init__).parameters else []
    return random_parameters(experts_class(tiny_config(experts_class), *more))


def results(experts: nn.Module, implementation: str, ids_TK: Tensor, weigh: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Output, and gradients of x, weights and parameters."""
    experts.config._experts_implementation = implementation
    generator = torch.Generator().manual_seed(1)
    # Large enough to be clamped by those that clamp.
    x_TD, weights_TK = 3 * torch.randn(T, D, generator=generator), torch.rand(T, K, generator=generator)
    upstream_TD = torch.randn(T, D, generator=generator)
    leaves = [x_TD.requires_grad_(), weights_TK.requires_grad_(), *experts.parameters()]
    y_TD = experts(x_TD, ids_TK, weigh(weights_TK))
    assert y_TD.dtype == torch.float32
    return [y_TD.detach(), *torch.autograd.grad(y_TD, leaves, upstream_TD)]


def assert_equals_eager(experts: nn.Module, ids_TK: Tensor) -> None:
    """Rows whose id is E belong to no expert: eagerly a weight of zero on any expert says the same."""
    is_none_TK = ids_TK == E
    eager_ids_TK = ids_TK.masked_fill(is_none_TK, 0)
    expected = results(experts, "eager", eager_ids_TK, lambda weights_TK: weights_TK.masked_fill(is_none_TK, 0.0))
    found = results(experts, "pathmoe", ids_TK, lambda weights_TK: weights_TK)
    assert len(found) == 3 + len(list(experts.parameters()))
    for got, want in zip(found, expected, strict=True):
        assert want.any()
        torch.testing.assert_close(got, want, rtol=0, atol=2e-6 * float(want.abs().max()))


def random_ids() -> Tensor:
    """Of all experts but one."""
    return torch.tensor([0, 1, 2, 4])[torch.rand(T, E - 1).argsort(dim=-1)[:, :K]]


@pytest.mark.parametrize("share_of_none", [0.0, 0.4])
@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_experts_class_of_transformers_is_served(name: str, share_of_none: float) -> None:
    experts = tiny_experts(name)
    assert is_plain_swiglu(experts) == (name not in OTHER_FORMS)
    assert_equals_eager(experts, random_ids().masked_fill(torch.rand(T, K) < share_of_none, E))


def test_the_sweep_misses_no_experts_class() -> None:
    others = set()
    for module, text in sources():
        names = decorated(text)
        assert len(names) == len(re.findall(r"^\s*@use_experts_implementation\b", text, re.MULTILINE)), module
        others |= set(re.findall(r"^class (\w*Experts\w*)\(nn\.Module", text, re.MULTILINE)) - set(names)
    assert others == NEVER_ASKED.keys()
    assert OTHER_FORMS.keys() <= CLASSES.keys()
    assert len(CLASSES) > 60


@use_experts_implementation(is_concatenated=False)
class InterleavedExperts(nn.Module):
    """What no model of transformers has yet: gate and up in turns, under the default gate."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * F, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, F))
        self.act_fn = nn.SiLU()

    def forward(self, hidden_states: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        gate_TEF = torch.einsum("td,efd->tef", hidden_states, self.gate_up_proj[:, ::2])
        up_TEF = torch.einsum("td,efd->tef", hidden_states, self.gate_up_proj[:, 1::2])
        y_TED = torch.einsum("tef,edf->ted", self.act_fn(gate_TEF) * up_TEF, self.down_proj)
        return (weights_TK[..., None] * y_TED.gather(1, expert_ids_TK[..., None].expand(-1, -1, D))).sum(1)


def test_interleaved_gate_and_up_are_served() -> None:
    assert_equals_eager(random_parameters(InterleavedExperts(OlmoeConfig())), random_ids())


def test_a_norm_after_each_expert_sees_no_rows_of_no_expert() -> None:
    ids_TK = torch.full((T, K), E)
    experts = tiny_experts("MuseSparkExperts")
    found = results(experts, "pathmoe", ids_TK, lambda weights_TK: weights_TK)
    assert not any(tensor.any() for tensor in found)


def gpt_oss_experts() -> nn.Module:
    return random_parameters(GptOssExperts(tiny_config(GptOssExperts)))


@pytest.mark.parametrize("name", ["OlmoeExperts", "GptOssExperts"])
def test_compiles_without_a_graph_break(name: str) -> None:
    torch.compiler.reset()
    experts = tiny_experts(name)
    experts.config._experts_implementation = "pathmoe"
    arguments = torch.randn(T, D), random_ids(), torch.rand(T, K)
    compiled = torch.compile(experts, fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(f(*arguments).sum(), experts.parameters()) for f in (experts, compiled)]
    torch.testing.assert_close(gradients[1], gradients[0])


def test_autocast_runs_the_gemms_in_its_dtype() -> None:
    experts, half = gpt_oss_experts(), gpt_oss_experts()
    half.load_state_dict(experts.state_dict())
    half.to(torch.bfloat16)
    experts.config._experts_implementation = half.config._experts_implementation = "pathmoe"
    x_TD, ids_TK, weights_TK = torch.randn(T, D), random_ids(), torch.rand(T, K)
    with torch.autocast("cpu", torch.bfloat16):
        y_TD = experts(x_TD, ids_TK, weights_TK)
    assert y_TD.dtype == torch.float32
    assert torch.equal(y_TD, half(x_TD.bfloat16(), ids_TK, weights_TK).float())


def olmoe_experts(**changed: Any) -> nn.Module:
    experts = random_parameters(OlmoeExperts(tiny_config(OlmoeExperts)))
    for name, value in changed.items():
        delattr(experts, name)
        setattr(experts, name, value)
    experts.config._experts_implementation = "pathmoe"
    return experts


@pytest.fixture
def sharded() -> Iterator[Tensor]:
    dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=2)
    yield distribute_tensor(torch.zeros(E, D, F), init_device_mesh("cpu", (2,)), [Replicate()])
    dist.destroy_process_group()


def assert_refused(experts: nn.Module, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        experts(torch.randn(T, D), random_ids(), torch.rand(T, K))
    assert str(error.value).startswith(f"experts_implementation (pathmoe) does not serve {type(experts).__name__}, ")
    assert str(error.value).endswith("; use experts_implementation=eager")
    assert "\n" not in str(error.value)


def test_weights_that_no_op_takes_are_refused_by_name(sharded: Tensor) -> None:
    assert_refused(
        olmoe_experts(down_proj=sharded), "OlmoeExperts, which has a down_proj of torch.float32, a DTensor; "
    )
    quantised = torch.zeros(E, 2 * F, D).to(torch.float8_e4m3fn)
    assert_refused(olmoe_experts(gate_up_proj=quantised), "a gate_up_proj of torch.float8_e4m3fn, a Tensor; ")
    assert_refused(olmoe_experts(down_proj=[]), "a down_proj that is no tensor; ")
    biased = gpt_oss_experts()
    biased.config._experts_implementation = "pathmoe"
    del biased.down_proj_bias
    assert_refused(biased, "GptOssExperts, which has a down_proj_bias that is no tensor; ")
