"""The training step through Lightning's own loop: what it divides by, what it counts once, what its noise is of."""

# Shapes: B batch, S sequence, T = B*S tokens, E experts, K experts per token, L MoE layers.

import copy
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from pathmoe.config import PathMoEConfig
from pathmoe.data import TokenDataModule
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.module import PathMoEModule
from pathmoe.training.optim import OptimizerConfig
from pathmoe.training.schedule import ScheduleConfig

BLOCKS = 8
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "moe_intermediate_size": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "layers_per_router": 2,
    "initializer_range": 0.2,
}
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "limit_val_batches": 0,
    "log_every_n_steps": 1,
}
SOURCE = Path()


@pytest.fixture(scope="module", autouse=True)
def _documents(short_documents: Path) -> None:
    global SOURCE
    SOURCE = short_documents


def data(micro_batch_size: int = BLOCKS) -> TokenDataModule:
    return TokenDataModule(source=str(SOURCE), vocab_size=300, sequence_length=32, micro_batch_size=micro_batch_size)


def module(seed: int = 0, activation_checkpointing: bool = False, **fields: Any) -> PathMoEModule:
    config, schedule = PathMoEConfig(**SHAPE | fields), ScheduleConfig(name="constant")
    return PathMoEModule(
        config, OptimizerConfig(lr=0.01), schedule, seed=seed, activation_checkpointing=activation_checkpointing
    )


class Record(Callback):
    """Gradients before each optimizer step, and weights, losses and loads after it."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []
        self.figures: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: PathMoEModule, optimizer: Any) -> None:
        named = pl_module.model.named_parameters()
        self.gradients.append({name: parameter.grad.clone() for name, parameter in named})

    def on_train_batch_end(self, trainer: Trainer, pl_module: PathMoEModule, *_: Any) -> None:
        if trainer.global_step > len(self.weights):
            self.weights.append({name: value.clone() for name, value in pl_module.model.state_dict().items()})
            self.figures.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def fit(
    steps: int = 1,
    accumulate: int = 1,
    callbacks: tuple[Callback, ...] = (),
    **arguments: Any,
) -> Record:
    record = Record()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        callbacks=[*callbacks, record],
        **QUIET,
    )
    trainer.fit(module(**arguments), datamodule=data(BLOCKS // accumulate))
    return record


def micro_batches(number: int, step: int = 0) -> list[dict[str, Any]]:
    """A step's global batch in `number` parts."""
    blocks = data(BLOCKS // number)
    blocks.prepare_data()
    blocks.setup("validate")
    return list(islice(blocks.train_batches(step, accumulate_grad_batches=number), number))


def fresh_model(**fields: Any) -> PathMoEForCausalLM:
    fresh = module(**fields)
    fresh.configure_model()
    return fresh.model.train()


def inputs(batch: dict[str, Any]) -> dict[str, Tensor]:
    return {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 2e-6) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=tolerance * max(1.0, float(value.abs().max())))


def gradients_of(model: PathMoEForCausalLM, loss: Tensor) -> dict[str, Tensor]:
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))


def mean_over_targets(model: PathMoEForCausalLM) -> Tensor:
    (batch,) = micro_batches(1)
    logits = model(**inputs(batch)).logits
    return F.cross_entropy(logits.flatten(0, 1), batch["shift_labels"].flatten(), ignore_index=-100)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_the_gradient_is_that_of_the_mean_over_all_targets(accumulate: int) -> None:
    targets = [int((batch["shift_labels"] != -100).sum()) for batch in micro_batches(accumulate)]
    assert len(set(targets)) > 1 or accumulate == 1, "a mean of means would be something else"
    model = fresh_model()
    loss = mean_over_targets(model)
    record = fit(accumulate=accumulate)
    assert_close(record.gradients[0], gradients_of(model, loss))
    assert record.figures[0]["train/loss"] == pytest.approx(loss.item(), rel=1e-6)


def by_hand(model: PathMoEForCausalLM, number: int, scope: str) -> tuple[Tensor, Tensor]:
    """Mean over micro-batches of the mean over layers of the balance loss and of the z-loss."""
    balance, spread = [], []
    load_LE = torch.zeros(3, 4)
    for batch in micro_batches(number):
        if scope == "micro_batch":
            load_LE = torch.zeros(3, 4)
        for layer, routing in enumerate(model(**inputs(batch), output_router_logits=True).routings):
            load_LE[layer] += torch.bincount(routing.expert_ids_TK.flatten(), minlength=4)
            fraction_E = 2 * load_LE[layer] / load_LE[layer].sum()
            balance.append(4 * (fraction_E * routing.logits_TE.softmax(-1).mean(0)).sum())
            spread.append(routing.logits_TE.exp().sum(-1).log().pow(2).mean())
    return torch.stack(balance).mean(), torch.stack(spread).mean()


