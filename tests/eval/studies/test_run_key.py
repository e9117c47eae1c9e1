"""Keys of runs: what makes two of them the same, and where kept results have theirs from."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from pathmoe.training.resolution import resolved_fit
from pathmoe_eval.studies.run_key import Origin, kept_origins, run_key

ORIGIN = Origin(train="a", validation="b", tokenizer="c", version="1.0")


@pytest.fixture(scope="module")
def resolved() -> dict[str, Any]:
    return resolved_fit(["--config=tiny", "--config=path_b4"])


def changed(resolved: dict[str, Any], dotted_key: str, value: Any) -> dict[str, Any]:
    *sections, key = dotted_key.split(".")
    found = changing = copy.deepcopy(resolved)
    for section in sections:
        changing = changing[section]
    assert key in changing
    changing[key] = value
    return found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.cache_dir", "elsewhere"), ("data.num_workers", 1), ("data.source", "moved.jsonl"),
        ("data.tokenizer", "tokenizers/moved"), ("trainer.logger", False), ("trainer.enable_progress_bar", False),
        ("trainer.default_root_dir", "x"), ("checkpoint_every_n_steps", 7), ("checkpoint_async", True),
        ("peak_tflops", 100.0), ("seed_everything", 5),
    ],
)  # fmt: skip
def test_where_and_how_a_run_is_kept_is_not_what_it_is(key: str, value: Any, resolved: dict[str, Any]) -> None:
    assert run_key(changed(resolved, key, value), 0, ORIGIN) == run_key(resolved, 0, ORIGIN)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.optimizer.lr", 0.5), ("model.config.layers_per_router", 2), ("trainer.max_steps", 361),
        ("data.sequence_length", 128), ("data.validation_fraction", 0.1), ("trainer.precision", "bf16-mixed"),
    ],
)  # fmt: skip
def test_what_a_run_learns_is_what_it_is(key: str, value: Any, resolved: dict[str, Any]) -> None:
    assert run_key(changed(resolved, key, value), 0, ORIGIN) != run_key(resolved, 0, ORIGIN)


def test_seed_content_and_version_are_part_of_a_run(resolved: dict[str, Any]) -> None:
    origins = [ORIGIN, ORIGIN._replace(train="z"), ORIGIN._replace(version="1.1")]
    assert len({run_key(resolved, seed, origin) for seed in (0, 1) for origin in origins}) == 6
    # Of a stream nobody knows the content, so that its name stands for it.
    stream = ORIGIN._replace(train=None)
    assert run_key(changed(resolved, "data.source", "moved"), 0, stream) != run_key(resolved, 0, stream)


def test_origins_are_read_off_results_and_damaged_ones_left_out(tmp_path: Path) -> None:
    def write(name: str, content: Any) -> None:
        (tmp_path / f"{name}.json").write_text(json.dumps(content))

    data = {"train": {"content_sha256": "a"}, "validation": {"content_sha256": "b"}, "tokenizer_sha256": "c"}
    write("one", {"data": data, "circumstances": {"pathmoe": ["1.1", "1.0"]}})
    write("same", {"data": data, "circumstances": {"pathmoe": ["1.0"]}})
    write("streamed", {"data": data | {"train": None}, "circumstances": {"pathmoe": ["1.0"]}})
    write("untold", {"data": {}, "circumstances": {}})
    (tmp_path / "torn.json").write_text('{"data"')
    assert kept_origins(tmp_path) == [ORIGIN, ORIGIN._replace(version="1.1"), ORIGIN._replace(train=None)]
