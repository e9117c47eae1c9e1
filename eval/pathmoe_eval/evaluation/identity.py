"""What a run was of, as short hashes: the tokens that were read, their domains, the model that read them."""

# Shapes: N tokens, S pieces of documents in a chunk.

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from pathmoe_eval.traces.trace import RoutingTrace

IDENTITY = ("model", "data", "num_tokens", "max_length", "stride", "dtype", "domains", "data_hash", "model_hash")
"""Keys of a report's `run` that make it one evaluation. The device is not among them: it moves figures by what it
rounds, and a report may be of two."""

_DIGITS = 16
_BEGIN = -1  # stands before each document, as no token id does
_SHOWN_DOMAINS = 3
_MAX_THREADS = 8

# Of configurations: how a model was saved or is run, and its tokenizer's special ids. Not what the model is.
_NOT_OF_THE_MODEL = re.compile(r"_.*|architectures|(torch_)?dtype|transformers_version|use_cache|\w+_token_id")


class Document(Protocol):
    """A tokenised document; see `EvaluatedDocument`."""

    @property
    def token_ids(self) -> NDArray[np.integer]:
        """Integers [N]."""
        ...

    @property
    def domain(self) -> str:
        """Empty where there are none."""
        ...


def compared_keys(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """`IDENTITY` without the names of what both know the hash of: one model and text may be spelled in many ways."""
    told = [name for name in ("model", "data") if f"{name}_hash" in ours and f"{name}_hash" in theirs]
    return [key for key in IDENTITY if key not in told]


def documents_identity(documents: Iterable[Document]) -> dict[str, str]:
    """What was read: `data_hash`, of the token ids, document by document, in order; `domains`, of the domain of each.

    Equal hashes mean the same tokens in the same documents in the same order, whatever file, text key and tokenizer
    they are from. `domains` begins with the first names, for readers; it is left out where no document has one.
    """
    hashed = _DocumentHashes()
    for document in documents:
        if len(document.token_ids):  # a trace has no place for one without tokens
            hashed.update(document.token_ids, np.array([0]), [document.domain])
    return hashed.result()


def trace_identity(trace: RoutingTrace) -> dict[str, Any]:
    """`IDENTITY` of the run that made a trace, of the part that is selected, as far as it is known.

    Hashes of what was read are taken chunk by chunk, and equal to those of the documents that were recorded. Of a trace
    that others recorded nobody knows windows and model.

    Raises:
        ValueError: what is damaged in the trace.
    """
    hashed = _DocumentHashes()
    domain_of_sequence = trace.sequences()["domain"]
    for chunk in trace.chunks():
        first = int(chunk.first_position > 0)  # a piece that goes on begins no document
        domains = domain_of_sequence.take(chunk.sequence_ids_S[first:]).to_pylist()
        hashed.update(chunk.token_ids_N, chunk.starts_S1[first:-1], domains)
    header = trace.header
    known = {"model": header.model, "data": header.data, "num_tokens": trace.num_tokens}
    return known | recorded_identity(header.provenance.get("identity")) | hashed.result()


class _DocumentHashes:
    def __init__(self) -> None:
        self._tokens, self._domains = hashlib.sha256(), hashlib.sha256()
        self._names: dict[str, None] = {}

    def update(self, token_ids_N: NDArray[np.integer], begins: NDArray[np.integer], domains: Sequence[str]) -> None:
        """Add tokens; `begins` are those that begin a document, of these domains."""
        self._tokens.update(np.insert(token_ids_N.astype("<i4"), begins, _BEGIN).tobytes())
        self._domains.update("".join(f"{json.dumps(domain)}\n" for domain in domains).encode())
        self._names |= dict.fromkeys(domains)

    def result(self) -> dict[str, str]:
        identity = {"data_hash": self._tokens.hexdigest()[:_DIGITS]}
        if any(self._names):
            names = [name or "none" for name in self._names]
            shown = ", ".join(names[:_SHOWN_DOMAINS]) + (", ..." if len(names) > _SHOWN_DOMAINS else "")
            identity["domains"] = f"{shown} ({self._domains.hexdigest()[:_DIGITS]})"
        return identity


def model_identity(model: PreTrainedModel) -> dict[str, str]:
    """What has read: `dtype` of the parameters, and `model_hash` of the bits of the model.

    The hash covers the name, dtype, shape and value of each parameter and each persistent buffer (selection biases), as
    they are loaded, and the configuration but for how it was saved or is run, and special token ids. It is the same for
    a checkpoint and its export, on any device; the same weights in another dtype, or under a release of transformers
    that knows more settings, have another. SHA-256, tensors side by side in at most 8 threads: a gigabyte takes 1 to
    2 s of a core, so 7 B parameters in bfloat16 take 10 s on two; from a GPU they are copied to the host, one by one.
    """
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as threads:
        digests = list(threads.map(_tensor_digest, state.values()))
    described = [_of_the_model(model.config.to_dict()), sorted(zip(state, digests, strict=True))]
    dtypes = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}
    return {"dtype": ", ".join(sorted(dtypes)), "model_hash": _hash(json.dumps(described, default=str))[:_DIGITS]}


def recorded_identity(run: Any) -> dict[str, Any]:
    """What of a run's identity a trace must be told, since its tokens do not tell it; what is not known is left out."""
    keys = ("max_length", "stride", "dtype", "model_hash")
    return {key: run[key] for key in keys if key in run} if isinstance(run, Mapping) else {}


def refuse_another_trace(trace: RoutingTrace, run: Mapping[str, Any], logits: bool) -> None:
    """Refuse a trace in the folder of a report that is not of its very run, or of which that is not known.

    Args:
        trace: what is there.
        run: as in a report, `IDENTITY` all known.
        logits: whether router logits are to be there.

    Raises:
        ValueError: something differs.
    """
    theirs = trace_identity(trace) | {"logits": trace.header.has_logits}
    wanted = {key: run.get(key) for key in compared_keys(run, theirs)} | {"logits": logits}
    for key, ours in wanted.items():
        if theirs.get(key) != ours:
            raise ValueError(
                f"--out ({trace.folder.parent}) must hold no trace of another run, but {trace.folder} has {key} "
                f"{theirs.get(key, 'unknown')}, not {ours}; choose another folder, remove {trace.folder}, or analyse "
                f"it with --trace {trace.folder} in the place of --model"
            )


def _tensor_digest(tensor: Tensor) -> str:
    values: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return _hash(f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(values).hexdigest()}")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _of_the_model(config: Any) -> Any:
    """A configuration, sorted, without what is not of the model; parts of it likewise."""
    if not isinstance(config, dict):
        return config
    named = {str(key): value for key, value in config.items()}
    return {key: _of_the_model(named[key]) for key in sorted(named) if not _NOT_OF_THE_MODEL.fullmatch(key)}
