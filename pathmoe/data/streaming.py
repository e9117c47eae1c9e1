"""Streaming: documents tokenised and packed as they are read, with a position that fits in a checkpoint.

Each rank reads its own part of the source, in the order of the source, again and again. Its position is the state of
the `IterableDataset` and the tokens that were read but not yet trained on.
"""

# Shapes: B blocks of a step on this rank, N tokens of a stream, T = sequence + 1 tokens of a block, P = T / 8 bytes.

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset as TorchIterableDataset
from transformers import PreTrainedTokenizerBase

from pathmoe.data.loader import Batch
from pathmoe.data.order import BatchGeometry
from pathmoe.data.packing import Stream, block_to_batch, cut_blocks, empty_stream, is_target, join, to_stream
from pathmoe.data.splitting import text_hash
from pathmoe.data.tokenizer import encode

_DOCUMENTS_PER_READ = 64

State = dict[str, Any]


class StreamedBatches(TorchIterableDataset[tuple[Batch, dict[int, State]]]):
    """Endless micro-batches of one rank, from a step on whose start `state` is the position (None: the beginning).

    With the first micro-batch of each step come the positions at the start of this step and of the next one: readers
    fetch ahead of training, so the position to save is that of the step, not that of the reader. `num_items` counts the
    targets of this rank alone, which `num_items_is_local` says; `block_ids` count its blocks from the beginning.
    """

    def __init__(
        self,
        documents: IterableDataset,
        held_out: frozenset[bytes],
        tokenizer: PreTrainedTokenizerBase,
        sequence_length: int,
        geometry: BatchGeometry,
        first_step: int = 0,
        state: State | None = None,
    ) -> None:
        self.documents = documents
        self.held_out = held_out
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.geometry = geometry
        self.first_step = first_step
        self.state = state

    def __iter__(self) -> Iterator[tuple[Batch, dict[int, State]]]:
        """Pairs of a micro-batch and the positions that are known with it."""
        size, accumulate = self.geometry.micro_batch_size, self.geometry.accumulate_grad_batches
        reader = _Reader(self.documents, self.held_out, self.tokenizer, self.state)
        step = self.first_step
        before = reader.state()
        while True:
            tokens_BT, starts_BT = reader.take(size * accumulate, self.sequence_length)
            after = reader.state()
            num_items = int(is_target(starts_BT).sum())
            packed_starts_BP = np.packbits(starts_BT, axis=1)
            for micro_batch in range(accumulate):
                rows = slice(micro_batch * size, (micro_batch + 1) * size)
                batch: Batch = {**block_to_batch(tokens_BT[rows], packed_starts_BP[rows])}
                batch |= {"num_items": num_items, "step": step, "micro_batch": micro_batch, "num_items_is_local": True}
                first = (step * accumulate + micro_batch) * size
                batch["block_ids"] = list(range(first, first + size))
                yield batch, ({step: before, step + 1: after} if micro_batch == 0 else {})
            step, before = step + 1, after


class _Reader:
    """Reads documents, over and over, into a buffer of tokens from which blocks are taken."""

    def __init__(
        self,
        documents: IterableDataset,
        held_out: frozenset[bytes],
        tokenizer: PreTrainedTokenizerBase,
        state: State | None,
    ) -> None:
        self.documents = documents
        self.held_out = held_out
        self.tokenizer = tokenizer
        self.empty_epochs = 0
        self.buffer = empty_stream(len(tokenizer))
        self._begin(epoch=0 if state is None else state["epoch"], position=None if state is None else state["position"])
        if state is not None:
            tokens_N = state["tokens"].numpy().astype(self.buffer.tokens_N.dtype)
            self.buffer = Stream(tokens_N, state["starts"].numpy())

    def _begin(self, epoch: int, position: Any) -> None:
        self.epoch, self.position = epoch, position
        self.documents.set_epoch(epoch)
        self.documents.load_state_dict(position)
        self.rows = iter(self.documents)

    def state(self) -> State:
        """Plain values and tensors, which `torch.load(weights_only=True)` reads."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "tokens": torch.from_numpy(self.buffer.tokens_N.astype(np.int64)),
            "starts": torch.from_numpy(self.buffer.starts_N.copy()),
        }

    def take(self, num_blocks: int, sequence_length: int) -> tuple[np.ndarray, np.ndarray]:
        """The next blocks: tokens_BT, starts_BT."""
        while len(self.buffer.tokens_N) <= num_blocks * sequence_length:
            self._read()
        tokens_BT, starts_BT, self.buffer = cut_blocks(self.buffer, sequence_length, num_blocks)
        return tokens_BT, starts_BT

    def _read(self) -> None:
        texts = [row["text"] for row in islice(self.rows, _DOCUMENTS_PER_READ)]
        if not texts:
            self.empty_epochs += 1
            if self.empty_epochs > 1:
                raise ValueError(
                    "data.source holds no document for this rank beside those held out for validation; lower "
                    "data.validation_documents, use fewer ranks, or prepare the data"
                )
            self._begin(self.epoch + 1, None)
            return
        self.position = self.documents.state_dict()
        texts = [text for text in texts if text and text_hash(text) not in self.held_out]
        if texts:
            self.empty_epochs = 0
            bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
            ids = encode(self.tokenizer, texts)
            self.buffer = join(self.buffer, to_stream(ids, bos, eos, len(self.tokenizer)))


class StreamLoader:
    """Loader of a streamed source; a Lightning checkpoint keeps its position, one per rank."""

    def __init__(self, batches: StreamedBatches, current_step: Callable[[], int], num_workers: int = 0) -> None:
        self.batches = batches
        self.current_step = current_step
        self.num_workers = num_workers
        self._states: dict[int, State | None] = {0: None}

    def __iter__(self) -> Iterator[Batch]:
        """Micro-batches from the current step on."""
        step = self.current_step()
        if step not in self._states:
            raise ValueError(
                f"data.streaming (true): the position of the source at step {step} is not known; resume from a "
                "checkpoint that was written while streaming, or start a new run"
            )
        self.batches.first_step, self.batches.state = step, self._states[step]
        for batch, states in DataLoader(self.batches, batch_size=None, num_workers=self.num_workers):
            if states:
                # Training is at this step or, since one batch is fetched ahead, at the one before.
                self._states = {s: state for s, state in self._states.items() if s >= batch["step"] - 1} | states
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Positions of all ranks at the start of the current step; every rank must call this."""
        step = self.current_step()
        mine = self._states[step]
        states: list[State | None] = [mine] * self.batches.geometry.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_gather_object(states, mine)
        return {"step": step, "ranks": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved position. Raises ValueError on another number of ranks."""
        world_size = self.batches.geometry.world_size
        if len(state["ranks"]) != world_size:
            raise ValueError(
                f"data.streaming (true) must resume on the number of ranks of the checkpoint ({len(state['ranks'])}), "
                f"not {world_size}; set trainer.devices and trainer.num_nodes back, or prepare the data"
            )
        self._states = {state["step"]: state["ranks"][self.batches.geometry.rank]}
