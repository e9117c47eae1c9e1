"""One compiler process under limits: time, memory, output, files, network."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from pathmoe_eval.programs import confine

_LAUNCHER = (sys.executable, "-I", "-S", str(Path(confine.__file__).resolve()))
_KEPT_BYTES = 1 << 15  # of what the process says, at its beginning and at its end
_POLL_SECONDS = 0.002
_NUM_OPEN_FILES = 256
_NUM_PROCESSES = 16


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one compilation may take.

    Args:
        wall_seconds: from its start to its end.
        cpu_seconds: of each of its processes.
        memory_bytes: address space of each of its processes.
        output_bytes: of each file that it writes.
        source_bytes: of the program, before anything is started.

    Raises:
        ValueError: a limit that is not positive.
    """

    wall_seconds: float = 10.0
    cpu_seconds: int = 5
    memory_bytes: int = 1 << 30
    output_bytes: int = 1 << 21
    source_bytes: int = 1 << 18

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"limits.{name} ({value}) must be positive; raise it")

    def of_resource(self) -> dict[str, int]:
        """The limits that the kernel holds, by their names in `resource`."""
        return {
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_CPU": self.cpu_seconds,
            "RLIMIT_FSIZE": self.output_bytes,
            "RLIMIT_CORE": 0,
            "RLIMIT_NOFILE": _NUM_OPEN_FILES,
            "RLIMIT_NPROC": _NUM_PROCESSES,
        }


@dataclass(frozen=True, kw_only=True)
class Confinement:
    """What holds a process here, beside its limits of time.

    Args:
        files: "landlock" (Linux 5.13), where the kernel lets it open only the files that it may; else "checks":
            nothing but the checks of `includes`.
        network: "namespace", where it has none; "no tcp", where Landlock (version 4) lets it make no connections;
            else "not confined". No compiler asks for one.
        limits: those of `Limits.of_resource` that this system has. That of processes (RLIMIT_NPROC) needs a namespace,
            and binds no one who is root.
    """

    files: str
    network: str
    limits: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ConfinedRun:
    """How a confined process ended.

    Args:
        returncode: minus the signal that killed it.
        timed_out: whether it was killed after `Limits.wall_seconds`.
        said: the beginning and the end of its standard error. It may quote any file that the process could read, so
            it is to be matched, never shown.
    """

    returncode: int
    timed_out: bool
    said: bytes


@cache
def confinement() -> Confinement:
    """What this machine offers, found out once by trying it."""
    limits = Limits().of_resource()
    found = subprocess.run([*_LAUNCHER, "--probe", json.dumps(limits)], capture_output=True, check=True).stdout
    offered = json.loads(found)
    network = "namespace" if offered["network"] else "no tcp" if offered["files"] and offered["tcp"] else "not confined"
    return Confinement(
        files="landlock" if offered["files"] else "checks", network=network, limits=tuple(offered["limits"])
    )


def run_confined(command: Sequence[str], folder: Path, readable: Sequence[Path], limits: Limits) -> ConfinedRun:
    """Run a program to its end or to a limit, and end all that it has started.

    It runs in `folder`, which is its place for temporary files too and all that it may write to; its input is empty,
    its output discarded, its environment bare and without date or language. Times of day in programs are 1970.

    Args:
        command: an absolute path, and arguments.
        readable: folders and files that it may open, itself and its libraries included.

    Raises:
        OSError: it could not be confined as `confinement` says, so it did not run.
    """
    held = confinement()
    order = {
        "read": [str(path) for path in readable],
        "write": [str(folder)],
        "limits": {name: value for name, value in limits.of_resource().items() if name in held.limits},
        "files": held.files == "landlock",
        "network": held.network == "namespace",
    }
    deadline = time.monotonic() + limits.wall_seconds
    process = subprocess.Popen(
        [*_LAUNCHER, json.dumps(order), *command],
        cwd=folder,
        env=_environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stderr is not None
    with process, process.stderr:
        try:
            said = _read_until_closed(process.stderr, deadline)
            timed_out = not _wait_unreaped(process, deadline)
        finally:
            # While the leader is not reaped, the number of its group is still its own.
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
        returncode = process.wait()
    if returncode == confine.CANNOT_CONFINE:
        raise OSError(said.decode(errors="replace").strip())
    return ConfinedRun(returncode=returncode, timed_out=timed_out, said=said)


def _environment(folder: Path) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LC_ALL": "C",
        "SOURCE_DATE_EPOCH": "0",
    }


def _read_until_closed(pipe: IO[bytes], deadline: float) -> bytes:
    """The beginning and the end of what comes, until all who hold the other end are gone, or until the deadline."""
    first, last = b"", b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0 and selector.select(left):
            read = os.read(pipe.fileno(), _KEPT_BYTES)
            if not read:
                break
            space = _KEPT_BYTES - len(first)
            first, last = first + read[:space], (last + read[space:])[-_KEPT_BYTES:]
    return first + last


def _wait_unreaped(process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Whether the process ends by the deadline; it stays a zombie where the system can wait so."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        return process.returncode is not None
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
