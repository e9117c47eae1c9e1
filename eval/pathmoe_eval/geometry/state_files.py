"""Router inputs of a model over documents, on disk, as arrays that are mapped into memory."""

# Shapes: N tokens, M documents, D hidden, L MoE layers, E experts, K experts per token.

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.evaluation.evaluated_data import EvaluatedDocument
from pathmoe_eval.evaluation.evaluated_model import EvaluatedModel
from pathmoe_eval.evaluation.scoring import scored_batches
from pathmoe_eval.evaluation.windows import score_windows
from pathmoe_eval.geometry.state_recorder import RecordedStates, StateRecorder

_CELLS_PER_CHUNK = 1 << 24
_ROOM = 1.1
"""What must be free, over what is written."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StateFiles:
    """What was recorded of all tokens, in the order of the documents."""

    states: Mapping[int, NDArray[np.float32]]
    """[N, D] by MoE layer, of those that were asked for."""
    logits: Mapping[int, NDArray[np.float32]]
    """[N, E] of the same layers."""
    expert_ids_NLK: NDArray[np.unsignedinteger]
    """Of all MoE layers, highest weight first."""
    token_ids_N: NDArray[np.int64]
    document_N: NDArray[np.int64]
    """Number of each token's document, from 0, ascending."""
    domains: tuple[str, ...]
    """Of each document."""
    problems: tuple[str | None, ...]
    """What each document answers, where that is known."""

    @property
    def num_tokens(self) -> int:
        """N."""
        return len(self.token_ids_N)

    def chunks(self, layer: int) -> Iterator[slice]:
        """Rows of consecutive tokens whose states fit in memory easily."""
        rows = max(1, _CELLS_PER_CHUNK // self.states[layer].shape[1])
        return (slice(first, first + rows) for first in range(0, self.num_tokens, rows))


def record_states(
    model: EvaluatedModel,
    documents: Sequence[EvaluatedDocument],
    layers: Sequence[int],
    folder: Path,
    *,
    max_length: int,
    stride: int,
) -> StateFiles:
    """Run a model over documents, and write the router inputs of some layers.

    Args:
        model: to run.
        documents: with at least one token each.
        layers: MoE layers, ascending.
        folder: for the arrays; what is in it is lost.
        max_length: inputs of a forward at most.
        stride: inputs between the beginnings of two windows of a document.

    Raises:
        ValueError: see `StateRecorder`; a disk without room for it.
    """
    num_tokens = sum(len(document.token_ids) for document in documents)
    batches = scored_batches(model.model, score_windows(documents, max_length, stride))
    arrays: _Arrays | None = None
    with StateRecorder(model.model, layers) as recorder:
        for batch in batches:
            counted_N = np.flatnonzero(batch.is_counted_BS)
            taken = recorder.take()
            if arrays is None:
                arrays = _Arrays(folder, num_tokens, taken)
            arrays.append(taken, counted_N, batch.input_ids_BS.flat[counted_N], batch.document_BS.flat[counted_N])
    assert arrays is not None, "documents have tokens"
    return arrays.files(documents)


class _Arrays:
    """Arrays that fill up."""

    def __init__(self, folder: Path, num_tokens: int, first: RecordedStates) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        ids_NLK, logits_NLE = first.routing.expert_ids_NLK, first.routing.logits_NLE
        assert logits_NLE is not None, "recorded with logits"
        num_experts = logits_NLE.shape[2]
        self._folder = folder
        self._filled = 0
        widths = {layer: states_ND.shape[1] for layer, states_ND in first.states.items()}
        _check_room(folder, 4 * num_tokens * sum(width + num_experts for width in widths.values()))
        self._states = {layer: self._new(f"states-{layer}", (num_tokens, width)) for layer, width in widths.items()}
        self._logits = {layer: self._new(f"logits-{layer}", (num_tokens, num_experts)) for layer in widths}
        self._expert_ids_NLK = np.empty((num_tokens, *ids_NLK.shape[1:]), dtype=ids_NLK.dtype)
        self._token_ids_N = np.empty(num_tokens, dtype=np.int64)
        self._document_N = np.empty(num_tokens, dtype=np.int64)

    def _new(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return np.lib.format.open_memmap(self._folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)

    def append(
        self,
        taken: RecordedStates,
        rows_N: NDArray[np.int64],
        token_ids_N: NDArray[np.int64],
        document_N: NDArray[np.int64],
    ) -> None:
        """Write these rows of what was taken."""
        at = slice(self._filled, self._filled + len(rows_N))
        assert taken.routing.logits_NLE is not None, "recorded with logits"
        for layer, states_ND in taken.states.items():
            self._states[layer][at] = states_ND[rows_N]
            self._logits[layer][at] = taken.routing.logits_NLE[rows_N, layer]
        self._expert_ids_NLK[at] = taken.routing.expert_ids_NLK[rows_N]
        self._token_ids_N[at], self._document_N[at] = token_ids_N, document_N
        self._filled = at.stop

    def files(self, documents: Sequence[EvaluatedDocument]) -> StateFiles:
        """All of it, once it is there."""
        assert self._filled == len(self._token_ids_N), "each token is counted once"
        return StateFiles(
            states=self._states,
            logits=self._logits,
            expert_ids_NLK=self._expert_ids_NLK,
            token_ids_N=self._token_ids_N,
            document_N=self._document_N,
            domains=tuple(document.domain for document in documents),
            problems=tuple(document.problem for document in documents),
        )


def _check_room(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < _ROOM * num_bytes:
        raise ValueError(
            f"--out ({folder}) must have {num_bytes / 2**30:,.1f} GiB free for router inputs, and has "
            f"{free / 2**30:,.1f}; lower --max_tokens, name fewer --layers, or choose another place"
        )
