"""The data of a run as Lightning takes it: arguments in, train and validation loaders out."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pyarrow as pa
from datasets.distributed import split_dataset_by_node
from lightning.pytorch.trainer.states import TrainerFn
from transformers import PreTrainedTokenizerBase

from pathmoe.data.blocks import Blocks
from pathmoe.data.cache import default_cache_dir, write_json
from pathmoe.data.document import Document
from pathmoe.data.loader import Batch, MicroBatches, TrainLoader, ValidationLoader
from pathmoe.data.manifest import Manifest
from pathmoe.data.order import BatchGeometry
from pathmoe.data.packed_split import pack_split
from pathmoe.data.prepared import Recipe, open_prepared, prepare, split_documents
from pathmoe.data.sources import Source, stream_documents
from pathmoe.data.splitting import text_hash
from pathmoe.data.streaming import StreamedBatches, StreamLoader
from pathmoe.data.tokenizer import TRAIN_BPE, check_vocab_size, fingerprint, load_tokenizer


class TokenDataModule(pl.LightningDataModule):
    """Documents -> tokens -> blocks -> batches, prepared once and cached, or streamed.

    After `setup`: `tokenizer`, `manifest`, `bytes_per_target` (of validation), `validation_blocks`, and `train_blocks`
    where the data is prepared. Training batches are a function of (arguments, step), or of a position in the
    checkpoint where the data is streamed; either way a resumed run sees the batches it would have seen.

    Args:
        source: python-stdlib, c-functions, a .txt/.jsonl/.json/.parquet file, a folder, a glob, a list of these, or the
            name of a data set on the Hugging Face hub.
        subset: Configuration of a hub data set.
        split: Split of a hub data set to train on.
        validation_split: Split of a hub data set to validate on. Without it, a part of `split` is held out.
        text_key: Column or key that holds the text of a record.
        tokenizer: train-bpe (byte-level BPE trained on the training documents), a folder, or a name on the hub.
        vocab_size: Tokens that the model has room for: the size of train-bpe, and the limit for any other tokenizer.
        sequence_length: Tokens of a block.
        micro_batch_size: Blocks of one forward on one rank.
        global_batch_size: Blocks of one optimizer step: micro_batch_size x trainer.accumulate_grad_batches x ranks,
            whose default accumulation follows from it; null takes that product.
        seed: Decides the order of training, and nothing else.
        validation_fraction: Share of the bytes of prepared data that is held out, in whole groups (packages, files).
        cache_dir: Where prepared data is kept; null is pathmoe in the user's cache folder.
        streaming: Read, tokenise and pack while training, in the order of the source, without preparation.
        validation_documents: Documents at the beginning of the source (or of validation_split) that are held out when
            streaming.
        num_documents: Programs of c-functions.
        num_workers: Processes that make training batches; 0 makes them in the training process. At most 1 when
            streaming.
    """

    def __init__(
        self,
        source: str | list[str] = "python-stdlib",
        subset: str | None = None,
        split: str = "train",
        validation_split: str | None = None,
        text_key: str = "text",
        tokenizer: str = TRAIN_BPE,
        vocab_size: int | None = None,
        sequence_length: int = 256,
        micro_batch_size: int = 8,
        global_batch_size: int | None = None,
        seed: int = 0,
        validation_fraction: float = 0.05,
        cache_dir: str | None = None,
        streaming: bool = False,
        validation_documents: int = 1000,
        num_documents: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for key, value, lowest in (
            ("vocab_size", vocab_size, 1),
            ("sequence_length", sequence_length, 1),
            ("micro_batch_size", micro_batch_size, 1),
            ("global_batch_size", global_batch_size, 1),
            ("validation_documents", validation_documents, 1),
            ("num_workers", num_workers, 0),
        ):
            if value is not None and value < lowest:
                raise ValueError(f"data.{key} ({value}) must be at least {lowest}; raise it")
        if not 0 < validation_fraction < 1:
            raise ValueError(f"data.validation_fraction ({validation_fraction}) must lie between 0 and 1; change it")
        if streaming and tokenizer == TRAIN_BPE:
            raise ValueError(
                f"data.tokenizer ({tokenizer}) must be a folder or a name on the hub with data.streaming (true), which "
                "has no documents to train it on; set data.tokenizer, or data.streaming to false"
            )
        if streaming and num_workers > 1:
            raise ValueError(
                f"data.num_workers ({num_workers}) must be 0 or 1 with data.streaming (true), whose documents are read "
                "in order; lower it"
            )
        self._source = Source(source=source, subset=subset, split=split, text_key=text_key, num_documents=num_documents)
        if validation_split is not None and not self._source.has_splits:
            raise ValueError(
                f"data.validation_split ({validation_split}) must not be set where data.source ({source}) has no named "
                "splits; remove it, data.validation_fraction holds documents out"
            )
        self._recipe = Recipe(
            source=self._source,
            validation_split=validation_split,
            validation_fraction=validation_fraction,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            sequence_length=sequence_length,
        )
        self._cache_dir = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
        # File by which `prepare_data` tells all ranks which folder is theirs: only it has hashed the source.
        self._pointer = self._cache_dir / "recipes" / f"{self._recipe.key}.json"
        self.micro_batch_size = micro_batch_size
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.streaming = streaming
        self.validation_documents = validation_documents
        self.num_workers = num_workers
        self.tokenizer: PreTrainedTokenizerBase
        self.manifest: Manifest
        self.validation_blocks: Blocks
        self.train_blocks: Blocks
        self._held_out: frozenset[bytes] = frozenset()

    @property
    def bytes_per_target(self) -> float:
        """UTF-8 bytes behind a validation target: bits per byte = mean nll in nats / ln 2 / bytes_per_target."""
        return self.manifest.validation.bytes_per_target

    def prepare_data(self) -> None:
        """Tokenise and pack into the cache, on one process of each node; nothing to do when streaming."""
        if not self.streaming:
            folder = prepare(self._recipe, self._cache_dir)
            write_json(self._pointer, {"folder": folder.name})

    def setup(self, stage: str | None = None) -> None:
        """Open what `prepare_data` made, or the stream, on every rank; check the global batch before a fit."""
        if stage == "fit":
            self.check_global_batch(self.geometry())
        if hasattr(self, "manifest"):
            return
        if self.streaming:
            self._setup_stream()
        else:
            self._setup_prepared()
        # Preparation is over. Workers fork from here on, which the tokenizer's threads do not always survive.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    def _setup_prepared(self) -> None:
        """Open the folder of prepared data."""
        folder = self._cache_dir / "prepared" / json.loads(self._pointer.read_text())["folder"]
        manifest, self.tokenizer, self.train_blocks, self.validation_blocks = open_prepared(folder)
        # The same content may have been prepared from another place before.
        self.manifest = replace(
            manifest,
            source=self._source.source,
            subset=self._source.subset,
            split=self._source.named_split,
            tokenizer=self._recipe.tokenizer,
        )

    def held_out_documents(self) -> Iterator[Document]:
        """The documents of validation, in the order of the source; nothing is tokenised or kept."""
        if not self.streaming:
            return split_documents(self._recipe).validation()
        source = replace(self._source, split=self._recipe.validation_split or self._source.split)
        rows = islice(stream_documents(source), self.validation_documents)
        return (Document(row["text"]) for row in rows if row["text"])

    def _setup_stream(self) -> None:
        """Load the tokenizer; hold out and pack the first documents."""
        recipe = self._recipe
        self.tokenizer = load_tokenizer(recipe.tokenizer)
        check_vocab_size(recipe.tokenizer, self.tokenizer, recipe.vocab_size)
        source = self._source
        texts = [document.text for document in self.held_out_documents()]
        self._held_out = frozenset(map(text_hash, texts))
        tables: list[pa.Table] = []
        validation = pack_split(texts, self.tokenizer, recipe.sequence_length, tables.append)
        if validation.blocks == 0:
            raise ValueError(
                f"data.validation_documents ({self.validation_documents}) of data.source ({source.source}) have "
                f"{validation.tokens} tokens, fewer than one block of data.sequence_length ({recipe.sequence_length}) "
                "+ 1; raise data.validation_documents"
            )
        self.validation_blocks = Blocks.in_memory(tables)
        self.manifest = Manifest(
            source=source.source,
            subset=source.subset,
            split=self._source.named_split,
            interpreter=None,
            tokenizer=recipe.tokenizer,
            tokenizer_sha256=fingerprint(self.tokenizer),
            vocab_size=len(self.tokenizer),
            sequence_length=recipe.sequence_length,
            validation=validation,
            train=None,
        )

    def geometry(self) -> BatchGeometry:
        """How the attached trainer, or one process without accumulation, cuts the global batch."""
        trainer = self.trainer
        return BatchGeometry(
            micro_batch_size=self.micro_batch_size,
            accumulate_grad_batches=1 if trainer is None else trainer.accumulate_grad_batches,
            rank=0 if trainer is None else trainer.global_rank,
            world_size=1 if trainer is None else trainer.world_size,
        )

    def check_global_batch(self, geometry: BatchGeometry) -> None:
        """Raises ValueError where `global_batch_size` is given and is not that of the geometry."""
        wanted, per_pass = self.global_batch_size, geometry.micro_batch_size * geometry.world_size
        if wanted is None or wanted == geometry.global_batch_size:
            return
        advice = f"set trainer.accumulate_grad_batches to {wanted // per_pass}"
        if wanted % per_pass:
            advice = f"make it a multiple of data.micro_batch_size x ranks ({per_pass})"
        raise ValueError(
            f"data.global_batch_size ({wanted}) must equal data.micro_batch_size ({geometry.micro_batch_size}) x "
            f"trainer.accumulate_grad_batches ({geometry.accumulate_grad_batches}) x ranks ({geometry.world_size}) = "
            f"{geometry.global_batch_size}; {advice}"
        )

    def train_dataloader(self) -> TrainLoader | StreamLoader:
        """Endless loader that begins at the optimizer step of the trainer, which Lightning has restored by then."""
        trainer = self.trainer
        assert trainer is not None
        return self._train_loader(self.geometry(), lambda: trainer.global_step)

    def train_batches(
        self, start_step: int = 0, rank: int = 0, world_size: int = 1, accumulate_grad_batches: int = 1
    ) -> Iterator[Batch]:
        """Endless training micro-batches of one rank without a trainer; streamed data starts at step 0 only."""
        geometry = BatchGeometry(
            micro_batch_size=self.micro_batch_size,
            accumulate_grad_batches=accumulate_grad_batches,
            rank=rank,
            world_size=world_size,
        )
        self.check_global_batch(geometry)
        return iter(self._train_loader(geometry, lambda: start_step))

    def _train_loader(self, geometry: BatchGeometry, current_step: Callable[[], int]) -> TrainLoader | StreamLoader:
        if not self.streaming:
            return TrainLoader(MicroBatches(self.train_blocks, geometry, self.seed), current_step, self.num_workers)
        documents = stream_documents(self._source)
        # With fewer files than ranks each rank reads all and keeps its share.
        strategy = "shards" if documents.num_shards >= geometry.world_size else "examples"
        mine = split_dataset_by_node(documents, geometry.rank, geometry.world_size, strategy)
        batches = StreamedBatches(mine, self._held_out, self.tokenizer, self._recipe.sequence_length, geometry)
        return StreamLoader(batches, current_step, self.num_workers)

    def val_dataloader(self) -> ValidationLoader:
        """All validation blocks once, shared out over the ranks."""
        geometry = self.geometry()
        return ValidationLoader(self.validation_blocks, self.micro_batch_size, geometry.rank, geometry.world_size)

    def state_dict(self) -> dict[str, Any]:
        """What must not change when a run is resumed, by dotted key."""
        return {
            "data.streaming": self.streaming,
            **self._what_is_read(),
            "data.tokenizer (sha256)": self.manifest.tokenizer_sha256,
            "data.sequence_length": self.manifest.sequence_length,
            "data.seed": self.seed,
            "data.global_batch_size": self.geometry().global_batch_size,
        }

    def _what_is_read(self) -> dict[str, Any]:
        """Prepared documents by their content; a stream, which nobody has read to its end, by what leads to it."""
        if self.manifest.train is not None:
            return {"data.source (sha256 of the training documents)": self.manifest.train.content_sha256}
        leads = asdict(self._source) | {
            "validation_split": self._recipe.validation_split,
            "validation_documents": self.validation_documents,
        }
        return {f"data.{name}": value for name, value in leads.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError where a fit would go on with other batches than the checkpoint's run."""
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        for key, value in self.state_dict().items():
            if state_dict[key] != value:
                now, before = (v if isinstance(v, str) else json.dumps(v) for v in (value, state_dict[key]))
                raise ValueError(
                    f"{key} ({now}) must equal the checkpoint's ({before}); set it back or start a new run"
                )
