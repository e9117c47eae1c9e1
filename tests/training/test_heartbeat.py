"""Files of heartbeats, and what they say of ranks that are late, gone or missing."""

import json
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from pathmoe.training.heartbeat import Heartbeat, heartbeat_file, late_ranks, main, read_heartbeats, write_heartbeat

SCRIPT = Path(__file__).resolve().parents[2] / "pathmoe" / "training" / "heartbeat.py"
USAGE = "python -m pathmoe.training.heartbeat RUN [--max_age SECONDS]"


def beating(rank: int = 0, **fields: object) -> Heartbeat:
    now = time.time()
    heartbeat = Heartbeat(
        rank=rank, world_size=3, host=f"node{rank}", pid=100 + rank, step=7, phase="forward", beat=20, unix_time=now,
        alive_unix_time=now, step_seconds=0.5,
    )  # fmt: skip
    return replace(heartbeat, **fields)  # type: ignore[arg-type]  # any of its fields


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "heartbeat").mkdir()
    return tmp_path


def write(run: Path, *heartbeats: Heartbeat) -> None:
    for heartbeat in heartbeats:
        write_heartbeat(run, heartbeat)


def test_what_is_written_is_read_in_the_order_of_ranks(run: Path) -> None:
    heartbeats = [beating(rank) for rank in (11, 2, 0)]
    write(run, *heartbeats)
    assert read_heartbeats(run) == heartbeats[::-1]
    assert sorted(path.name for path in (run / "heartbeat").iterdir()) == [
        "rank-00000.json", "rank-00002.json", "rank-00011.json"
    ]  # fmt: skip


def test_the_file_has_the_time_for_people_and_for_programs(run: Path) -> None:
    write(run, beating(unix_time=1700000000.25))
    content = json.loads(heartbeat_file(run, 0).read_text())
    assert content["time"] == "2023-11-14T22:13:20.250+00:00"
    assert datetime.fromisoformat(content["time"]).timestamp() == content["unix_time"] == 1700000000.25
    assert {"step", "phase", "host", "pid", "rank", "step_seconds"} <= content.keys()


def late_while_hearts_beat(run: Path, *silent: int) -> list[str]:
    """What is said while the hearts of all ranks but those that are silent or have ended go on."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.02):
            for heartbeat in read_heartbeats(run):
                if heartbeat.rank not in silent and heartbeat.phase != "ended":
                    write_heartbeat(run, replace(heartbeat, alive_unix_time=time.time()))

    hearts = threading.Thread(target=beat)
    hearts.start()
    try:
        return late_ranks(run, seconds=0.5)
    finally:
        stop.set()
        hearts.join()


def test_ranks_at_the_same_place_are_not_late(run: Path) -> None:
    write(run, *(beating(rank, unix_time=time.time() - 600) for rank in range(3)))
    assert late_while_hearts_beat(run) == []


def test_a_rank_that_waits_for_data_keeps_the_others_in_their_step(run: Path) -> None:
    write(run, beating(0), beating(1, beat=19, phase="data", unix_time=time.time() - 40), beating(2))
    (line,) = late_while_hearts_beat(run)
    assert re.fullmatch(r"rank 1 on node1 \(pid 101\): step 7, data for 4[01] s, last step 0\.50 s", line)


def test_a_rank_that_has_ended_is_named_where_no_other_is_to_blame(run: Path) -> None:
    write(run, beating(0), beating(1, phase="ended", unix_time=time.time() - 5), beating(2))
    (line,) = late_while_hearts_beat(run)
    assert re.fullmatch(r"rank 1 on node1 \(pid 101\): step 7, ended for [56] s, last step 0\.50 s", line)
    write(run, beating(2, beat=19))
    (line,) = late_while_hearts_beat(run)
    assert line.startswith("rank 2 on node2 ")


def test_a_process_that_was_killed_is_gone_though_it_had_got_as_far_as_the_others(run: Path) -> None:
    write(run, beating(0), beating(1, beat=19), beating(2, step_seconds=None))
    (line,) = late_while_hearts_beat(run, 2)
    assert re.fullmatch(r"rank 2 on node2 \(pid 102\): step 7, forward for [01] s, gone or stopped", line)


def test_a_rank_that_has_not_begun_is_late(run: Path) -> None:
    write(run, beating(0), beating(2))
    assert late_while_hearts_beat(run) == ["rank 1: no heartbeat"]


def test_a_run_without_heartbeats_is_missing_its_first_rank(tmp_path: Path) -> None:
    assert late_ranks(tmp_path, seconds=0) == ["rank 0: no heartbeat"]


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"rank": '])
def test_a_file_that_can_not_be_read_is_no_heartbeat(run: Path, content: str) -> None:
    write(run, beating(0), beating(1), beating(2))
    heartbeat_file(run, 1).write_text(content)
    assert [heartbeat.rank for heartbeat in read_heartbeats(run)] == [0, 2]


def test_the_status_is_one_line_a_rank(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = time.time() - 100
    write(run, beating(0), beating(1, unix_time=old), beating(2))
    assert main([str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "rank 1 on node1 (pid 101): step 7, forward for 100 s, last step 0.50 s"
    assert main(["--max_age", "99", str(run)]) == 1
    assert capsys.readouterr().out.splitlines() == [lines[0], f"{lines[1]}, stale", lines[2]]
    assert main([str(run), "--max_age", "300"]) == 0
    heartbeat_file(run, 0).unlink()
    capsys.readouterr()
    assert main([str(run)]) == 1
    assert capsys.readouterr().out.splitlines() == [lines[1], lines[2], "rank 0: no heartbeat"]


def test_as_a_probe_it_is_a_script_that_imports_nothing_heavy(run: Path) -> None:
    write(run, *(beating(rank, unix_time=time.time() - 100) for rank in range(3)))
    for max_age, status in (("50", 1), ("500", 0)):
        command = [sys.executable, "-P", "-X", "importtime", str(SCRIPT), str(run), "--max_age", max_age]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == status
        assert ended.stdout.count("\n") == 3
        imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in ended.stderr.splitlines()}
        assert "json" in imported
        assert imported.isdisjoint({"torch", "lightning", "transformers", "pathmoe", "numpy"})


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], f"the following arguments are required: RUN; usage: {USAGE}"),
        ([".", "--age", "3"], f"unrecognized arguments: --age 3; usage: {USAGE}"),
        ([".", "--max_age", "soon"], "--max_age (soon) must be a number of seconds above 0; change it"),
        ([".", "--max_age", "0"], "--max_age (0) must be a number of seconds above 0; change it"),
        ([".", "--max_age", "nan"], "--max_age (nan) must be a number of seconds above 0; change it"),
        (["no/such"], "RUN (no/such) must be the folder of a run; check the path"),
    ],
)
def test_wrong_usage_ends_in_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", f"error: {line}\n")
