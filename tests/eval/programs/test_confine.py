"""What a confined process can no longer do, tried by ordinary programs."""

import json
import socket
import subprocess
import sys

import pytest

from pathmoe_eval.programs import confine
from pathmoe_eval.programs.sandbox import confinement

SYSTEM = ["/usr", "/bin", "/lib", "/lib64"]
needs_landlock = pytest.mark.skipif(confinement().files != "landlock", reason="this kernel has no Landlock")
needs_namespaces = pytest.mark.skipif(confinement().network != "namespace", reason="no namespaces for this user")


def launch(order, *command):
    order = {"read": [], "write": [], "limits": {}, "files": False, "network": False} | order
    launcher = [sys.executable, "-I", "-S", confine.__file__]
    return subprocess.run([*launcher, json.dumps(order), *command], capture_output=True, text=True, timeout=60)


@needs_landlock
def test_only_files_below_the_named_paths_can_be_opened(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("inside")
    (tmp_path / "other").write_text("outside")
    (tmp_path / "mine" / "link").symlink_to(tmp_path / "other")
    order = {"read": [*SYSTEM, str(tmp_path / "mine")], "files": True}
    read = {
        name: launch(order, "/bin/cat", str(tmp_path / name)).stdout for name in ("mine/file", "mine/link", "other")
    }
    assert read == {"mine/file": "inside", "mine/link": "", "other": ""}
    assert launch(order, "/bin/cat", "/dev/zero").returncode == 1
    assert launch(order | {"files": False}, "/bin/cat", str(tmp_path / "mine" / "link")).stdout == "outside"


@needs_landlock
def test_only_the_named_folder_can_be_written(tmp_path):
    (tmp_path / "mine").mkdir()
    order = {"read": SYSTEM, "write": [str(tmp_path / "mine")], "files": True}
    script = f"cd {tmp_path}/mine; echo a > a; echo b > ../b; ln -s ../c c; echo c > c; chmod +x a; ./a"
    assert launch(order, "/bin/sh", "-c", script).returncode != 0
    assert (tmp_path / "mine" / "a").read_text() == "a\n"
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()


@needs_landlock
def test_what_lies_in_the_writable_folder_cannot_be_started(tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho started\n")
    program.chmod(0o755)
    order = {"read": SYSTEM, "write": [str(tmp_path)], "files": True}
    assert launch(order | {"files": False}, "/bin/sh", "-c", str(program)).stdout == "started\n"
    assert launch(order, "/bin/sh", "-c", str(program)).stdout == ""


@needs_namespaces
def test_there_is_no_network():
    with socket.create_server(("127.0.0.1", 0)) as server:
        script = (
            f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]})); print('connected')"
        )
        reached = [
            launch({"network": network}, sys.executable, "-I", "-S", "-c", script).stdout for network in (False, True)
        ]
    assert reached == ["connected\n", ""]


@needs_landlock
def test_without_confinement_the_program_does_not_start(tmp_path):
    run = launch({"files": True, "read": [str(tmp_path / "missing")]}, "/bin/echo", "started")
    assert run.returncode == confine.CANNOT_CONFINE
    assert run.stdout == ""
    assert run.stderr.startswith("cannot confine: ")


def test_limits_hold_in_the_program():
    said = launch({"limits": {"RLIMIT_FSIZE": 1 << 20, "RLIMIT_CORE": 0}}, "/bin/sh", "-c", "ulimit -f; ulimit -c")
    assert said.stdout.split()[1] == "0"
    assert int(said.stdout.split()[0]) in (1 << 20 >> 9, 1 << 20 >> 10)  # blocks of 512 or 1024 bytes


def test_limits_that_the_system_does_not_have_are_named():
    assert confine.set_limits({"RLIMIT_OF_PATIENCE": 1}) == ["RLIMIT_OF_PATIENCE"]


def test_a_probe_says_what_is_there():
    asked = json.dumps({"RLIMIT_CORE": 0, "RLIMIT_OF_PATIENCE": 1})
    found = subprocess.run(
        [sys.executable, "-I", "-S", confine.__file__, "--probe", asked], capture_output=True, check=True
    )
    offered = json.loads(found.stdout)
    assert offered["limits"] == ["RLIMIT_CORE"]
    assert offered["files"] == (confine.landlock_version() > 0)
