"""Generate a large routing trace for benchmarks: python eval/bench/generate_trace.py --out trace/ --tokens 7180000

Most tokens take a path of their own and the rest one of a few frequent paths, so that the distinct paths grow with the
tokens while the frequent ones stay (at the default sizes about 5 M distinct paths in 7.18 M tokens). In both,
neighbouring layers choose the same index more often than chance.
"""

# Shapes: N tokens, L MoE layers, K experts per token, F frequent paths, O orders of the experts after the first.

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.traces.routing_chunk import RoutingChunk
from pathmoe_eval.traces.trace_header import TraceHeader
from pathmoe_eval.traces.trace_writer import TraceWriter

CHUNK_TOKENS = 1 << 16
NUM_FREQUENT_PATHS = 100_000
FREQUENT_SHARE = 0.32
STAY_PROBABILITY = 0.25
SEQUENCE_TOKENS = 1000
VOCAB_SIZE = 50_000
LAYERS_PER_ROUTER = 4
DOMAINS = ("code", "books", "web", "maths")
NUM_ORDERS = 4096


@dataclass(frozen=True, kw_only=True)
class TraceShape:
    """How large a generated trace is; the same shape and seed give the same trace."""

    num_tokens: int
    num_layers: int = 24
    num_experts: int = 16
    num_experts_per_tok: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the number of tokens; `TraceHeader` checks the rest."""
        if self.num_tokens < 1:
            raise ValueError(f"--tokens ({self.num_tokens}) must be at least 1; raise it")


def header_of(shape: TraceShape) -> TraceHeader:
    """The header of a generated trace: routers shared by blocks of layers, expert and token ids only."""
    return TraceHeader(
        num_layers=shape.num_layers,
        num_experts=shape.num_experts,
        num_experts_per_tok=shape.num_experts_per_tok,
        layer_names=tuple(f"layers.{layer}" for layer in range(shape.num_layers)),
        router_of_layer=tuple(layer // LAYERS_PER_ROUTER for layer in range(shape.num_layers)),
        model="generated",
        tokenizer="",
        data=f"generated, seed {shape.seed}",
        vocab_size=VOCAB_SIZE,
        has_weights=False,
        has_logits=False,
        has_predicted_ids=False,
    )


def generated_chunks(shape: TraceShape) -> Iterator[RoutingChunk]:
    """The chunks of a generated trace, each drawn with a seed of its own."""
    rng = np.random.default_rng([shape.seed, 0])
    frequent_FL = _random_paths(rng, NUM_FREQUENT_PATHS, shape)
    # Zipf's law with exponent 1, over the ranks of the frequent paths.
    cumulative_F = np.cumsum(1 / np.arange(1, NUM_FREQUENT_PATHS + 1))
    offsets_OK = _random_offsets(rng, shape)
    for number, start in enumerate(range(0, shape.num_tokens, CHUNK_TOKENS), start=1):
        rng = np.random.default_rng([shape.seed, number])
        num_tokens = min(CHUNK_TOKENS, shape.num_tokens - start)
        path_ids_NL = _random_paths(rng, num_tokens, shape)
        rank_N = np.searchsorted(cumulative_F, rng.random(num_tokens) * cumulative_F[-1])
        is_frequent_N = rng.random(num_tokens) < FREQUENT_SHARE
        path_ids_NL[is_frequent_N] = frequent_FL[rank_N[is_frequent_N]]
        order_NL = rng.integers(0, len(offsets_OK), path_ids_NL.shape, dtype=np.uint16)
        ids_NLK = (path_ids_NL[:, :, None] + offsets_OK[order_NL]) % np.uint16(shape.num_experts)
        yield RoutingChunk(
            expert_ids_NLK=ids_NLK.astype(np.uint8 if shape.num_experts <= 1 << 8 else np.uint16),
            # A frequent path has few tokens, so that there is something for paths to be about.
            token_ids_N=(rank_N % VOCAB_SIZE).astype(np.int32),
            starts_S1=_sequence_starts(start, num_tokens),
            first_position=start % SEQUENCE_TOKENS,
        )


def write_generated(folder: str, shape: TraceShape) -> None:
    """Write a generated trace.

    Raises:
        ValueError: a shape that no model has, or a folder that is taken.
    """
    with TraceWriter(folder, header_of(shape)) as writer:
        for chunk in generated_chunks(shape):
            num_begins = len(chunk.starts_S1) - 1 - (chunk.first_position > 0)
            numbers = range(writer.num_sequences, writer.num_sequences + num_begins)
            writer.append(
                chunk, [f"document {number}" for number in numbers], [DOMAINS[n % len(DOMAINS)] for n in numbers]
            )


def _random_paths(rng: np.random.Generator, num_paths: int, shape: TraceShape) -> NDArray[np.uint16]:
    """Paths that stay on an expert's index from layer to layer more often than chance, uint16 [paths, layers]."""
    path_ids_NL = rng.integers(0, shape.num_experts, (num_paths, shape.num_layers), dtype=np.uint16)
    stays_NL = rng.random((num_paths, shape.num_layers), dtype=np.float32) < STAY_PROBABILITY
    for layer in range(1, shape.num_layers):
        path_ids_NL[:, layer] = np.where(stays_NL[:, layer], path_ids_NL[:, layer - 1], path_ids_NL[:, layer])
    return path_ids_NL


def _random_offsets(rng: np.random.Generator, shape: TraceShape) -> NDArray[np.uint16]:
    """What to add to a token's first expert for each of its experts, uint16 [orders, experts per token]."""
    others = np.broadcast_to(np.arange(1, shape.num_experts, dtype=np.uint16), (NUM_ORDERS, shape.num_experts - 1))
    offsets_OK = np.zeros((NUM_ORDERS, shape.num_experts_per_tok), dtype=np.uint16)
    offsets_OK[:, 1:] = rng.permuted(others, axis=1)[:, : shape.num_experts_per_tok - 1]
    return offsets_OK


def _sequence_starts(start: int, num_tokens: int) -> NDArray[np.int64]:
    first = -start % SEQUENCE_TOKENS or SEQUENCE_TOKENS
    return np.array([0, *range(first, num_tokens, SEQUENCE_TOKENS), num_tokens], dtype=np.int64)


def main() -> None:
    """Write the trace that the arguments describe."""
    parser = argparse.ArgumentParser(prog="python eval/bench/generate_trace.py", description=__doc__)
    parser.add_argument("--out", required=True, help="folder of the trace, which must be new or empty")
    parser.add_argument("--tokens", type=int, default=7_180_000)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--experts-per-tok", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        shape = TraceShape(
            num_tokens=arguments.tokens,
            num_layers=arguments.layers,
            num_experts=arguments.experts,
            num_experts_per_tok=arguments.experts_per_tok,
            seed=arguments.seed,
        )
        write_generated(arguments.out, shape)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
