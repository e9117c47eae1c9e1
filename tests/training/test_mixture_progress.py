from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from pathmoe.config import PathMoEConfig
from pathmoe.data import TokenDataModule, WeightedSource
from pathmoe.data.interleaving import positions_of_sources
from pathmoe.training.mixture_progress import MixtureProgress
from pathmoe.training.module import PathMoEModule
from pathmoe.training.schedule import ScheduleConfig

SHAPE = {
    "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2, "layers_per_router": 2,
}  # fmt: skip


class Keep(Callback):
    def __init__(self) -> None:
        self.figures: dict[int, dict[str, float]] = {}

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        of_data = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("data/")}
        self.figures[trainer.global_step] = of_data


def fit(**data: Any) -> dict[int, dict[str, float]]:
    keep = Keep()
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=6, accumulate_grad_batches=2, limit_val_batches=0, log_every_n_steps=3,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[MixtureProgress(), keep],
    )  # fmt: skip
    module = PathMoEModule(PathMoEConfig(**SHAPE), schedule=ScheduleConfig(name="constant"))
    trainer.fit(module, datamodule=TokenDataModule(vocab_size=300, sequence_length=16, micro_batch_size=2, **data))
    return keep.figures


def test_what_was_read_of_each_source_is_logged(short_documents: Path, texts: Path) -> None:
    weights = [0.7, 0.3]
    mixture = [WeightedSource(source=str(p), weight=w) for p, w in zip((short_documents, texts), weights, strict=True)]
    figures = fit(mixture=mixture)
    data = TokenDataModule(vocab_size=300, sequence_length=16, mixture=mixture)
    data.prepare_data()
    data.setup("fit")
    assert data.manifest.mixture is not None
    for step in (3, 6):
        for source, blocks in zip(data.manifest.mixture, positions_of_sources(step * 4, weights), strict=True):
            assert figures[step][f"data/{source.label}/tokens"] == blocks * 16
            epochs = figures[step][f"data/{source.label}/epochs"]
            assert epochs == pytest.approx(blocks / source.train.blocks)
    assert figures[5] == figures[3], "logged at the interval only"


def test_one_source_logs_nothing(short_documents: Path) -> None:
    assert fit(source=str(short_documents))[6] == {}
