"""The folder of a run: where its checkpoints, configuration and logs lie, and how a name stands for one of them."""

import os
from collections.abc import Sequence
from pathlib import Path

CONFIG_FILE = "config.yaml"
PROVENANCE_FILE = "provenance.json"
TOKENIZER_FOLDER = "tokenizer"
LAST_CHECKPOINT = "last.ckpt"
BEST_CHECKPOINT = "best.ckpt"
RUNS = Path("runs")


def default_run_folder(config_files: Sequence[str | Path]) -> Path:
    """`runs/` and the names of the configuration files: configs/tiny.yaml, routers/path_b4.yaml -> runs/tiny-path_b4."""
    names = [Path(file).stem for file in config_files if Path(file).name != CONFIG_FILE]
    return RUNS / ("-".join(names) or "run")


def newest_run_folder(runs: Path = RUNS) -> Path:
    """The folder under `runs` whose last checkpoint was written last.

    Raises:
        ValueError: there is none.
    """
    checkpoints = list(runs.glob(f"*/{LAST_CHECKPOINT}"))
    if not checkpoints:
        raise ValueError(
            f"--ckpt_path (last) must name a run, but {runs}/*/{LAST_CHECKPOINT} is not there; train first, or give a path"
        )
    return max(checkpoints, key=lambda path: path.stat().st_mtime).parent


def resolve_checkpoint(ckpt_path: str, run_folder: Path | None) -> Path:
    """The checkpoint, a file or a sharded folder, that `ckpt_path` stands for.

    Args:
        ckpt_path: a path; a run folder, for its last checkpoint; or `last` or `best`, for those of `run_folder`.
        run_folder: the run that `last` speaks of; the newest one under `runs/` when None.

    Raises:
        ValueError: nothing is there.
    """
    if ckpt_path in ("last", "best"):
        name = LAST_CHECKPOINT if ckpt_path == "last" else BEST_CHECKPOINT
        path = (run_folder or newest_run_folder()) / name
    else:
        path = Path(ckpt_path)
        if (path / CONFIG_FILE).is_file():
            path = path / LAST_CHECKPOINT
    if not path.exists():
        raise ValueError(
            f"--ckpt_path ({path}) must be an existing checkpoint, a file or a sharded folder; check the path"
        )
    return path


def saved_config(checkpoint: Path) -> Path:
    """The resolved configuration that lies beside a checkpoint.

    Raises:
        ValueError: it is not there.
    """
    path = checkpoint.parent / CONFIG_FILE
    if not path.is_file():
        raise ValueError(
            f"{path} must lie beside the checkpoint {checkpoint.name}; copy it there from the run's folder"
        )
    return path


def refuse_another_run(run_folder: Path) -> None:
    """Refuse to start a new run in the folder of an old one.

    Raises:
        ValueError: the folder holds a run.
    """
    if (run_folder / CONFIG_FILE).exists() or (run_folder / LAST_CHECKPOINT).exists():
        raise ValueError(
            f"--run_dir ({run_folder}) must not hold another run; go on with it by --ckpt_path last, "
            "or choose another --run_dir"
        )


def write_text_atomically(path: Path, text: str) -> None:
    """Write a small file beside and rename it, so that no reader meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
