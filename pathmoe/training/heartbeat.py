"""Heartbeats: a small file of each rank in the run's folder, which says where it is and since when.

It imports the standard library alone, so that it can be asked often, as a probe: from its file, by
`python -P pathmoe/training/heartbeat.py RUN --max_age SECONDS`.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

HEARTBEATS = "heartbeat"

_USAGE = "python -m pathmoe.training.heartbeat RUN [--max_age SECONDS]"


@dataclass(frozen=True)
class Heartbeat:
    """Where a rank of a run was when it last got on."""

    rank: int
    world_size: int
    host: str
    pid: int
    step: int
    """Optimizer steps that are done."""
    phase: str
    """data (also between steps), forward, backward, update, validation, checkpoint (until the next batch) or ended."""
    beat: int
    """Phases and batches so far, which all ranks go through in the same order."""
    unix_time: float
    """When it got there."""
    alive_unix_time: float
    """When its process last wrote this, which it does also where it does not get on."""
    step_seconds: float | None
    """From the end of the last step but one to that of the last one; None before."""

    def line(self, now: float) -> str:
        """One line for people; `now` is unix time."""
        took = "" if self.step_seconds is None else f", last step {self.step_seconds:.2f} s"
        where = f"rank {self.rank} on {self.host} (pid {self.pid})"
        return f"{where}: step {self.step}, {self.phase} for {now - self.unix_time:.0f} s{took}"


def heartbeat_file(run_folder: Path, rank: int) -> Path:
    """Where a rank writes."""
    return run_folder / HEARTBEATS / f"rank-{rank:05d}.json"


def write_heartbeat(run_folder: Path, heartbeat: Heartbeat) -> None:
    """Write it beside and rename, so that no reader meets half of it; without waiting for the disk."""
    file = heartbeat_file(run_folder, heartbeat.rank)
    beside = file.with_name(f".{file.name}.partial")
    when = datetime.fromtimestamp(heartbeat.unix_time, UTC).isoformat(timespec="milliseconds")
    beside.write_text(json.dumps({"time": when, **asdict(heartbeat)}) + "\n", encoding="utf-8")
    os.replace(beside, file)


def read_heartbeats(run_folder: Path) -> list[Heartbeat]:
    """Those of the ranks that have written one that can be read, in order."""
    heartbeats = []
    for file in sorted((run_folder / HEARTBEATS).glob("rank-*.json")):
        # Another start of the run removes what it finds, and a machine that fails leaves empty files.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(file.read_text(encoding="utf-8"))
            heartbeats.append(Heartbeat(**{name: content[name] for name in Heartbeat.__dataclass_fields__}))
    return heartbeats


def late_ranks(run_folder: Path, seconds: float = 3.0) -> list[str]:
    """One line for each rank that others wait for: for the error of one of these.

    Those are the ranks whose hearts do not beat, which are gone or stopped; where there are none, those that are behind
    the others; and where there are none of these either, those that have ended. Empty where all are alive and at the
    same place: then none is late, and what they do together does not end.

    Args:
        run_folder: of the run.
        seconds: how long it listens; hearts beat once a second.
    """
    before = {heartbeat.rank: heartbeat.alive_unix_time for heartbeat in read_heartbeats(run_folder)}
    time.sleep(seconds)
    heartbeats, now = read_heartbeats(run_folder), time.time()
    there = [heartbeat for heartbeat in heartbeats if heartbeat.phase != "ended"]
    gone = [heartbeat for heartbeat in there if before.get(heartbeat.rank) == heartbeat.alive_unix_time]
    lines = [f"rank {rank}: no heartbeat" for rank in _missing(heartbeats)]
    lines += [f"{heartbeat.line(now)}, gone or stopped" for heartbeat in gone]
    furthest = max((heartbeat.beat for heartbeat in there), default=0)
    behind = [heartbeat.line(now) for heartbeat in there if heartbeat.beat < furthest]
    ended = [heartbeat.line(now) for heartbeat in heartbeats if heartbeat.phase == "ended"]
    return lines or behind or ended


def _missing(heartbeats: Sequence[Heartbeat]) -> list[int]:
    num_ranks = max((heartbeat.world_size for heartbeat in heartbeats), default=1)
    return sorted(set(range(num_ranks)) - {heartbeat.rank for heartbeat in heartbeats})


def main(arguments: Sequence[str]) -> int:
    """Print a line for each rank, and return the exit status: 0 all fresh, 1 one is stale or missing, 2 wrong usage."""
    try:
        run_folder, max_age = _parse(arguments)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    heartbeats, now = read_heartbeats(run_folder), time.time()
    stale = [heartbeat for heartbeat in heartbeats if now - heartbeat.unix_time > max_age]
    for heartbeat in heartbeats:
        print(heartbeat.line(now) + (", stale" if heartbeat in stale else ""))
    for rank in _missing(heartbeats):
        print(f"rank {rank}: no heartbeat")
    return 1 if stale or _missing(heartbeats) else 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; usage: {_USAGE}")


def _parse(arguments: Sequence[str]) -> tuple[Path, float]:
    parser = _Parser(usage=_USAGE, description="Where the ranks of a run are.", allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="The folder of the run.", type=Path)
    parser.add_argument(
        "--max_age", metavar="SECONDS", default="inf", help="Exit with 1 where a rank has not got on for longer."
    )
    options = parser.parse_args(arguments)
    try:
        max_age = float(options.max_age)
    except ValueError:
        max_age = -1.0
    if not max_age > 0:
        raise ValueError(f"--max_age ({options.max_age}) must be a number of seconds above 0; change it")
    if not options.run.is_dir():
        raise ValueError(f"RUN ({options.run}) must be the folder of a run; check the path")
    return options.run, max_age


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
