# Shapes: N tokens, L layers.
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from pathmoe_eval.flow import Flow, flow_svg

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


def test_a_run_that_is_not_there_ends_in_one_line() -> None:
    command = [sys.executable, "-m", "pathmoe_eval.flow", "--runs", "no/such/run", "--out", "paths.svg"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1 and "no/such/run" in ended.stderr
