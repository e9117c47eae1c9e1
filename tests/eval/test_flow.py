"""The picture of paths: what is drawn, and a real run drawn by the command."""

# Shapes: N tokens, L layers.

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pathmoe.training.errors import with_one_line_errors
from pathmoe.training.open_run import open_run
from pathmoe_eval.flow import Flow, flow_svg, main, record_paths

SVG = "{http://www.w3.org/2000/svg}"


def drawn(flow: Flow) -> ElementTree.Element:
    return ElementTree.fromstring(flow_svg([flow]))


def test_one_ribbon_for_each_transition_as_wide_as_its_share() -> None:
    path_ids_NL = np.array([[0, 1, 1]] * 3 + [[2, 1, 0]])
    root = drawn(Flow("a run", path_ids_NL, 3, (0, 0, 1)))
    widths = sorted(float(path.get("stroke-width", 0)) for path in root.iter(f"{SVG}path"))
    # Layer 0 to 1: 3/4 and 1/4 of the tokens; layer 1 to 2 the same.
    assert widths[0] == widths[1] == pytest.approx(widths[2] / 3) and widths[2] == widths[3]


def test_a_node_for_each_expert_and_a_band_for_each_router() -> None:
    flow = Flow("x < y", np.zeros((5, 4), dtype=int), 6, (0, 0, 1, 1))
    root = drawn(flow)
    assert len(list(root.iter(f"{SVG}circle"))) == 4 * 6
    # The white ground, and one band for each of the two routers.
    assert len(list(root.iter(f"{SVG}rect"))) == 1 + 2
    assert "x < y" in [text.text for text in root.iter(f"{SVG}text")]


def test_panels_stand_side_by_side() -> None:
    flow = Flow("run", np.zeros((5, 2), dtype=int), 2, (0, 1))
    one, two = (float(ElementTree.fromstring(flow_svg([flow] * n)).get("viewBox", "").split()[2]) for n in (1, 2))
    assert two > 2 * one


@pytest.fixture(scope="module")
def run(fit_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_tiny(tmp_path_factory.mktemp("runs") / "first", num_hidden_layers=3, layers_per_router=[1, 2])


@torch.inference_mode()
def exported_paths(run: Path, num_blocks: int) -> np.ndarray:
    """The same from the exported model, block by block, as the experts with the highest router logits."""
    model, blocks = AutoModelForCausalLM.from_pretrained(run / "export").eval(), open_run(str(run))[1].validation_blocks
    batches = [blocks.batch(np.array([number])) for number in range(num_blocks)]
    inputs = [{"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]} for batch in batches]
    outputs = [model(**of_block, output_router_logits=True) for of_block in inputs]
    paths = [torch.stack([r.logits_TE.argmax(-1) for r in output.routings], dim=-1) for output in outputs]
    return torch.cat(paths).numpy()


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 7])
def test_the_paths_of_a_run_are_those_of_its_first_validation_blocks(run: Path, num_blocks: int) -> None:
    flow = record_paths(str(run), num_blocks)
    assert (flow.title, flow.num_experts, flow.router_of_layer) == ("first", 4, (0, 1, 1))
    assert np.array_equal(flow.path_ids_NL, exported_paths(run, num_blocks))
    assert len(flow.path_ids_NL) == num_blocks * 32


def test_more_blocks_than_there_are_is_all_of_them(run: Path) -> None:
    flow = record_paths(str(run), 10**6)
    assert len(flow.path_ids_NL) == len(open_run(str(run))[1].validation_blocks) * 32


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["flow", *map(str, arguments)])
    main()


def test_the_command_draws_the_runs(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pictures" / "paths.svg"
    command(monkeypatch, "--runs", run, run / "best.ckpt", "--out", out, "--blocks", 3)
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert list(out.parent.iterdir()) == [out]
    root = ElementTree.fromstring(out.read_text())
    texts = [text.text or "" for text in root.iter(f"{SVG}text")]
    assert texts.count("first") == 2
    assert len([text for text in texts if text.startswith("96 tokens, path entropy ")]) == 2
    assert len(list(root.iter(f"{SVG}circle"))) == 2 * 3 * 4


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["{run}", "no/such/run", "--out", "new/paths.svg"], "--ckpt_path (no/such/run) must be an existing checkp"),
        (["last", "--out", "new/paths.svg"], "--ckpt_path (last) must name a run, but runs holds no */last.ckpt; "),
        (["{run}", "--out", "."], "--out (.) must be a file, not a folder; name the SVG file to write"),
        (["{run}", "--out", "new/paths.svg", "--blocks", "0"], "--blocks (0) must be at least 1; raise it"),
        (["{run}", "--out", "new/paths.svg", "--blocks", "few"], "blocks (few) must be of type int; change it"),
        (["{run}"], "--out must be given; add it"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_command_ends_in_one_line_and_writes_nothing(
    arguments: list[str],
    line: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"^2$"):
        with_one_line_errors(lambda: command(monkeypatch, "--runs", *(word.format(run=run) for word in arguments)))
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {line}")
    assert list(tmp_path.iterdir()) == []


def test_a_process_of_its_own_ends_in_one_line_too() -> None:
    words = [sys.executable, "-m", "pathmoe_eval.flow", "--runs", "no/such/run", "--out", "paths.svg"]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1 and "no/such/run" in ended.stderr
