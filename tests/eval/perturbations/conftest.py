"""Traces of given top-1 paths."""

# Shapes: N tokens, L MoE layers.

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pathmoe_eval.traces.routing_chunk import RoutingChunk
from pathmoe_eval.traces.trace_header import TraceHeader
from pathmoe_eval.traces.trace_writer import TraceWriter


@pytest.fixture(scope="session")
def write_paths() -> Callable[..., Path]:
    """Write paths [N, L] through six experts as a trace, each token with a second expert; returns its folder."""

    def write(folder: Path, path_ids_NL: NDArray[np.integer], **fields: Any) -> Path:
        num_tokens, num_layers = path_ids_NL.shape
        header = TraceHeader(
            num_layers=num_layers, num_experts=6, num_experts_per_tok=2, layer_names=("a layer",) * num_layers,
            router_of_layer=tuple(range(num_layers)), model="m", tokenizer="", data="d", vocab_size=2,
            has_weights=False, has_logits=False, has_predicted_ids=False, **fields,
        )  # fmt: skip
        chunk = RoutingChunk(
            expert_ids_NLK=np.stack([path_ids_NL, (path_ids_NL + 1) % 6], axis=-1),
            token_ids_N=np.zeros(num_tokens, dtype=np.int32),
            starts_S1=np.array([0, num_tokens]),
        )
        with TraceWriter(folder, header) as writer:
            writer.append(chunk, names=["a document"], domains=["a domain"])
        return folder

    return write
