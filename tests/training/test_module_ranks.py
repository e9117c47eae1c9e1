"""Two processes under DDP train as one does; what each of them must know of the other."""

# Shapes: E experts.

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from pathmoe.config import PathMoEConfig
from pathmoe.data import TokenDataModule, train_bpe
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.module import PathMoEModule
from pathmoe.training.optim import OptimizerConfig
from pathmoe.training.schedule import ScheduleConfig
from pathmoe.training.speed import SpeedMonitor

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(), reason="forks, which CUDA does not survive"
)

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
SOURCE = Path()
Recorded = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def _documents(short_documents: Path) -> None:
    global SOURCE
    SOURCE = short_documents


def data(micro_batch_size: int, **options: Any) -> TokenDataModule:
    shape: dict[str, Any] = {"vocab_size": 300, "sequence_length": 32, "micro_batch_size": micro_batch_size}
    return TokenDataModule(source=str(SOURCE), **shape, **options)


def module(activation_checkpointing: bool = False, **fields: Any) -> PathMoEModule:
    config, schedule = PathMoEConfig(**SHAPE | fields), ScheduleConfig(name="constant")
    return PathMoEModule(config, OptimizerConfig(lr=0.01), schedule, activation_checkpointing=activation_checkpointing)


class Record(Callback):
    """What a rank was given, and what came of it, into a file of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recorded: Recorded = {"batches": [], "noise_seeds": [], "gradients": [], "biases": [], "figures": []}

    def on_train_batch_start(self, trainer: Trainer, pl_module: PathMoEModule, batch: Any, batch_idx: int) -> None:
        self.recorded["batches"].append(batch)
        seeds = self.recorded["noise_seeds"]
        hook = pl_module.model.register_forward_pre_hook(
            lambda _model, _args, kwargs: seeds.append(kwargs["noise_seed"]), with_kwargs=True
        )
        self._remove_hook = hook.remove

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: PathMoEModule, optimizer: Any) -> None:
        trained = {name: p for name, p in pl_module.model.named_parameters() if p.requires_grad}
        self.recorded["gradients"].append({name: p.grad.clone() for name, p in trained.items()})

    def on_train_batch_end(self, trainer: Trainer, pl_module: PathMoEModule, *_: Any) -> None:
        self._remove_hook()
        if trainer.global_step == len(self.recorded["gradients"]) > len(self.recorded["figures"]):
            buffers = pl_module.model.named_buffers()
            self.recorded["biases"].append({name: b.clone() for name, b in buffers if "selection_bias" in name})
            self.recorded["figures"].append({k: float(v) for k, v in trainer.callback_metrics.items()})

    def on_fit_end(self, trainer: Trainer, pl_module: PathMoEModule) -> None:
        self.recorded["validation"] = {
            name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")
        }
        torch.save(self.recorded, self.folder / f"{trainer.global_rank}.pt")


def fit(
    folder: Path, ranks: int, accumulate: int, steps: int = 2, blocks: TokenDataModule | None = None, **arguments: Any
) -> list[Recorded]:
    """What each rank has recorded."""
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp_fork" if ranks > 1 else "auto",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        val_check_interval=steps * accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        callbacks=[SpeedMonitor(), Record(folder)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module(**arguments), datamodule=blocks or data(BLOCKS // accumulate // ranks))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 2e-6) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=tolerance * max(1.0, float(value.abs().max())))


@pytest.mark.parametrize(
    ("accumulate", "more"),
    [
        (1, {}),
        (2, {}),
        (2, {"activation_checkpointing": True, "router_frozen": True}),
        (1, {"layers_per_decision": 3, "layers_per_router": 3, "n_shared_experts": 1, "first_k_dense_replace": 0}),
    ],
)
def test_two_train_as_one_does(tmp_path: Path, accumulate: int, more: dict[str, Any]) -> None:
    losses = {"router_aux_loss_coef": 0.3, "router_z_loss_coef": 0.2, "router_bias_update_rate": 0.1}
    one = fit(tmp_path, ranks=1, accumulate=2 * accumulate, **losses, **more)[0]
    two = fit(tmp_path, ranks=2, accumulate=accumulate, **losses, **more)
    not_compared = {name for name in one["figures"][0] if name.endswith(("second", "seconds", "gib"))}
    for step in range(2):
        assert_close(two[0]["gradients"][step], one["gradients"][step])
        figures = {name: one["figures"][step][name] for name in one["figures"][step].keys() - not_compared}
        assert {name: two[0]["figures"][step][name] for name in figures} == pytest.approx(figures, rel=1e-5)
        for name, bias_E in one["biases"][step].items():
            assert torch.equal(bias_E, two[0]["biases"][step][name])
            assert torch.equal(bias_E, two[1]["biases"][step][name])
    assert any(bias_E.any() for bias_E in one["biases"][0].values())
    assert one["validation"].keys() == {"val/loss", "val/perplexity", "val/bits_per_byte"}
    assert two[0]["validation"] == two[1]["validation"] == pytest.approx(one["validation"], rel=1e-5)


def fresh_model(**fields: Any) -> PathMoEForCausalLM:
    fresh = module(**fields)
    fresh.configure_model()
    return fresh.model.train()


def forward(model: PathMoEForCausalLM, batch: dict[str, Any]) -> Any:
    return model(batch["input_ids"], position_ids=batch["position_ids"], output_router_logits=True)


def test_the_load_is_that_of_both(tmp_path: Path) -> None:
    fields = {"router_aux_loss_coef": 1.0, "router_aux_loss_scope": "global_batch"}
    two = fit(tmp_path, ranks=2, accumulate=1, steps=1, **fields)
    model = fresh_model(**fields)
    outputs = [forward(model, rank["batches"][0]) for rank in two]
    per_layer = []
    for routings in zip(*(output.routings for output in outputs), strict=True):
        ids = torch.cat([routing.expert_ids_TK.flatten() for routing in routings])
        fraction_E = 2 * torch.bincount(ids, minlength=4) / len(ids)
        # Each rank's loss has f of the global batch and P of its half: their mean has both of the global batch.
        mean_score_E = torch.cat([routing.logits_TE for routing in routings]).softmax(-1).mean(0)
        per_layer.append(4 * (fraction_E * mean_score_E).sum())
    expected = torch.stack(per_layer).mean().item()
    assert two[0]["figures"][0]["train/balance_loss"] == pytest.approx(expected, rel=1e-6)


def test_streams_are_divided_by_the_targets_of_both(tmp_path: Path) -> None:
    texts = [json.loads(line)["text"] for line in SOURCE.read_text().splitlines()]
    train_bpe(texts, 300).save_pretrained(str(tmp_path / "tokenizer"))
    stream = data(2, streaming=True, validation_documents=20, tokenizer=str(tmp_path / "tokenizer"))
    two = fit(tmp_path, ranks=2, accumulate=2, steps=1, blocks=stream)
    assert two[0]["batches"][0]["num_items"] != two[1]["batches"][0]["num_items"], "a mean of means would differ"

    model = fresh_model()
    batches = [batch for rank in two for batch in rank["batches"]]
    assert len(batches) == 4
    nats = [
        F.cross_entropy(forward(model, b).logits.flatten(0, 1), b["shift_labels"].flatten(), reduction="sum")
        for b in batches
    ]
    loss = torch.stack(nats).sum() / sum((b["shift_labels"] != -100).sum() for b in batches)
    names, parameters = zip(*model.named_parameters(), strict=True)
    assert_close(two[0]["gradients"][0], dict(zip(names, torch.autograd.grad(loss, parameters), strict=True)))
    assert two[0]["figures"][0]["train/loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_each_has_noise_of_its_own(tmp_path: Path) -> None:
    one = fit(tmp_path, ranks=1, accumulate=4, router_noise_std=0.5)[0]["noise_seeds"]
    two = [rank["noise_seeds"] for rank in fit(tmp_path, ranks=2, accumulate=2, router_noise_std=0.5)]
    shared_out = [[one[4 * step + 2 * part + rank] for step in range(2) for part in range(2)] for rank in range(2)]
    assert two == shared_out, "each micro-batch of the global batch has the noise that one rank gives it"
    assert len(set(one)) == 8, "two steps, four micro-batches"
