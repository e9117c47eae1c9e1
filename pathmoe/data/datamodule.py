"""The data of a run as Lightning takes it: arguments in, train and validation loaders out."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pyarrow as pa
from datasets.distributed import split_dataset_by_node
from lightning.pytorch.trainer.states import TrainerFn
from transformers import PreTrainedTokenizerBase

from pathmoe.data.blocks import Blocks
from pathmoe.data.cache import default_cache_dir
from pathmoe.data.data_requirements import check_numbers, check_one_source, check_recipe, check_streaming
from pathmoe.data.document import Document
from pathmoe.data.interleaving import mixed_block_indices, positions_of_sources
from pathmoe.data.loader import Batch, MicroBatches, Order, TrainLoader, ValidationLoader
from pathmoe.data.manifest import Manifest
from pathmoe.data.mixture import WeightedSource, as_mixture, check_mixture, mix
from pathmoe.data.order import BatchGeometry, block_indices
from pathmoe.data.packed_split import pack_split
from pathmoe.data.preparation import find_prepared, prepare
from pathmoe.data.prepared import Prepared, open_prepared
from pathmoe.data.recipe import Recipe
from pathmoe.data.sources import Source, stream_documents
from pathmoe.data.splits import read_parts, split_documents
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
        mixture: Several sources instead of one, each with its weight: its share of the tokens of any stretch of
            training. Each has subset, split, validation_split, text_key and num_documents of its own.
        shard_size: Bytes of the source that one file of prepared data is made of; see docs/data.md.
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
        mixture: list[WeightedSource] | None = None,
        shard_size: int = 2**30,
    ) -> None:
        super().__init__()
        check_numbers(
            vocab_size=vocab_size,
            sequence_length=sequence_length,
            micro_batch_size=micro_batch_size,
            global_batch_size=global_batch_size,
            validation_documents=validation_documents,
            num_workers=num_workers,
            shard_size=shard_size,
        )
        self._mixture = None if mixture is None else as_mixture(mixture)
        if streaming:
            check_streaming(tokenizer, num_workers, self._mixture or ())
        self._source = Source(source=source, subset=subset, split=split, text_key=text_key, num_documents=num_documents)
        recipe = Recipe(
            source=self._source,
            validation_split=validation_split,
            validation_fraction=validation_fraction,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            sequence_length=sequence_length,
            shard_size=shard_size,
        )
        self.recipes = [recipe]
        """How the source, or each of a mixture, is prepared."""
        if self._mixture is not None:
            check_one_source(self._source, validation_split)
            check_mixture(self._mixture)
            self.recipes = [
                replace(recipe, source=entry.plain, validation_split=entry.validation_split) for entry in self._mixture
            ]
        for recipe in self.recipes:
            check_recipe(recipe)
        self.cache_dir = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
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
        self._opened: list[Prepared]
        self._held_out: frozenset[bytes] = frozenset()

    @property
    def bytes_per_target(self) -> float:
        """UTF-8 bytes behind a validation target: bits per byte = mean nll in nats / ln 2 / bytes_per_target."""
        return self.manifest.validation.bytes_per_target

    def prepare_data(self) -> None:
        """Tokenise and pack into the cache, on one process of each node; nothing to do when streaming."""
        if not self.streaming:
            prepare(self.recipes, self.cache_dir)

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
        """Open the folders of prepared data."""
        self._opened = [open_prepared(folder) for folder in find_prepared(self.recipes, self.cache_dir)]
        first, source = self._opened[0], self._source
        self.tokenizer = first.tokenizer
        if self._mixture is None:
            self.train_blocks, self.validation_blocks, manifest = first.train, first.validation, first.manifest
            # The same content may have been prepared from another place before.
            manifest = replace(manifest, source=source.source, subset=source.subset, split=source.named_split)
        else:
            self.train_blocks = Blocks.concatenated([opened.train for opened in self._opened])
            self.validation_blocks = Blocks.concatenated([opened.validation for opened in self._opened])
            manifest = mix([opened.manifest for opened in self._opened], self._mixture)
        self.manifest = replace(manifest, tokenizer=self.recipes[0].tokenizer)

    def blocks_read(self, step: int) -> list[int]:
        """Blocks of each source of a mixture that the steps before this one read, in the order of the mixture."""
        num_blocks = step * self.geometry().global_batch_size
        return positions_of_sources(num_blocks, [entry.weight for entry in self._mixture or ()])

    def held_out_documents(self) -> Iterator[Document]:
        """The documents of validation, in the order of the sources; nothing is tokenised or kept."""
        if not self.streaming:
            all_splits = split_documents(self.recipes, self.cache_dir)
            return chain.from_iterable(read_parts(splits.validation) for splits in all_splits)
        source = self.recipes[0].validation_source or self._source
        rows = islice(stream_documents(source), self.validation_documents)
        return (Document(row["text"]) for row in rows if row["text"])

    def _setup_stream(self) -> None:
        """Load the tokenizer; hold out and pack the first documents."""
        recipe = self.recipes[0]
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
            return TrainLoader(MicroBatches(self.train_blocks, geometry, self._order()), current_step, self.num_workers)
        documents = stream_documents(self._source)
        # With fewer files than ranks each rank reads all and keeps its share.
        strategy = "shards" if documents.num_shards >= geometry.world_size else "examples"
        mine = split_dataset_by_node(documents, geometry.rank, geometry.world_size, strategy)
        batches = StreamedBatches(mine, self._held_out, self.tokenizer, self.recipes[0].sequence_length, geometry)
        return StreamLoader(batches, current_step, self.num_workers)

    def _order(self) -> Order:
        if self._mixture is None:
            return partial(block_indices, num_blocks=len(self.train_blocks), seed=self.seed)
        blocks_of_sources = [len(opened.train) for opened in self._opened]
        weights = [entry.weight for entry in self._mixture]
        return partial(mixed_block_indices, blocks_of_sources=blocks_of_sources, weights=weights, seed=self.seed)

    def val_dataloader(self) -> ValidationLoader:
        """All validation blocks once, shared out over the ranks; those of a mixture's sources in turns."""
        geometry = self.geometry()
        sizes = [len(opened.validation) for opened in self._opened] if self._mixture else []
        return ValidationLoader(
            self.validation_blocks, self.micro_batch_size, geometry.rank, geometry.world_size, sizes
        )

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
            shares = [source.share for source in self.manifest.mixture or ()]
            return {
                **({"data.mixture (shares)": shares} if shares else {}),
                "data.source (sha256 of the training documents)": self.manifest.train.content_sha256,
            }
        leads = asdict(self._source) | {
            "validation_split": self.recipes[0].validation_split,
            "validation_documents": self.validation_documents,
        }
        return {f"data.{name}": value for name, value in leads.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError where a fit would go on with other batches than the checkpoint's run."""
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        for key, value in self.state_dict().items():
            if state_dict.get(key) != value:
                now, before = (v if isinstance(v, str) else json.dumps(v) for v in (value, state_dict.get(key)))
                raise ValueError(
                    f"{key} ({now}) must equal the checkpoint's ({before}); set it back or start a new run"
                )
