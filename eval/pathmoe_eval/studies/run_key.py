"""The key of a run: a hash of all that decides what it learns, by which studies share runs and find their results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pathmoe.data import TokenDataModule
from pathmoe.data.cache import hash_of
from pathmoe.training.provenance import installed_version
from pathmoe_eval.studies.plan import PLACES

_DIGITS = 16

# How a run is watched and saved, and on what: nothing of what it learns.
_NOT_OF_A_RUN = (
    "checkpoint_every_n_steps", "checkpoint_keep_every_n_steps", "checkpoint_async", "peak_tflops", "seed_everything",
)  # fmt: skip
_NOT_OF_A_TRAINER = ("logger", "default_root_dir", "enable_progress_bar", "enable_model_summary")


class Origin(NamedTuple):
    """What a key is of beside settings and seed."""

    train: str | None
    """Hash of the documents; None where they are streamed."""
    validation: str
    tokenizer: str | None
    version: str | None
    """Of this package, where it is installed."""


def prepared_origin(data: dict[str, Any]) -> Origin:
    """Of the data that these settings prepare, and of the version that runs.

    Args:
        data: of a `TokenDataModule`.
    """
    module = TokenDataModule(**data)
    module.prepare_data()
    module.setup()
    manifest = module.manifest
    return Origin(
        train=None if manifest.train is None else manifest.train.content_sha256,
        validation=manifest.validation.content_sha256,
        tokenizer=manifest.tokenizer_sha256,
        version=installed_version("pathmoe"),
    )


def kept_origins(results: Path) -> list[Origin]:
    """Those of the results in a folder, as far as they are not damaged, in the order of their names.

    Args:
        results: folder of files that `keep_result` wrote.
    """
    found = []
    for file in sorted(results.glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            data, train = content["data"], content["data"].get("train")
            of_run = {
                Origin(train and train["content_sha256"], data["validation"]["content_sha256"],
                       data["tokenizer_sha256"], version)
                for version in content["circumstances"]["pathmoe"]
            }  # fmt: skip
        except (KeyError, TypeError, ValueError):
            continue
        found += sorted(of_run, key=str)
    return list(dict.fromkeys(found))


def run_key(resolved: Mapping[str, Any], seed: int, origin: Origin) -> str:
    """Hash of all that decides what a run learns and what it tells of it.

    Args:
        resolved: its configuration. Places, loggers and names are left out, and how the run is saved.
        seed: of the run.
        origin: its hashes of documents and tokenizer stand for their names; those of streamed data stay in.
    """
    unread = PLACES if origin.train is None else (*PLACES, "source", "tokenizer")
    kept = {key: value for key, value in resolved.items() if key not in _NOT_OF_A_RUN}
    kept["data"] = {key: value for key, value in resolved["data"].items() if key not in unread}
    kept["trainer"] = {key: value for key, value in resolved["trainer"].items() if key not in _NOT_OF_A_TRAINER}
    content = {"train": origin.train, "validation": origin.validation, "tokenizer": origin.tokenizer}
    return hash_of(kept, seed, content, origin.version)[:_DIGITS]
