"""What validation measures, against the same sums in double precision over all blocks at once."""

# Shapes: T tokens, L MoE layers.

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from pathmoe.config import PathMoEConfig
from pathmoe.data import TokenDataModule, WeightedSource
from pathmoe.training.module import PathMoEModule
from pathmoe.training.schedule import ScheduleConfig

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "moe_intermediate_size": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "initializer_range": 0.2,
}


def data(micro_batch_size: int = 5) -> TokenDataModule:
    return TokenDataModule(
        source="c-functions", num_documents=120, vocab_size=300, sequence_length=32, micro_batch_size=micro_batch_size
    )


def module(**fields: Any) -> PathMoEModule:
    # Neither routing loss nor noise is part of a validation loss.
    losses = {"router_aux_loss_coef": 1.0, "router_z_loss_coef": 1.0, "router_noise_std": 1.0}
    return PathMoEModule(PathMoEConfig(**SHAPE | losses | fields), schedule=ScheduleConfig(name="constant"))


class KeepPaths(Callback):
    def __init__(self) -> None:
        self.paths: list[Tensor] = []

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: dict[str, Tensor], *_: Any) -> None:
        self.paths.append(outputs["path_ids"])


def validate(
    module: PathMoEModule, data: TokenDataModule | None = None, dataloaders: Any = None, **options: Any
) -> tuple[dict[str, float], Tensor]:
    keep = KeepPaths()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "callbacks": [keep]}
    trainer = Trainer(accelerator="cpu", devices=1, **quiet | options)
    (metrics,) = trainer.validate(module, dataloaders=dataloaders, datamodule=data, verbose=False)
    return dict(metrics), torch.cat(keep.paths)


def directly(module: PathMoEModule, data: TokenDataModule, num_blocks: int) -> tuple[float, Tensor]:
    """Mean nats a target, in double precision, and each token's top-1 path."""
    batch = data.validation_blocks.batch(np.arange(num_blocks))
    with torch.no_grad():
        inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
        output = module.model.eval()(**inputs, output_router_logits=True)
    nats = F.cross_entropy(output.logits.double().flatten(0, 1), batch["shift_labels"].flatten(), reduction="sum")
    paths_LT = [routing.logits_TE.argmax(-1) for routing in output.routings]
    return float(nats / (batch["shift_labels"] != -100).sum()), torch.stack(paths_LT, dim=-1)


@pytest.mark.parametrize("micro_batch_size", [1, 5, 1000])
def test_the_loss_is_the_mean_over_the_targets_of_the_split(micro_batch_size: int) -> None:
    measured, blocks = module(), data(micro_batch_size)
    metrics, paths_TL = validate(measured, blocks)
    loss, expected_TL = directly(measured, blocks, len(blocks.validation_blocks))
    assert metrics["val/loss"] == pytest.approx(loss, rel=1e-6)
    assert metrics["val/perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    bytes_per_target = blocks.manifest.validation.bytes_per_target
    assert metrics["val/bits_per_byte"] == pytest.approx(loss / math.log(2) / bytes_per_target, rel=1e-6)
    assert paths_TL.tolist() == expected_TL.tolist()


def test_a_part_of_the_split_is_its_first_batches() -> None:
    measured, blocks = module(), data(5)
    metrics, paths_TL = validate(measured, blocks, limit_val_batches=2)
    first = sum(len(batch["input_ids"]) for batch, _ in zip(blocks.val_dataloader(), range(2), strict=False))
    loss, expected_TL = directly(measured, blocks, first)
    assert metrics["val/loss"] == pytest.approx(loss, rel=1e-6)
    assert paths_TL.tolist() == expected_TL.tolist()
    # Nobody has counted the bytes of a part, and those of the split are of another mean.
    assert metrics.keys() == {"val/loss", "val/perplexity"}


def test_followers_take_the_path_of_their_decider() -> None:
    measured, blocks = module(layers_per_decision=[2, 1], layers_per_router=None, first_k_dense_replace=0), data()
    _, paths_TL = validate(measured, blocks)
    assert torch.equal(paths_TL[:, 0], paths_TL[:, 1])
    assert not torch.equal(paths_TL[:, 1], paths_TL[:, 2])


def test_loaders_without_a_data_module_have_no_bytes() -> None:
    blocks = data()
    blocks.prepare_data()
    blocks.setup("validate")
    metrics, _ = validate(module(), dataloaders=blocks.val_dataloader())
    assert metrics.keys() == {"val/loss", "val/perplexity"}
    assert metrics["val/loss"] == pytest.approx(validate(module(), data())[0]["val/loss"], rel=1e-6)


def test_a_validation_within_a_fit_measures_the_same() -> None:
    trained = module()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=3,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(trained, datamodule=data())
    within = float(trainer.callback_metrics["val/loss"])
    assert validate(trained, data())[0]["val/loss"] == within


def test_a_loss_beyond_all_numbers_is_still_reported() -> None:
    measured = module()
    measured.configure_model()
    with torch.no_grad():
        measured.model.lm_head.weight.mul_(1e6)
    metrics, _ = validate(measured, data())
    assert 1e3 < metrics["val/loss"] < math.inf
    assert math.isfinite(metrics["val/perplexity"])


def test_each_source_of_a_mixture_has_a_loss_of_its_own(short_documents: Path, texts: Path) -> None:
    mixture = [WeightedSource(source=str(short_documents), weight=1.0), WeightedSource(source=str(texts), weight=2.0)]
    blocks = TokenDataModule(
        mixture=mixture, vocab_size=300, sequence_length=16, validation_fraction=0.3, micro_batch_size=4
    )
    measured = module()
    metrics, _ = validate(measured, blocks)
    manifest = blocks.manifest
    assert manifest.mixture is not None
    first, second = manifest.mixture
    loss_of_first, _ = directly(measured, blocks, first.validation.blocks)
    loss, _ = directly(measured, blocks, len(blocks.validation_blocks))
    assert metrics["val/loss"] == pytest.approx(loss, rel=1e-6)
    assert metrics[f"val/{first.label}/loss"] == pytest.approx(loss_of_first, rel=1e-6)
    targets = first.validation.targets, second.validation.targets
    nats = loss * sum(targets) - loss_of_first * targets[0]
    assert metrics[f"val/{second.label}/loss"] == pytest.approx(nats / targets[1], rel=1e-5)
    bytes_per_target = manifest.validation.bytes_per_target
    assert metrics["val/bits_per_byte"] == pytest.approx(loss / math.log(2) / bytes_per_target, rel=1e-6)
    # A part of the split has some of each, but where it is a single batch.
    metrics, _ = validate(measured, blocks, limit_val_batches=8)
    assert f"val/{first.label}/loss" in metrics and f"val/{second.label}/loss" in metrics
    metrics, _ = validate(measured, blocks, limit_val_batches=1)
    assert (f"val/{first.label}/loss" in metrics) != (f"val/{second.label}/loss" in metrics)
