"""A script that gives up rights and becomes another program: `python -I -S confine.py ORDER PROGRAM ARGUMENT ...`.

It stands alone, on the standard library, so that it starts fast. ORDER is JSON: `read` and `write`, folders and files;
`limits`, the name of a limit of `resource` to its value; `files` and `network`, whether those rights have to go. Where
they must and cannot, it exits with CANNOT_CONFINE, and the program never starts. With `--probe` for ORDER it prints
which of them it can give up here.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial

CANNOT_CONFINE = 125
"""Exit status of a launch that failed."""

# Numbers of linux/landlock.h, sched.h and prctl.h; the system calls have these on every architecture of Linux 5.13.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_GET_VERSION, _PATH_BENEATH = 1, 1
_NO_NEW_PRIVILEGES = 38
_NEW_USER, _NEW_NETWORK, _NEW_IPC = 0x10000000, 0x40000000, 0x08000000

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER, _TRUNCATE, _DEVICE_CONTROL = (1 << bit for bit in (0, 1, 2, 3, 14, 15))
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _DEVICE_CONTROL
_READ = _EXECUTE | _READ_FILE | _READ_FOLDER
_NUM_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # of files, by version of Landlock; 16 from version 5 on
_TCP, _SOCKETS_AND_SIGNALS = 3, 3


def landlock_version() -> int:
    """Version of Landlock that this kernel has, 0 for none."""
    return max(0, _system_call(_CREATE_RULESET, None, 0, _GET_VERSION)) if sys.platform == "linux" else 0


def restrict_files(read: Iterable[str], write: Iterable[str]) -> None:
    """Let this process and its children open only what lies below these paths, by Landlock; TCP goes too, if it can.

    A path is followed to where it leads now; a symbolic link that leads out of the paths leads nowhere afterwards.

    Raises:
        OSError: the kernel refuses, or a path is not there.
    """
    version = landlock_version()
    rights = (1 << _NUM_RIGHTS.get(version, 16)) - 1
    attributes = struct.pack("=QQQ", rights, _TCP, _SOCKETS_AND_SIGNALS)
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = _checked(_system_call(_CREATE_RULESET, attributes, size, 0))
    for paths, allowed in ((read, _READ & rights), (write, rights & ~_EXECUTE)):
        for path in paths:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            beneath = struct.pack("=Qi", allowed if os.path.isdir(path) else allowed & _FILE_RIGHTS, place)
            _checked(_system_call(_ADD_RULE, rules, _PATH_BENEATH, beneath, 0))
            os.close(place)
    _checked(_libc().prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    _checked(_system_call(_RESTRICT_SELF, rules, 0))
    os.close(rules)


def leave_network() -> None:
    """Move this process into namespaces of its own where there is no network, not even a loopback that is up.

    Raises:
        OSError: the kernel, or who rules it, refuses.
    """
    _checked(_libc().unshare(_NEW_USER | _NEW_NETWORK | _NEW_IPC))


def set_limits(limits: Mapping[str, int]) -> list[str]:
    """Set limits of `resource`, for good; returns those that this system does not have or refuses.

    Of CPU seconds the process is told one second before it is killed.
    """
    refused = []
    for name, value in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (value, value + (name == "RLIMIT_CPU")))
        except (AttributeError, OSError, ValueError):
            refused.append(name)
    return refused


def probe(limits: Mapping[str, int]) -> dict[str, object]:
    """What can be given up here: `files`, `tcp`, `network`, and `limits`; each is tried in a process of its own."""
    version = landlock_version()
    network = sys.platform == "linux" and _works(leave_network)
    # Without a namespace of users, or before Linux 5.14, all processes of the user would count, here and elsewhere.
    useless = set() if network and version >= 2 else {"RLIMIT_NPROC"}
    useless |= {"RLIMIT_AS"} if sys.platform == "darwin" else set()  # which takes it and does not heed it
    return {
        "files": version > 0 and _works(lambda: restrict_files([], [])),
        "tcp": version >= 4,
        "network": network,
        "limits": [name for name in limits if name not in useless and _works(partial(_set_one, name, limits[name]))],
    }


def main(arguments: list[str]) -> None:
    """Give up what the order says and become the program; returns only after a probe."""
    if arguments[0] == "--probe":
        print(json.dumps(probe(json.loads(arguments[1]))))
        return
    order = json.loads(arguments[0])
    try:
        if order["network"]:
            leave_network()
        set_limits(order["limits"])
        if order["files"]:
            restrict_files(order["read"], order["write"])
        os.execve(arguments[1], arguments[1:], dict(os.environ))
    except OSError as error:
        print(f"cannot confine: {error}", file=sys.stderr)
        sys.exit(CANNOT_CONFINE)


def _set_one(name: str, value: int) -> None:
    if set_limits({name: value}):
        raise OSError(name)


def _works(attempt: Callable[[], None]) -> bool:
    child = os.fork()
    if child == 0:
        try:
            attempt()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _system_call(number: int, *arguments: int | bytes | None) -> int:
    return int(_libc().syscall(number, *arguments))


def _checked(returned: int) -> int:
    if returned < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return returned


if __name__ == "__main__":
    main(sys.argv[1:])
