"""`make bench-routers`: training steps of the tiny run with every router of `configs/routers/`, alternating."""

import json
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pathmoe.bench.paired import paired_seconds, ratio
from pathmoe.bench.peer import our_inputs
from pathmoe.bench.saved import saved_bytes
from pathmoe.bench.step import training_step
from pathmoe.bench.tests_first import run_tests
from pathmoe.bench.tiny import TinyRun, tiny_run
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.config_files import config_folder
from pathmoe.training.errors import OneLineParser, fail, with_one_line_errors
from pathmoe.training.provenance import provenance

BASELINE = "indep"


def router_names() -> list[str]:
    """Routers that have a file in `configs/routers/`, independent ones first."""
    names = sorted(path.stem for path in (config_folder() / "routers").glob("*.yaml"))
    return [BASELINE, *(name for name in names if name != BASELINE)]


def router_lines(runs: dict[str, TinyRun], rounds: int) -> list[str]:
    """A line a router: speed over that of the first, quartiles of paired rounds; bytes that a step's backward needs.

    All take the first batch of the first run, from weights as they are initialised, so that loads are those of
    routers that have learnt little.

    Args:
        runs: of each router.
        rounds: at least 2.
    """
    baseline = next(iter(runs))
    inputs = our_inputs(next(runs[baseline].data.train_batches()))
    candidates = {name: _candidate(run, inputs) for name, run in runs.items()}
    seconds = paired_seconds({name: step for name, (step, _) in candidates.items()}, rounds)
    lines = [f"{'':<12}  {f'speed over {baseline}: quartiles':>32}  {'saved for backward, MiB':>24}"]
    for name in runs:
        lower, median, upper = ratio(seconds, baseline, name)
        lines.append(
            f"{name:<12}  {f'{lower:.3f}  {median:.3f}  {upper:.3f}':>32}  {candidates[name][1] / 2**20:>24,.1f}"
        )
    return lines


def _candidate(run: TinyRun, inputs: Mapping[str, Tensor | bool]) -> tuple[Callable[[], None], int]:
    """A training step, and the bytes that its backward needs."""
    torch.manual_seed(0)
    model = PathMoEForCausalLM(run.config)
    saved = saved_bytes(lambda: model(**inputs).loss, tuple(model.parameters()))
    return training_step(model, inputs, run), saved


def main() -> None:
    """Run the tests of what is timed, then time it, and print versions, commit and figures."""
    parser = OneLineParser(prog="python -m pathmoe.bench.routers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="Rounds of steps that are timed.")
    rounds = parser.parse_args().rounds
    if rounds < 2:
        fail(f"--rounds ({rounds}) must be at least 2, for quartiles; raise it")
    tested = ("kernels", *(f"pathmoe/test_{name}.py" for name in ("routers", "moe", "sharing", "losses")))
    run_tests(config_folder().parent, tested, ("-m", "not slow"))
    print(json.dumps(provenance(), indent=2))
    for line in router_lines({name: tiny_run(name) for name in router_names()}, rounds):
        print(line)


if __name__ == "__main__":
    with_one_line_errors(main)
