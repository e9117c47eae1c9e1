"""Pages in a real browser: every figure drawn, nothing on the console, nothing fetched, no overflow, light and dark."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pathmoe_eval.reports.compare import compare
from pathmoe_eval.reports.report import report_page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium on the PATH; apt-get install chromium"),
]

# The page lies in a frame, since a window has a least width; once its figures are drawn, the frame is measured.
FRAME = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe src="page.html" style="width:%dpx;height:9000px;border:0"></iframe><pre id="found"></pre><script>
const frame = document.querySelector("iframe");
const colour = (element) => frame.contentWindow.getComputedStyle(element).backgroundColor;
const measure = () => {
  const page = frame.contentDocument;
  if (page.documentElement.dataset.figuresDrawn === undefined) { setTimeout(measure, 50); return; }
  const marks = ".point, .js-line, .heatmaplayer image, .sankey-link, .xy .points path";
  document.getElementById("found").textContent = JSON.stringify({
    drawn: Number(page.documentElement.dataset.figuresDrawn),
    marks: [...page.querySelectorAll(".plot")].map((plot) => plot.querySelectorAll(marks).length),
    svgs: [...page.querySelectorAll(".plot")].map((plot) => plot.querySelectorAll("svg.main-svg").length),
    width: page.documentElement.scrollWidth,
    inner: frame.contentWindow.innerWidth,
    wide: [...page.querySelectorAll("main *")].filter((element) => !element.closest(".scroll")
      && element.getBoundingClientRect().right > frame.contentWindow.innerWidth + 1).length,
    fetched: frame.contentWindow.performance.getEntriesByType("resource").map((entry) => entry.name),
    background: colour(page.documentElement),
    text: frame.contentWindow.getComputedStyle(page.body).color,
    tick: frame.contentWindow.getComputedStyle(page.querySelector(".xtick text")).fill,
    title: page.title,
    scripts: page.scripts.length,
  });
};
frame.onload = measure;
</script></body>"""


def opened(page: str, folder: Path, width: int, *, dark: bool) -> tuple[dict[str, Any], list[str]]:
    """What the browser made of a page in a window of that width, and what stood on its console."""
    (folder / "page.html").write_text(page, encoding="utf-8")
    (folder / "frame.html").write_text(FRAME % width)
    run = subprocess.run(
        [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND",
            "--allow-file-access-from-files", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--window-size=1400,1000", "--virtual-time-budget=60000", "--enable-logging=stderr", "--dump-dom",
            (folder / "frame.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=150, env=os.environ | {"HOME": str(folder)}, errors="replace",
    )  # fmt: skip
    found = re.search(r'<pre id="found">(.+?)</pre>', run.stdout, re.DOTALL)
    assert found, run.stderr[-2000:]
    console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])), console


def check(found: dict[str, Any], console: list[str], width: int, num_figures: int) -> None:
    """What holds for every page."""
    assert console == []
    assert found["drawn"] == len(found["marks"]) == num_figures
    assert all(found["marks"]), found["marks"]
    assert all(found["svgs"]), found["svgs"]
    assert found["fetched"] == []
    assert found["inner"] == width
    assert found["width"] <= width
    assert found["wide"] == 0


def lightness(colour: str) -> float:
    """Mean of the three channels of rgb(...), from 0 to 255."""
    channels = [float(value) for value in re.findall(r"[\d.]+", colour)[:3]]
    return sum(channels) / 3


@pytest.mark.parametrize("routers", [(0, 0, 1, 1, 1), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (400, False), (400, True)])
def test_a_report_is_drawn(make_report, tmp_path: Path, width: int, dark: bool, routers: tuple[int, ...]) -> None:
    found, console = opened(report_page(make_report(router_of_layer=routers)), tmp_path, width, dark=dark)
    check(found, console, width, 22)
    assert (lightness(found["background"]) < 60) == dark
    for text in (found["text"], found["tick"]):
        assert abs(lightness(text) - lightness(found["background"])) > 90


def test_24_layers_of_16_experts_are_drawn(make_report, tmp_path: Path) -> None:
    routers = tuple(layer // 4 for layer in range(24))
    report = make_report(router_of_layer=routers, num_experts=16, num_experts_per_tok=4, num_tokens=2000)
    check(*opened(report_page(report), tmp_path, 400, dark=False), 400, 22)


@pytest.mark.parametrize(("width", "dark"), [(1200, True), (400, False)])
def test_a_study_of_locality_is_drawn(make_report, study_sections, tmp_path: Path, width: int, dark: bool) -> None:
    report = make_report() | {"sections": study_sections()}
    check(*opened(report_page(report), tmp_path, width, dark=dark), width, 11)


def test_a_comparison_is_drawn(make_report, tmp_path: Path) -> None:
    reports = {"one": make_report(), "two": make_report(router_of_layer=(0, 1, 2, 3, 4), num_tokens=500)}
    for width in (400, 1200):
        check(*opened(compare(reports, "pathmoe-eval compare").page, tmp_path, width, dark=False), width, 4)


def test_hostile_texts_run_nowhere(make_report, tmp_path: Path) -> None:
    report = make_report()
    attack = "</script><img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
    report["run"]["model"] = attack
    for path in report["sections"]["path_tokens"][0]["paths"]:
        path["tokens"] = [{"token_id": 0, "text": attack, "num_tokens": 1}]
    found, console = opened(report_page(report), tmp_path, 1200, dark=False)
    check(found, console, 1200, 22)
    assert found["title"] == f"Expert paths of {attack}"
    assert found["scripts"] == 3
    comparison = compare({attack: report, "two": make_report()}, "pathmoe-eval compare")
    found, console = opened(comparison.page, tmp_path, 1200, dark=False)
    check(found, console, 1200, 4)
    assert found["title"] == "2 models side by side"


def test_a_script_that_gets_past_escaping_does_not_run(make_report, tmp_path: Path) -> None:
    page = report_page(make_report()).replace("<main>", "<main><script>document.title = 'run'</script>", 1)
    found, console = opened(page, tmp_path, 1200, dark=False)
    assert found["title"] == "Expert paths of runs/one/last.ckpt"
    assert len(console) == 1
    assert "violates the following Content Security Policy" in console[0]
