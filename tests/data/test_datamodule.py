import json
import os
import sys
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from pathmoe.data.datamodule import TokenDataModule
from pathmoe.data.tokenizer import train_bpe

CONFIGS = Path(__file__).parents[2] / "configs" / "data"
KEYS = ("input_ids", "shift_labels", "position_ids", "num_items", "step", "micro_batch")
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def make(cache: str, **changes: Any) -> TokenDataModule:
    arguments = {"source": "c-functions", "num_documents": 120, "vocab_size": 300, "sequence_length": 32}
    return TokenDataModule(**(arguments | {"micro_batch_size": 2, "cache_dir": cache} | changes))


def make_streaming(folder: Path, **changes: Any) -> TokenDataModule:
    if not folder.exists():
        (folder / "files").mkdir(parents=True)
        texts = [f"document {number}: " + "word " * (number * 7 % 40) for number in range(200)]
        for part in range(4):
            lines = [json.dumps({"text": text}) for text in texts[part::4]]
            (folder / "files" / f"{part}.jsonl").write_text("\n".join(lines))
        train_bpe(texts, 280).save_pretrained(str(folder / "tokenizer"))
    arguments = {"source": str(folder / "files"), "tokenizer": str(folder / "tokenizer"), "streaming": True}
    return TokenDataModule(
        **(arguments | {"validation_documents": 20, "sequence_length": 32, "micro_batch_size": 2} | changes)
    )


