"""The folder of a run: where its checkpoints, configuration and logs lie, and how a name stands for one of them."""

import fcntl
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

CONFIG_FILE = "config.yaml"
PROVENANCE_FILE = "provenance.json"
TOKENIZER_FOLDER = "tokenizer"
LAST_CHECKPOINT = "last.ckpt"
PREVIOUS_CHECKPOINT = "previous.ckpt"
BEST_CHECKPOINT = "best.ckpt"
RUNS = Path("runs")

# What a name stands for: the first of these files that is there. A kill before the first periodic checkpoint may leave
# a run with its best one alone.
_CHECKPOINTS = {
    "last": (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT, BEST_CHECKPOINT),
    "previous": (PREVIOUS_CHECKPOINT,),
    "best": (BEST_CHECKPOINT,),
}
CHECKPOINT_NAMES = tuple(_CHECKPOINTS)

_LONGEST_LABEL = 80


def default_run_folder(config_files: Sequence[str | Path], overrides: Mapping[str, str] | None = None) -> Path:
    """`runs/` and the names of the configuration files, then the settings that override them, by their dotted keys.

    runs/tiny-path_b4 for tiny.yaml and routers/path_b4.yaml; with layers_per_router set to 2 it goes on
    -layers_per_router=2. Settings that a file name can't hold end in a hash that tells them apart.
    """
    names = [Path(file).stem for file in config_files if Path(file).name != CONFIG_FILE] or ["run"]
    return RUNS / "-".join([*names, *([_label(overrides)] if overrides else [])])


def _label(overrides: Mapping[str, str]) -> str:
    short = {re.sub(r"^(model\.config|model|data)\.", "", key): value for key, value in sorted(overrides.items())}
    # A list without its brackets and blanks still looks like one.
    values = [re.sub(r"[][ ]", "", value) if value.startswith("[") else value for value in short.values()]
    settings = "-".join(f"{key}={value}" for key, value in zip(short, values, strict=True))
    safe = re.sub(r"[^\w.,=-]+", "_", settings, flags=re.ASCII)
    if safe == settings and len(safe) <= _LONGEST_LABEL:
        return safe
    return f"{safe[: _LONGEST_LABEL - 9]}-{hashlib.sha256(str(short).encode()).hexdigest()[:8]}"


def has_checkpoint(run_folder: Path) -> bool:
    """Whether a run has left anything to go on from."""
    return _named_checkpoint(run_folder, "last").exists()


def _named_checkpoint(run_folder: Path, name: str) -> Path:
    paths = [run_folder / file for file in _CHECKPOINTS[name]]
    return next((path for path in paths if path.exists()), paths[0])


def newest_run_folder(name: str = "last", runs: Path = RUNS) -> Path:
    """The folder under `runs` whose checkpoint of that name, `last`, `previous` or `best`, was written last.

    Raises:
        ValueError: there is none.
    """
    folders = {path.parent for file in _CHECKPOINTS[name] for path in runs.glob(f"*/{file}")}
    if not folders:
        raise ValueError(
            f"--ckpt_path ({name}) must name a run, but {runs} holds no */{name}.ckpt; train first, or give a path"
        )
    return max(folders, key=lambda folder: _named_checkpoint(folder, name).stat().st_mtime)


def resolve_checkpoint(ckpt_path: str, run_folder: Path | None) -> Path:
    """The checkpoint, a file or a sharded folder, that `ckpt_path` stands for.

    Args:
        ckpt_path: a path; a run folder, for its last checkpoint; or `last`, `previous` or `best`, for those of
            `run_folder`. Where there is no last one, it is the previous or else the best one.
        run_folder: the run that `last` speaks of; the newest one under `runs/` when None.

    Raises:
        ValueError: nothing is there, or a file that is no checkpoint.
    """
    path = Path(ckpt_path)
    if ckpt_path in _CHECKPOINTS:
        path = _named_checkpoint(run_folder or newest_run_folder(ckpt_path), ckpt_path)
    elif (path / CONFIG_FILE).is_file() or has_checkpoint(path):
        path = _named_checkpoint(path, "last")
    if not path.exists():
        raise ValueError(
            f"--ckpt_path ({path}) must be an existing checkpoint, a file or a sharded folder; check the path"
        )
    if path.is_file() and _begins_unlike_a_checkpoint(path):
        raise ValueError(
            f"--ckpt_path ({path}) must be a checkpoint, but is a file of another kind; give the last.ckpt of a run"
        )
    return path


def _begins_unlike_a_checkpoint(path: Path) -> bool:
    """Whether a file is no archive as PyTorch writes them, not even a part of one."""
    with path.open("rb") as file:
        return not b"PK\x03\x04".startswith(file.read(4))


def saved_config(checkpoint: Path) -> Path:
    """The resolved configuration that lies beside a checkpoint.

    Raises:
        ValueError: it is not there.
    """
    return _beside(checkpoint, CONFIG_FILE)


def saved_tokenizer(checkpoint: Path) -> Path:
    """The folder of the tokenizer that lies beside a checkpoint.

    Raises:
        ValueError: it is not there.
    """
    return _beside(checkpoint, TOKENIZER_FOLDER)


def _beside(checkpoint: Path, name: str) -> Path:
    path = checkpoint.parent / name
    if not path.exists():
        raise ValueError(
            f"{path} must lie beside the checkpoint {checkpoint.name}; copy it there from the run's folder"
        )
    return path


def refuse_another_run(run_folder: Path, ckpt_path: str | Path | None) -> None:
    """Refuse to write a run into the folder of another one; one that left no checkpoint does not count.

    Args:
        run_folder: where the run would write.
        ckpt_path: the checkpoint that it goes on from; the run of that one is no other.

    Raises:
        ValueError: the folder holds another run.
    """
    if ckpt_path is not None and Path(ckpt_path).resolve().parent == run_folder.resolve():
        return
    if has_checkpoint(run_folder):
        raise ValueError(
            f"--run_dir ({run_folder}) must not hold another run; go on with it by --ckpt_path last, or choose another "
            "--run_dir"
        )


def lock_run_folder(run_folder: Path) -> int:
    """Make the folder of a run this process's own, as long as the returned file descriptor is open.

    The system lets go of it however the process ends, and other machines do not see it.

    Raises:
        ValueError: another process has it, or it can't be made.
    """
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run_folder, os.O_RDONLY)
    except OSError as error:
        raise ValueError(f"--run_dir ({run_folder}) can't be made ({error.strerror}); choose another") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ValueError(
            f"--run_dir ({run_folder}) must not be in use by another process; wait for it, or choose another"
        ) from error
    return descriptor


def write_text_atomically(path: Path, text: str) -> None:
    """Write a small file beside, on disk, and rename it, so that no reader meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
