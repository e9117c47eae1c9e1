"""Learning curves, from logs as Lightning writes them."""

from pathlib import Path

from pathmoe_eval.studies.learning_curve import learning_curve


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


def test_a_run_without_validations_has_no_curve(tmp_path: Path) -> None:
    assert learning_curve(tmp_path, 64) == {}
    write(tmp_path, 0, "step,train/loss\n4,6.1\n")
    assert learning_curve(tmp_path, 64) == {}