class Recorder(pl.LightningModule):
    """One parameter; keeps all batches as lists."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[Any] = []
        self.validated: list[Any] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        assert tuple(batch)[: len(KEYS)] == KEYS
        assert batch["step"] == self.trainer.global_step
        self.seen.append([v.tolist() if isinstance(v, torch.Tensor) else v for v in batch.values()])
        return self.weight.sum()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        assert tuple(batch) == KEYS[:3]
        self.validated.append(batch["input_ids"].tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data: TokenDataModule, max_steps: int, checkpoint: Path | None = None, **changes: Any) -> tuple[Any, Recorder]:
    arguments = {"max_steps": max_steps, "accumulate_grad_batches": 2, "accelerator": "cpu", "devices": 1}
    trainer = pl.Trainer(**(QUIET | arguments | {"num_sanity_val_steps": 0, "limit_val_batches": 0} | changes))
    module = Recorder()
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return trainer, module


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_resumed_run_sees_what_an_uninterrupted_run_sees(
    cache: str, tmp_path: Path, streaming: bool, num_workers: int
) -> None:
    def data() -> TokenDataModule:
        if streaming:
            return make_streaming(tmp_path / "stream", num_workers=num_workers)
        return make(cache, num_workers=num_workers)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, whole = fit(data(), max_steps=9)
        trainer, first = fit(data(), max_steps=4)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        _, second = fit(data(), max_steps=9, checkpoint=tmp_path / "last.ckpt")
    assert len(whole.seen) == 18
    assert first.seen == whole.seen[:8]
    assert second.seen == whole.seen[8:]
    assert not [
        warning for warning in caught if "resum" in str(warning.message) or "num_workers" in str(warning.message)
    ]


def test_short_epochs_do_not_start_the_data_again(cache: str) -> None:
    _, whole = fit(make(cache), max_steps=6)
    _, short = fit(make(cache), max_steps=6, limit_train_batches=4, max_epochs=-1)
    assert short.seen == whole.seen


def test_training_without_a_trainer_sees_the_same_batches(cache: str) -> None:
    data = make(cache)
    data.prepare_data()
    data.setup("fit")
    _, module = fit(make(cache), max_steps=3)
    batches = islice(data.train_batches(start_step=1, accumulate_grad_batches=2), 4)
    assert [[v.tolist() if isinstance(v, torch.Tensor) else v for v in b.values()] for b in batches] == module.seen[2:]


def test_validation_reads_all_blocks(cache: str) -> None:
    data = make(cache)
    trainer = pl.Trainer(**QUIET, accelerator="cpu", devices=1)
    module = Recorder()
    trainer.validate(module, datamodule=data, verbose=False)
    rows = [row for batch in module.validated for row in batch]
    assert len(rows) == len(data.validation_blocks) == data.manifest.validation.blocks
    assert data.bytes_per_target == data.manifest.validation.bytes_per_target > 0


class RankRecorder(Recorder):
    """Writes what each rank saw to a file."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def teardown(self, stage: str) -> None:
        seen = {"train": self.seen, "validation": self.validated}
        (self.folder / f"{self.trainer.max_steps}-{self.global_rank}.json").write_text(json.dumps(seen))


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="forks, which CUDA does not survive")
@pytest.mark.parametrize("streaming", [False, True])
def test_two_ranks_share_the_global_batch_and_resume(cache: str, tmp_path: Path, streaming: bool) -> None:
    def run(max_steps: int, checkpoint: Path | None = None, save: Path | None = None) -> list[Any]:
        data = make_streaming(tmp_path / "stream") if streaming else make(cache, global_batch_size=8)
        arguments = {"max_steps": max_steps, "accumulate_grad_batches": 2, "accelerator": "cpu", "devices": 2}
        callbacks = [] if save is None else [SaveAtTheEnd(save)]
        trainer = pl.Trainer(**(QUIET | arguments), strategy="ddp_fork", num_sanity_val_steps=-1, callbacks=callbacks)
        trainer.fit(RankRecorder(tmp_path), datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return [json.loads((tmp_path / f"{max_steps}-{rank}.json").read_text()) for rank in range(2)]

    whole = run(max_steps=4)
    run(max_steps=2, save=tmp_path / "last.ckpt")
    resumed = run(max_steps=5, checkpoint=tmp_path / "last.ckpt")
    for rank in range(2):
        assert len(whole[rank]["train"]) == 8
        assert resumed[rank]["train"][:4] == whole[rank]["train"][4:]
    rows = [str(row) for rank in range(2) for batch in whole[rank]["validation"] for row in batch]
    data = make_streaming(tmp_path / "stream") if streaming else make(cache)
    data.prepare_data()
    data.setup("validate")
    assert len(rows) == len(data.validation_blocks)
    assert len(whole[0]["validation"]) == len(whole[1]["validation"])
    if not streaming:
        alone = list(islice(make_ready(cache, micro_batch_size=8).train_batches(), 4))
        for step, batch in enumerate(alone):
            parts = [part for rank in range(2) for part in whole[rank]["train"] if part[4] == step]
            assert sorted(row for part in parts for row in part[0]) == sorted(batch["input_ids"].tolist())
            assert {part[3] for part in parts} == {batch["num_items"]}


class SaveAtTheEnd(pl.Callback):
    """Saves a checkpoint where the run ends, in the processes that ran it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.path)


def make_ready(cache: str, **changes: Any) -> TokenDataModule:
    data = make(cache, **changes)
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.mark.parametrize(
    ("global_batch_size", "message"),
    [
        (
            8,
            r"data\.global_batch_size \(8\) must equal data\.micro_batch_size \(2\) x trainer\.accumulate_grad_batches "
            r"\(2\) x ranks \(1\) = 4; set trainer\.accumulate_grad_batches to 4",
        ),
        (7, r"data\.global_batch_size \(7\) must equal .* = 4; make it a multiple of data\.micro_batch_size x ranks"),
    ],
)
def test_a_global_batch_that_is_not_the_product_is_refused(cache: str, global_batch_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(make(cache, global_batch_size=global_batch_size), max_steps=1)


def test_a_global_batch_that_is_the_product_is_taken(cache: str) -> None:
    _, module = fit(make(cache, global_batch_size=8), max_steps=1, accumulate_grad_batches=4)
    assert len(module.seen) == 4


@pytest.mark.parametrize(
    ("changes", "accumulate", "key"),
    [
        ({}, 1, r"data\.global_batch_size \(2\) must equal the checkpoint's \(4\)"),
        ({"seed": 5}, 2, r"data\.seed \(5\) must equal the checkpoint's \(0\)"),
        ({"sequence_length": 16}, 2, r"data\.sequence_length \(16\) must equal the checkpoint's \(32\)"),
        ({"vocab_size": 290}, 2, r"data\.tokenizer \(sha256\) \(\w+\) must equal the checkpoint's"),
        ({"num_documents": 121}, 2, r"data\.source \(sha256 of the training documents\) \(\w+\) must equal the check"),
    ],
)
def test_a_resume_on_other_batches_is_refused(
    cache: str, tmp_path: Path, changes: dict[str, Any], accumulate: int, key: str
) -> None:
    trainer, _ = fit(make(cache), max_steps=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=key):
        fit(make(cache, **changes), 2, tmp_path / "last.ckpt", accumulate_grad_batches=accumulate)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"validation_documents": 21}, r"data\.validation_documents \(21\) must equal the checkpoint's \(20\)"),
        ({"text_key": "other"}, r"data\.text_key \(other\) must equal the checkpoint's \(text\)"),
        (
            {"source": "{}/files/[0-2].jsonl"},
            r"data\.source \(.*/files/\[0-2\]\.jsonl\) must equal the checkpoint's \(.*/",
        ),
        ({"source": ["{}/files"]}, r'data\.source \(\[".*/files"\]\) must equal the checkpoint\'s \(.*/files\)'),
        ({"streaming": False}, r"data\.streaming \(false\) must equal the checkpoint's \(true\)"),
    ],
)
def test_a_resume_within_another_stream_is_refused(
    cache: str, tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    folder = tmp_path / "stream"
    trainer, _ = fit(make_streaming(folder), max_steps=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    for file in (folder / "files").iterdir():
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("\n".join(json.dumps(row | {"other": row["text"]}) for row in rows))
    if "source" in changes:
        filled = json.dumps(changes["source"]).replace("{}", str(folder))
        changes = {"source": json.loads(filled)}
    with pytest.raises(ValueError, match=rf"^{key}.*; set it back or start a new run$"):
        fit(make_streaming(folder, cache_dir=cache, **changes), 2, tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_length": 0}, r"data\.sequence_length \(0\) must be at least 1"),
        ({"micro_batch_size": 0}, r"data\.micro_batch_size \(0\) must be at least 1"),
        ({"global_batch_size": 0}, r"data\.global_batch_size \(0\) must be at least 1"),
        ({"validation_documents": -1}, r"data\.validation_documents \(-1\) must be at least 1"),
        ({"num_documents": 0}, r"data\.num_documents \(0\) must be at least 1"),
        ({"num_documents": -3}, r"data\.num_documents \(-3\) must be at least 1"),
        ({"num_workers": -1}, r"data\.num_workers \(-1\) must be at least 0"),
        ({"vocab_size": 0}, r"data\.vocab_size \(0\) must be at least 1"),
        ({"validation_fraction": 1.0}, r"data\.validation_fraction \(1\.0\) must lie between 0 and 1"),
        ({"validation_split": "test"}, r"data\.validation_split \(test\) must not be set where data\.source \(c-func"),
        ({"streaming": True}, r"data\.tokenizer \(train-bpe\) must be a folder or a name on the hub with data\.stre"),
        (
            {"streaming": True, "tokenizer": "x", "num_workers": 2},
            r"data\.num_workers \(2\) must be 0 or 1 with data\.",
        ),
    ],
)
def test_bad_arguments_are_refused(cache: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(cache, **changes)


def test_relative_sources_of_two_folders_do_not_meet_in_one_cache(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {}
    for word in ("alpha", "beta"):
        (tmp_path / word / "texts").mkdir(parents=True)
        for number in range(20):
            (tmp_path / word / "texts" / f"{number}.txt").write_text(f"{word} {number} " * 40)
        monkeypatch.chdir(tmp_path / word)
        modules[word] = make(cache, source="texts", num_documents=None)
        modules[word].prepare_data()
    for word, data in modules.items():
        monkeypatch.chdir(tmp_path / word)
        data.setup("fit")
        tokens = torch.cat([batch["input_ids"].flatten() for batch in islice(data.train_batches(), 4)])
        words = set(data.tokenizer.decode(tokens).split()) & modules.keys()
        assert words == {word}


def test_preparation_may_use_threads_and_workers_may_fork_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    data = make(str(tmp_path / "cache"))
    data.prepare_data()
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    data = make_streaming(tmp_path / "stream", num_workers=1)
    data.setup("fit")
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    inputs = [batch["input_ids"].tolist() for batch in islice(data.train_batches(), 3)]
    data.num_workers = 0
    assert [batch["input_ids"].tolist() for batch in islice(data.train_batches(), 3)] == inputs


def test_too_few_validation_documents_for_a_block_are_refused(tmp_path: Path) -> None:
    data = make_streaming(tmp_path / "stream", validation_documents=1)
    with pytest.raises(
        ValueError, match=r"data\.validation_documents \(1\) of data\.source \(.*\) have \d+ tokens, fewer"
    ):
        data.setup("fit")


def test_streamed_validation_documents_are_the_first_and_not_trained_on(tmp_path: Path) -> None:
    data = make_streaming(tmp_path / "stream")
    data.prepare_data()
    data.setup("fit")
    assert data.manifest.train is None and data.manifest.validation.documents == 20
    decoded = data.tokenizer.decode(torch.cat([b["input_ids"].flatten() for b in data.val_dataloader()]).tolist())
    held_out = {piece.split(":")[0] for piece in decoded.split("document ")[1:]}
    assert held_out <= {str(number) for number in range(0, 80, 4)}
    batches = islice(data.train_batches(), 200)
    decoded = data.tokenizer.decode(torch.cat([b["input_ids"].flatten() for b in batches]).tolist())
    assert not held_out & {piece.split(":")[0] for piece in decoded.split("document ")[1:-1]}


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_are_arguments_of_the_data_module(config: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TokenDataModule, "data")
    data = parser.instantiate_classes(parser.parse_object(yaml.safe_load(config.read_text()))).data
    assert isinstance(data, TokenDataModule)
