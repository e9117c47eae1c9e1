"""The line that a person watches."""

import io
import math
import re
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer

from pathmoe.training.progress import ProgressBar


class Figures(Callback):
    """Logs what the training module and the speed monitor would."""

    def __init__(self, loss: float, perplexity: float, speed: float) -> None:
        self.figures = {"train/loss": loss, "train/perplexity": perplexity, "train/tokens_per_second": speed}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        pl_module.log_dict({name: torch.tensor(value) for name, value in self.figures.items()})


class Ones:
    """Loader of so many batches."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter([torch.ones(1)] * self.number)


class OneWeight(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return (self.weight * batch).sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def lines(monkeypatch: pytest.MonkeyPatch, out: io.StringIO, steps: int, accumulate: int = 1) -> list[str]:
    monkeypatch.setattr(sys, "stdout", out)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        limit_val_batches=2,
        val_check_interval=2 * accumulate,
        check_val_every_n_epoch=None,
        callbacks=[Figures(5.43211, 228.6, 1234.0), ProgressBar()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(OneWeight(), Ones(1000), Ones(2))
    return [line for line in re.split(r"[\r\n]+", out.getvalue()) if line.strip()]


def test_one_line_counts_optimizer_steps_and_shows_loss_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [line for line in lines(monkeypatch, Terminal(), steps=6, accumulate=2) if line.startswith("train")]
    assert all(len(line) < 80 for line in shown)
    counts = [re.match(r"train (\d+)/6 ", line) for line in shown]
    assert [int(count[1]) for count in counts if count][-1] == 6
    assert {int(count[1]) for count in counts if count} == set(range(7))
    pattern = r"train 6/6 █+ \d\d:\d\d left, loss 5\.432, ppl 228\.6, 1\.23k tok/s"
    assert re.fullmatch(pattern, shown[-1].strip())


def test_a_fit_shows_no_bar_of_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = lines(monkeypatch, Terminal(), steps=4)
    assert not [line for line in shown if "Validation" in line]


def test_a_file_gets_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [line for line in lines(monkeypatch, io.StringIO(), steps=40) if line.startswith("train")]
    assert len(set(shown)) <= 14
    assert len(shown[-1]) < 80


def test_what_ends_a_run_early_is_told_on_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(OneWeight, "training_step", lambda *_: sys.exit(1))
    with pytest.raises(SystemExit):
        lines(monkeypatch, out, steps=4)
    assert "train 0/4 " in out.getvalue()
    assert out.getvalue().endswith("\n")


@given(
    step=st.integers(0, 4 * 10**6),
    more=st.integers(1, 5 * 10**6),
    loss=st.floats(0, 99),
    speed=st.floats(0, 1e9),
    hours_left=st.floats(0.01, 999),
)
def test_it_fits_in_80_columns(step: int, more: int, loss: float, speed: float, hours_left: float) -> None:
    bar = ProgressBar()
    figures = {"train/loss": loss, "train/perplexity": math.exp(loss), "train/tokens_per_second": speed}
    metrics = {name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()}
    tqdm = bar.init_train_tqdm()
    tqdm.set_postfix_str(bar._figures(SimpleNamespace(callback_metrics=metrics)), refresh=False)
    state = tqdm.format_dict | {"n": step, "total": step + more, "rate": more / (hours_left * 3600)}
    line = tqdm.format_meter(**state)
    tqdm.disable = True
    assert len(line) < 80
    for part in (f"{step}/{step + more}", "left", f"loss {loss:.3f}", "ppl ", "tok/s"):
        assert part in line
