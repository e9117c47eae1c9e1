"""Run a file's short set of tests on mutants of it, each in a process of its own."""

import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from enum import StrEnum
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from short_sets import PACKAGE, ROOT

ENVIRONMENT = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# Imported once, before processes fork: all that tests of kernels come to import, but the kernels.
PRELOADED = ["hypothesis", "numpy", "pytest", "torch", "torch._dynamo", "triton", "triton.experimental.gluon"]

LIMIT_S = 120
LIMIT_BYTES = 8 * 2**30


class Fate(StrEnum):
    """How the tests ended."""

    WRONG = "wrong result"
    RAISED = "raised"
    CRASHED = "crashed"
    TIMED_OUT = "timed out"
    SURVIVED = "survived"


class Job(NamedTuple):
    """A source to test in place of a file of the package."""

    file: str
    source: str
    tests: list[str]
    """Arguments of pytest."""


class _Failures:
    """A plugin of pytest that notes whether an assertion failed, or something was raised."""

    def __init__(self) -> None:
        self.asserted = False

    def pytest_sessionstart(self) -> None:
        """Any failing example will do, so hypothesis need not look for the smallest."""
        from hypothesis import Phase, settings

        first_failure = settings(phases=[Phase.explicit, Phase.generate], report_multiple_bugs=False)
        settings.register_profile("first failure", first_failure)
        settings.load_profile("first failure")

    def pytest_exception_interact(self, call: Any) -> None:
        """Note it."""
        errors = [call.excinfo.value]
        while errors:
            error = errors.pop()
            self.asserted |= isinstance(error, AssertionError)
            errors += getattr(error, "exceptions", ())


FATES = {10: Fate.SURVIVED, 11: Fate.WRONG, 12: Fate.RAISED}
"""By exit status; none that Python, pytest or a signal would give."""


def _test(folder: str, arguments: list[str]) -> NoReturn:
    """The forked process: the tests on the package in `folder`; prints go to its log."""
    log = os.open(Path(folder, "log"), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(ROOT)
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    import pytest

    failures = _Failures()
    # Nobody reads the messages that rewritten assertions give.
    options = ["-x", "-q", "-p", "no:cacheprovider", "--assert=plain"]
    code = pytest.main([*options, *arguments], plugins=[failures])
    loaded = [module.__file__ or "" for name, module in sys.modules.items() if name.startswith("pathmoe_kernels")]
    if any(not file.startswith(folder) for file in loaded):
        print(f"tested another copy of the package: {loaded}")
    elif code == pytest.ExitCode.OK and loaded:
        os._exit(10)
    elif code in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED):
        os._exit(11 if failures.asserted else 12)
    sys.stdout.flush()
    os._exit(1)


def _start(context: Any, job: Job, folder: str) -> BaseProcess:
    copied = Path(folder, PACKAGE.name)
    shutil.copytree(PACKAGE, copied, ignore=shutil.ignore_patterns("__pycache__"))
    (copied / f"{job.file}.py").write_text(job.source)
    process = context.Process(target=_test, args=(folder, job.tests), daemon=True)
    process.start()
    return process


def _fate(process: BaseProcess, folder: str) -> Fate:
    if process.exitcode is None:
        process.kill()
        process.join()
        return Fate.TIMED_OUT
    if process.exitcode < 0:
        return Fate.CRASHED
    if process.exitcode not in FATES:
        raise RuntimeError(f"the tests did not run:\n{Path(folder, 'log').read_text()}")
    return FATES[process.exitcode]


def run(jobs: list[Job]) -> list[Fate]:
    """How each job's tests end, as many at a time as there are cores."""
    os.environ.update(ENVIRONMENT)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    cores, waiting, running = len(os.sched_getaffinity(0)), list(enumerate(jobs))[::-1], {}
    fates: dict[int, Fate] = {}
    with tempfile.TemporaryDirectory(prefix="pathmoe-mutants-") as parent:
        while waiting or running:
            while waiting and len(running) < cores:
                i, job = waiting.pop()
                folder = tempfile.mkdtemp(dir=parent)
                running[i] = (_start(context, job, folder), folder, time.monotonic() + LIMIT_S)
            ended = wait([process.sentinel for process, _, _ in running.values()], timeout=1)
            for i, (process, folder, deadline) in list(running.items()):
                if process.sentinel in ended:
                    process.join()
                if process.exitcode is not None or time.monotonic() > deadline:
                    fates[i] = _fate(process, folder)
                    shutil.rmtree(folder, ignore_errors=True)
                    del running[i]
    return [fates[i] for i in range(len(jobs))]
