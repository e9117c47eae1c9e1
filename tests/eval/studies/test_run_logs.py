"""Learning curves and roughness, from logs as Lightning writes them."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.studies.run_logs import learning_curve, loss_roughness, monitored_curves


def write(folder: Path, version: int, text: str) -> None:
    log = folder / "csv" / f"version_{version}" / "metrics.csv"
    log.parent.mkdir(parents=True)
    log.write_text(text)


def test_losses_stand_at_the_tokens_before_them(tmp_path: Path) -> None:
    write(tmp_path, 0, "epoch,step,train/loss,val/loss\n0,4,6.1,\n0,4,,6.0\n0,9,,5.5\n")
    assert learning_curve(tmp_path, 64) == {5 * 64: 6.0, 10 * 64: 5.5}


def test_later_logs_go_on_and_win(tmp_path: Path) -> None:
    write(tmp_path, 10, "step,val/loss\n14,4.0\n")
    write(tmp_path, 2, "val/loss,step\n5.0,9\n4.5,14\n")
    assert learning_curve(tmp_path, 1) == {10: 5.0, 15: 4.0}


def test_a_row_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, 0, "val/loss,lr,step\n5.0,0.1,9\n4.5,0.1,14\n4.0,0.")
    assert learning_curve(tmp_path, 1) == {10: 5.0, 15: 4.5}


def test_a_run_without_validations_has_no_curve(tmp_path: Path) -> None:
    assert learning_curve(tmp_path, 64) == {}
    write(tmp_path, 0, "step,train/loss\n4,6.1\n")
    assert learning_curve(tmp_path, 64) == {}


def test_what_was_monitored_is_read_but_for_layers(tmp_path: Path) -> None:
    write(
        tmp_path, 0, "step,paths/entropy_bits,paths/layer_00/load_entropy,load/dead_experts\n4,2.5,0.5,1.0\n9,3.5,,\n"
    )
    assert monitored_curves(tmp_path, 64) == {"entropy_bits": {5 * 64: 2.5, 10 * 64: 3.5}}


def log_of_losses(losses: list[float]) -> str:
    return "step,train/loss\n" + "".join(f"{step},{loss}\n" for step, loss in enumerate(losses))


@given(st.floats(-3, 3), st.floats(-0.1, 0.1), st.integers(3, 30))
def test_a_loss_on_a_line_is_not_rough(start: float, slope: float, number: int) -> None:
    with TemporaryDirectory() as folder:
        write(Path(folder), 0, log_of_losses([start + slope * step for step in range(2 * number)]))
        assert loss_roughness(Path(folder)) == pytest.approx(0, abs=1e-12)


@given(st.lists(st.floats(0, 10), min_size=6, max_size=40))
def test_roughness_is_of_second_differences_in_the_second_half(losses: list[float]) -> None:
    with TemporaryDirectory() as folder:
        write(Path(folder), 0, log_of_losses(losses))
        expected = np.sqrt(np.mean((np.diff(losses[len(losses) // 2 :], n=2) / 2) ** 2))
        assert loss_roughness(Path(folder)) == pytest.approx(expected)


def test_few_losses_have_no_roughness(tmp_path: Path) -> None:
    write(tmp_path, 0, log_of_losses([3.0, 2.0, 1.0, 0.5]))
    assert loss_roughness(tmp_path) is None
