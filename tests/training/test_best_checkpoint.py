"""The best checkpoint: that of the lowest validation loss, over all parts of a run and wherever its folder lies."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from pathmoe.training.best_checkpoint import BestCheckpoint


class Scripted(LightningModule):
    """Validates with the losses that it is told, one after each step; its one weight counts the steps."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.losses = losses

    def training_step(self, batch: Tensor) -> Tensor:
        return -self.weight.sum()

    def validation_step(self, batch: Tensor) -> None:
        self.log("val/loss", torch.tensor(self.losses[self.trainer.global_step]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(100), num_workers=0)

    val_dataloader = train_dataloader


def fit(folder: Path, losses: list[float], max_steps: int, ckpt_path: Path | None = None, sanity: int = 0) -> None:
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=max_steps,
        val_check_interval=1, limit_val_batches=1, num_sanity_val_steps=sanity,
        callbacks=[BestCheckpoint(folder / "best.ckpt")],
    )  # fmt: skip
    trainer.fit(Scripted(losses), ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")


def best_step(folder: Path) -> int:
    checkpoint = torch.load(folder / "best.ckpt", weights_only=True)
    assert checkpoint["global_step"] == checkpoint["state_dict"]["weight"].item()
    return checkpoint["global_step"]


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*your dataloader is not resumable:UserWarning"
)


@pytest.mark.parametrize(
    ("losses", "best"),
    [([5.0, 4.0, 3.0], 3), ([3.0, 4.0, 5.0], 1), ([4.0, 3.0, 5.0], 2), ([3.0, 3.0, 3.0], 1), ([math.nan, 9.0, 9.5], 2)],
)
def test_it_is_that_of_the_lowest_loss(losses: list[float], best: int, tmp_path: Path) -> None:
    fit(tmp_path, [0.0, *losses], max_steps=3)
    assert best_step(tmp_path) == best


def test_the_sanity_check_is_no_validation(tmp_path: Path) -> None:
    fit(tmp_path, [0.0, 2.0], max_steps=1, sanity=1)
    assert best_step(tmp_path) == 1


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_run_that_goes_on_remembers(is_moved: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fit(folder, [0.0, 1.0, 3.0], max_steps=2)
    if is_moved:
        folder = Path(shutil.move(folder, tmp_path / "moved"))
    fit(folder, [0.0, 1.0, 3.0, 2.0], max_steps=3, ckpt_path=folder / "last.ckpt")
    assert best_step(folder) == 1
    fit(folder, [0.0, 1.0, 3.0, 2.0, 0.5], max_steps=4, ckpt_path=folder / "last.ckpt")
    assert best_step(folder) == 4


def test_where_the_best_is_gone_the_next_one_is_kept(tmp_path: Path) -> None:
    fit(tmp_path, [0.0, 1.0], max_steps=1)
    (tmp_path / "best.ckpt").unlink()
    fit(tmp_path, [0.0, 1.0, 2.0], max_steps=2, ckpt_path=tmp_path / "last.ckpt")
    assert best_step(tmp_path) == 2
