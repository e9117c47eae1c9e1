"""Lower precision and compiled layers: what computes in which dtype; training stays the same up to rounding."""

# Shapes: T tokens, D hidden, E experts, F expert width, G = 2F.

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from pathmoe.config import PathMoEConfig
from pathmoe.data import TokenDataModule
from pathmoe.model import PathMoECausalLMOutput
from pathmoe.training.module import PathMoEModule
from pathmoe.training.optim import OptimizerConfig
from pathmoe.training.schedule import ScheduleConfig

STEPS = 4
SOURCE = Path()
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "moe_intermediate_size": 24,  # so that no other matrix has the shape of an expert's
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "router_bias_update_rate": 1e-3,
    "router_aux_loss_coef": 0.01,
}


@pytest.fixture(scope="module", autouse=True)
def _documents(short_documents: Path) -> None:
    global SOURCE
    SOURCE = short_documents


class Losses(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


class Dtypes(Callback):
    """Dtypes of routings, of the operands of every expert GEMM, and of what backward leaves."""

    def __init__(self) -> None:
        self.routing: set[torch.dtype] = set()
        self.gemms: set[torch.dtype] = set()
        self.gradients: set[torch.dtype] = set()

    def on_train_start(self, trainer: Trainer, pl_module: PathMoEModule) -> None:
        pl_module.model.register_forward_hook(self._note_routings)

    def _note_routings(self, _model: Any, _inputs: Any, output: PathMoECausalLMOutput) -> None:
        assert output.routings is not None
        tensors = [t for r in output.routings for t in (r.logits_TE, r.routed.logsumexp_T, r.expert_weights_TK)]
        self.routing |= {tensor.dtype for tensor in tensors if tensor is not None}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: PathMoEModule, optimizer: Any) -> None:
        self.gradients |= {parameter.grad.dtype for parameter in pl_module.parameters()}


class ExpertGemms(torch.utils._python_dispatch.TorchDispatchMode):
    """Dtypes of the operands of every GEMM with an expert's matrix."""

    GEMMS = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten._grouped_mm.default)
    MATRICES = ({16, 48}, {16, 24})

    def __init__(self, dtypes: set[torch.dtype]) -> None:
        super().__init__()
        self.dtypes = dtypes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.pathmoe.expert_mlp.default:
            x_TD, _weights, gate_up_EGD, down_EDF = args[:4]
            self.dtypes |= {x_TD.dtype, gate_up_EGD.dtype, down_EDF.dtype}
        elif func in self.GEMMS and any(set(matrix.shape[-2:]) in self.MATRICES for matrix in args[:2]):
            self.dtypes |= {matrix.dtype for matrix in args[:2]}
        return func(*args, **kwargs or {})


def fit(
    precision: Any = "32-true",
    compiled: bool = False,
    callbacks: tuple[Callback, ...] = (),
    num_hidden_layers: int = 2,
    experts: Any = "pathmoe",
    optimizer: Any = "muon",
    router_noise_std: float = 0.1,
    max_steps: int = STEPS,
) -> PathMoEModule:
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        precision=precision,
        max_steps=max_steps,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    schedule = ScheduleConfig(name="constant")
    fields = {"num_hidden_layers": num_hidden_layers, "router_noise_std": router_noise_std}
    config = PathMoEConfig(**SHAPE | fields)
    module = PathMoEModule(
        config, OptimizerConfig(name=optimizer, lr=0.01), schedule, compile=compiled, experts_implementation=experts
    )
    # Of short documents, so that every batch has a boundary, hence a mask: one without takes graphs of its own.
    data = TokenDataModule(source=str(SOURCE), vocab_size=300, sequence_length=128)
    trainer.fit(module, datamodule=data)
    return module


def losses(**arguments: Any) -> list[float]:
    callback = Losses()
    fit(callbacks=(callback,), **arguments)
    assert len(callback.losses) == STEPS
    return callback.losses


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bf16_trains_as_fp32_does_up_to_rounding(precision: str) -> None:
    full, half = losses(), losses(precision=precision)
    assert half == pytest.approx(full, rel=2e-3)
    assert half != full
    assert full[-1] < full[0] - 0.05


@pytest.mark.parametrize(
    ("precision", "weights"), [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16), ("32-true", torch.float32)]
)
@pytest.mark.parametrize("experts", ["pathmoe", "grouped_mm", "batched_mm", "eager"])
@pytest.mark.parametrize("router_noise_std", [0.0, 0.1])  # with noise routers give logits, without it the kernel does
def test_routing_is_fp32_and_expert_gemms_are_not(
    router_noise_std: float, experts: str, precision: str, weights: torch.dtype
) -> None:
    dtypes = Dtypes()
    # Muon's own GEMMs are in bf16.
    options: dict[str, Any] = {"optimizer": "adamw", "experts": experts, "router_noise_std": router_noise_std}
    with ExpertGemms(dtypes.gemms):
        module = fit(precision, callbacks=(dtypes,), **options)
    assert dtypes.routing == {torch.float32}
    assert dtypes.gemms == {torch.float32 if precision == "32-true" else torch.bfloat16}
    assert dtypes.gradients == {weights}
    assert {parameter.dtype for parameter in module.parameters()} == {weights}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_initial_weights_are_the_same_numbers_in_every_precision(precision: str) -> None:
    class Initial(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: PathMoEModule) -> None:
            self.weights = {name: parameter.detach().clone() for name, parameter in pl_module.named_parameters()}

    full, other = Initial(), Initial()
    fit(callbacks=(full,))
    torch.manual_seed(1)  # whatever was drawn before
    fit(precision, callbacks=(other,))
    for name, weight in full.weights.items():
        assert torch.equal(other.weights[name], weight.to(other.weights[name].dtype)), name


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_buffers_keep_their_bits_whatever_the_weights_become(precision: str) -> None:
    module = fit(precision, max_steps=3)  # an odd number of steps up and down does not end at zero
    buffers = dict(module.named_buffers())
    assert {buffer.dtype for buffer in buffers.values()} == {torch.float32}
    # In bf16 a bias near one would no longer move by 1e-3; here it is a sum of steps of exactly that size.
    for layer in module.model.model.layers:
        steps_E = layer.mlp.selection_bias_E / 1e-3
        assert layer.mlp.selection_bias_E.any()
        torch.testing.assert_close(steps_E, steps_E.round(), rtol=0, atol=1e-4)
    # Rotary frequencies are those that the exported model computes: theta^(-2i/d) with heads of width 8.
    expected = 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(module.model.model.rotary_emb.inv_freq, expected)


@pytest.mark.slow
def test_compiled_layers_train_as_plain_ones_do() -> None:
    plain = losses(num_hidden_layers=12)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # of what other tests compiled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        compiled = losses(compiled=True, num_hidden_layers=12)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 2, "one for the first layer and one for the others, however deep"
    assert not counters["graph_break"]
    assert compiled[0] == pytest.approx(plain[0], rel=1e-6)
    assert compiled == pytest.approx(plain, rel=1e-4)
