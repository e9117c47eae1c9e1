"""Steps of several routers side by side."""

import subprocess
import sys

from pathmoe.bench.routers import router_lines, router_names
from pathmoe.bench.tiny import TinyRun
from pathmoe.training.config_files import config_folder
from tests.bench.conftest import shape


def test_all_routers_are_timed() -> None:
    names = router_names()
    assert names[0] == "indep" and {"path_b4", "recurrent", "omni"} < set(names)
    assert len(set(names)) == len(names) == len(list((config_folder() / "routers").iterdir()))


def test_a_line_for_each_router(run: TinyRun) -> None:
    runs = {
        "indep": run._replace(config=shape(layers_per_router=1)),
        "shared": run,
        "wide": run._replace(config=shape(moe_intermediate_size=512)),
    }
    head, *lines = router_lines(runs, 3)
    assert "speed over indep" in head
    figures = {name: [float(number) for number in numbers] for name, *numbers in map(str.split, lines)}
    assert list(figures) == list(runs)
    assert figures["indep"][:3] == [1, 1, 1]
    for lower, median, upper, saved in figures.values():
        assert 0 < lower <= median <= upper and saved > 0
    assert figures["wide"][1] < 1, "slower, hence a lower speed"
    assert figures["indep"][3] == figures["shared"][3] < figures["wide"][3]


def test_too_few_rounds_end_in_one_line() -> None:
    command = [sys.executable, "-m", "pathmoe.bench.routers", "--rounds", "1"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: --rounds (1)") and ended.stderr.count("\n") == 1
