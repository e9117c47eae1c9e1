"""What a fit would train, against what a dry run prints, and its errors."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pathmoe.training.resolution import resolved_fit


def test_it_is_what_a_dry_run_prints(command_line: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--config", "tiny", "--config=path_b4", "--model.config.layers_per_router=[2, 6]"]
    before = sys.argv[:]
    resolved = resolved_fit(flags)
    assert sys.argv == before
    assert capsys.readouterr() == ("", "")
    assert resolved["model"]["config"]["layers_per_router"] == [2, 6]
    assert resolved == yaml.safe_load(command_line("fit", *flags, "--dry_run").out.partition("\n\n")[0])


def test_blank_lines_of_a_value_do_not_end_the_configuration(tmp_path: Path) -> None:
    prompt = "def f():\n\n\nparameters  3\n"
    closing = {"class_path": "pathmoe_eval.closing.ClosingReport", "init_args": {"prompt": prompt}}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [closing]}}))
    resolved = resolved_fit(["--config=tiny", f"--config={tmp_path / 'more.yaml'}"])
    assert resolved["trainer"]["callbacks"][0]["init_args"]["prompt"] == prompt


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--config=tiny", "--model.config.num_experts_per_tok=99"],
         r"^model.config.num_experts_per_tok \(99\) must be at most model.config.num_experts \(16\); lower"),
        (["--config=nowhere"], r"^--config \(nowhere\) must be a file or one shipped config"),
        (["--config=tiny", "--model.config.num_expert=3"], r"^--model.config.num_expert.* is not a known option"),
    ],
)  # fmt: skip
def test_errors_are_those_of_the_command_line(flags: list[str], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        resolved_fit(flags)
