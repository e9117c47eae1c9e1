"""Confined runs of small shell scripts: how they end at each limit, and what they leave behind."""

import os
import sys
import time
from pathlib import Path

import pytest

from pathmoe_eval.programs.sandbox import Limits, confinement, run_confined

SYSTEM = [Path(path) for path in ("/usr", "/bin", "/lib", "/lib64", sys.base_prefix) if Path(path).exists()]
LIMITS = Limits(wall_seconds=20, cpu_seconds=1, memory_bytes=1 << 28, output_bytes=1 << 16)


def shell(script, folder, limits=LIMITS):
    return run_confined(["/bin/sh", "-c", script], folder, SYSTEM, limits)


def held(name):
    return pytest.mark.skipif(name not in confinement().limits, reason=f"this system does not have {name}")


def test_a_program_that_ends_well(tmp_path):
    run = shell("cat; echo done > made; echo said >&2; echo output", tmp_path)
    assert (run.returncode, run.timed_out, run.said) == (0, False, b"said\n")
    assert (tmp_path / "made").read_text() == "done\n"


def test_the_status_is_passed_on(tmp_path):
    assert shell("exit 3", tmp_path).returncode == 3
    assert shell("kill -SEGV $$", tmp_path).returncode == -11


def test_the_environment_is_bare(tmp_path, monkeypatch):
    monkeypatch.setenv("C_INCLUDE_PATH", "/somewhere")
    said = shell("env >&2", tmp_path).said.decode()
    names = {line.split("=")[0] for line in said.splitlines()}
    assert names - {"PWD", "OLDPWD", "SHLVL", "_", "__CF_USER_TEXT_ENCODING"} == {
        "PATH",
        "HOME",
        "TMPDIR",
        "LC_ALL",
        "SOURCE_DATE_EPOCH",
    }
    assert f"TMPDIR={tmp_path}\n" in said


def test_what_a_program_leaves_behind_is_ended(tmp_path):
    # It holds no end of the pipe any more, so that the run ends before it does.
    run = shell("touch empty; sleep 300 < empty 2> empty & echo $! > pid", tmp_path)
    assert (run.returncode, run.timed_out) == (0, False)
    _wait_until_gone(int((tmp_path / "pid").read_text()))


def test_a_program_that_does_not_end_is_ended(tmp_path):
    started = time.monotonic()
    run = shell("touch empty; sleep 300 < empty & echo $! > pid; sleep 300", tmp_path, Limits(wall_seconds=0.5))
    assert run.timed_out
    assert time.monotonic() - started < 30
    _wait_until_gone(int((tmp_path / "pid").read_text()))


def _wait_until_gone(pid):
    """A killed orphan stays in the table until its new parent takes note; a zombie does nothing."""
    for _ in range(500):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat")
            if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except ProcessLookupError:
            return
        time.sleep(0.02)
    pytest.fail(f"process {pid} is still there")


@held("RLIMIT_CPU")
def test_cpu_time_is_limited(tmp_path):
    run = shell("while :; do :; done", tmp_path)
    assert not run.timed_out
    assert run.returncode == -24  # SIGXCPU, before the end of the wall clock's time


@held("RLIMIT_FSIZE")
def test_files_are_limited(tmp_path):
    run = shell("while :; do echo 0123456789012345678901234567890123456789; done > big", tmp_path)
    assert run.returncode != 0
    assert (tmp_path / "big").stat().st_size <= LIMITS.output_bytes


@held("RLIMIT_AS")
def test_memory_is_limited(tmp_path):
    script = "x = bytearray(1 << 29)"
    python = [os.path.realpath(getattr(sys, "_base_executable", sys.executable)), "-I", "-S", "-c", script]
    assert b"MemoryError" in run_confined(python, tmp_path, SYSTEM, LIMITS).said
    assert run_confined(python, tmp_path, SYSTEM, Limits()).returncode == 0


def test_of_much_that_is_said_the_beginning_and_the_end_are_kept(tmp_path):
    run = shell(
        "echo first >&2; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo 0123456789 >&2; done; echo last >&2", tmp_path
    )
    assert run.returncode == 0
    assert run.said.startswith(b"first\n0123456789\n") and run.said.endswith(b"0123456789\nlast\n")
    assert len(run.said) == 1 << 16


@pytest.mark.skipif(confinement().files != "landlock", reason="this kernel has no Landlock")
def test_a_path_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError, match="cannot confine"):
        run_confined(["/bin/echo"], tmp_path, [tmp_path / "missing"], LIMITS)


@pytest.mark.parametrize("name", ["wall_seconds", "cpu_seconds", "memory_bytes", "output_bytes", "source_bytes"])
def test_limits_must_be_positive(name):
    with pytest.raises(ValueError, match=rf"^limits\.{name} \(0\) must be positive; raise it$"):
        Limits(**{name: 0})