@pytest.mark.parametrize("scope", ["micro_batch", "global_batch"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_routing_losses_are_means_over_micro_batches(scope: str, accumulate: int) -> None:
    fields = {"router_aux_loss_coef": 0.3, "router_z_loss_coef": 0.2, "router_aux_loss_scope": scope}
    model = fresh_model(**fields)
    balance, spread = by_hand(model, accumulate, scope)
    expected = mean_over_targets(model) + 0.3 * balance + 0.2 * spread
    record = fit(accumulate=accumulate, **fields)
    assert_close(record.gradients[0], gradients_of(model, expected))
    assert record.figures[0]["train/balance_loss"] == pytest.approx(balance.item(), rel=1e-6)
    assert record.figures[0]["train/z_loss"] == pytest.approx(spread.item(), rel=1e-6)
    assert record.figures[0]["train/loss"] == pytest.approx(mean_over_targets(model).item(), rel=1e-6)


class KeepModels(Callback):
    """A copy of the model before each step."""

    def __init__(self) -> None:
        self.models: list[PathMoEForCausalLM] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: PathMoEModule, batch: Any, batch_idx: int) -> None:
        if batch["micro_batch"] == 0:
            self.models.append(copy.deepcopy(pl_module.model))


def test_selection_biases_move_once_a_step_by_the_load_of_all_micro_batches() -> None:
    keep = KeepModels()
    # Leading dense layers have no bias, nor has a layer that follows another's decision.
    fields = {"first_k_dense_replace": 1, "num_hidden_layers": 4, "layers_per_decision": [1, 2]}
    fields |= {"router_bias_update_rate": 0.1, "layers_per_router": None}
    record = fit(steps=3, accumulate=2, callbacks=(keep,), **fields)
    for step, (model, after) in enumerate(zip(keep.models, record.weights, strict=True)):
        loads = {1: torch.zeros(4), 2: torch.zeros(4)}
        for batch in micro_batches(2, step):
            routings = model(**inputs(batch)).routings
            loads[1] += torch.bincount(routings[0].expert_ids_TK.flatten(), minlength=4)
            loads[2] += torch.bincount(routings[1].expert_ids_TK.flatten(), minlength=4)
        biases = {name: value for name, value in after.items() if "selection_bias" in name}
        assert set(biases) == {f"model.layers.{layer}.mlp.selection_bias_E" for layer in (1, 2)}
        for layer, load_E in loads.items():
            before_E = model.model.layers[layer].mlp.selection_bias_E
            expected_E = before_E + 0.1 * torch.sign(load_E.mean() - load_E)
            assert torch.equal(biases[f"model.layers.{layer}.mlp.selection_bias_E"], expected_E)
    assert any(value.any() for name, value in record.weights[-1].items() if "selection_bias" in name)


def test_recomputed_activations_change_no_bit() -> None:
    fields = {"router_aux_loss_coef": 0.3, "router_z_loss_coef": 0.2, "router_bias_update_rate": 0.1}
    fields |= {"router_noise_std": 0.5, "router_aux_loss_scope": "global_batch"}
    kept = fit(steps=2, accumulate=2, **fields)
    recomputed = fit(steps=2, accumulate=2, activation_checkpointing=True, **fields)
    for step in range(2):
        for one, other in ((kept.gradients, recomputed.gradients), (kept.weights, recomputed.weights)):
            assert all(torch.equal(value, other[step][name]) for name, value in one[step].items())
        assert kept.figures[step] == recomputed.figures[step]
    load = {name: value for name, value in kept.figures[0].items() if name.endswith("max_over_mean")}
    assert len(load) == 4
    assert min(load.values()) >= 1


def test_the_same_run_gives_the_same_bits_and_other_noise_others() -> None:
    def weights(**arguments: Any) -> dict[str, Tensor]:
        torch.manual_seed(int(torch.randint(1000, ())))  # the default generator must not matter
        return fit(steps=3, accumulate=2, router_noise_std=0.5, **arguments).weights[-1]

    first, again = weights(), weights()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    other = weights(seed=1)
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


class NoiseSeeds(Callback):
    """The seed that the model's forward was given, by step and micro-batch."""

    def __init__(self) -> None:
        self.seeds: dict[tuple[int, int], int] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: PathMoEModule, batch: Any, batch_idx: int) -> None:
        key = (trainer.global_step, batch["micro_batch"])
        hook = pl_module.model.register_forward_pre_hook(
            lambda _model, _args, kwargs: self.seeds.update({key: kwargs["noise_seed"]}), with_kwargs=True
        )
        self._remove = hook.remove

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._remove()


def noise_seeds(seed: int) -> dict[tuple[int, int], int]:
    callback = NoiseSeeds()
    fit(steps=3, accumulate=2, callbacks=(callback,), seed=seed, router_noise_std=0.5)
    return callback.seeds


def test_noise_is_a_function_of_seed_step_and_micro_batch() -> None:
    first = noise_seeds(seed=0)
    assert first == noise_seeds(seed=0)
    assert len(set(first.values()) | set(noise_seeds(seed=1).values())) == 12
