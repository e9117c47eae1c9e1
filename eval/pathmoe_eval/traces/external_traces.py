"""Chunks from routing that others recorded: vLLM and SGLang with --enable-return-routed-experts, or plain arrays.

Both engines return expert ids without weights, and neither promises an order of a token's experts. Without weights
`[..., 0]` is therefore the expert that the engine names first, which is the top-1 choice only where its kernel sorts by
score. Write `is_sorted_by_weight=False` into the header of such a trace, and rely on metrics of sets of experts. Ids
are those of routed experts; shared ones are not among them.

The last token that an engine samples was not an input of the model yet, so it has no routing, and is left out here.
"""

# Shapes: N tokens, L MoE layers, K experts per token, E experts, S sequences.

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pathmoe_eval.traces.routing_chunk import RoutingChunk

_SGLANG_DTYPES = ("int32", "uint16", "uint8")


def from_arrays(
    expert_ids_NLK: NDArray[np.integer],
    token_ids_N: NDArray[np.integer],
    *,
    starts_S1: NDArray[np.int64] | None = None,
    weights_NLK: NDArray[np.floating] | None = None,
    logits_NLE: NDArray[np.floating] | None = None,
) -> RoutingChunk:
    """A chunk of whole sequences; where there are weights, each token's experts are sorted by them, highest first.

    Args:
        expert_ids_NLK: integers [tokens, MoE layers, experts per token], counted from 0.
        token_ids_N: integers [tokens], the input token at each position.
        starts_S1: integers [sequences + 1], where sequences begin and the last one ends; None for one sequence.
        weights_NLK: floats, of the shape of `expert_ids_NLK`.
        logits_NLE: floats [tokens, MoE layers, experts].

    Raises:
        ValueError: no tokens, arrays that do not fit one another, a negative id (padding), or an expert twice in a
            token and layer, which is what engines show where they recorded nothing, such as the zeros of a dense layer
            (with one expert per token that can't be told from a choice).
    """
    expert_ids_NLK, token_ids_N = np.asarray(expert_ids_NLK), np.asarray(token_ids_N)
    if expert_ids_NLK.size == 0:
        raise ValueError(f"expert_ids_NLK ({list(expert_ids_NLK.shape)}) must not be empty; leave the sequence out")
    chunk = RoutingChunk(
        expert_ids_NLK=expert_ids_NLK,
        token_ids_N=token_ids_N,
        starts_S1=np.asarray([0, len(token_ids_N)] if starts_S1 is None else starts_S1, dtype=np.int64),
        weights_NLK=weights_NLK,
        logits_NLE=logits_NLE,
    )
    _check_recorded(expert_ids_NLK)
    if weights_NLK is None:
        return chunk
    order_NLK = np.argsort(-weights_NLK, axis=-1, stable=True)
    return RoutingChunk(
        expert_ids_NLK=np.take_along_axis(expert_ids_NLK, order_NLK, axis=-1),
        token_ids_N=token_ids_N,
        starts_S1=chunk.starts_S1,
        weights_NLK=np.take_along_axis(weights_NLK, order_NLK, axis=-1),
        logits_NLE=logits_NLE,
    )


def from_vllm(
    routed_experts: str | ArrayLike,
    prompt_token_ids: Sequence[int],
    token_ids: Sequence[int],
    *,
    prompt_routed_experts: ArrayLike | None = None,
    prompt_start: int = 0,
    moe_layers: Sequence[int] | None = None,
) -> RoutingChunk:
    """One completion of vLLM, as a sequence of its prompt and what it generated but for the last token.

    Read in vLLM's documentation of 0.21.0 and 0.22.1 and in its sources up to commits 09155aec and 0a0b7380:

    - `CompletionOutput.routed_experts` is an array [prompt + generated - 1 - prompt_start, num_hidden_layers, experts
      per token] of uint8 (uint16 above 256 experts), dense layers being zeros. /v1/completions, /v1/chat/completions
      and /inference/v1/generate give the same as `choices[i].routed_experts`, base64 of a .npy file. It is None where
      the flag is off or the request was aborted.
    - 0.21 parts it into `prompt_routed_experts` of the request and `routed_experts` of each choice, int16 arrays or
      nested lists of MoE layers only, with -1 where the prefix cache answered.

    Args:
        routed_experts: base64 text, an array, or nested lists.
        prompt_token_ids: the request's `prompt_token_ids` (over HTTP with `return_token_ids`).
        token_ids: the choice's `token_ids`.
        prompt_routed_experts: what 0.21 gives beside `routed_experts`.
        prompt_start: the request's `SamplingParams.routed_experts_prompt_start`: leading tokens that have no rows.
        moe_layers: which of the layers are MoE layers; None for all.

    Raises:
        ValueError: as `from_arrays`; nothing was recorded, text that is no .npy, or rows that do not fit the tokens.
    """
    rows_NLK = _decode_npy(routed_experts) if isinstance(routed_experts, str) else np.asarray(routed_experts)
    if prompt_routed_experts is not None:
        prompt_rows_NLK = np.asarray(prompt_routed_experts)
        # No token but the last was generated: no row either, and nested lists do not say how many layers.
        rows_NLK = np.concatenate([prompt_rows_NLK, rows_NLK]) if len(rows_NLK) else prompt_rows_NLK
    return _from_rows(rows_NLK, [*prompt_token_ids, *token_ids], prompt_start, moe_layers)


def from_sglang(
    routed_experts: str,
    token_ids: Sequence[int],
    *,
    num_hidden_layers: int,
    num_experts_per_tok: int,
    start_len: int = 0,
    dtype: str = "int32",
    moe_layers: Sequence[int] | None = None,
) -> RoutingChunk:
    """One response of SGLang, as a sequence of its prompt and what it generated but for the last token.

    Read in SGLang's sources up to commits 0564b521 and a6463a10: `meta_info["routed_experts"]` of /generate, and
    `sgl_ext.routed_experts` of the OpenAI endpoints, is base64 of the bare numbers [prompt + generated - 1 - start_len,
    num_hidden_layers, num_experts_per_tok], row-major, int32 unless `meta_info["routed_experts_dtype"]` says otherwise.
    Dense layers are there, as zeros.

    Args:
        routed_experts: the base64 text.
        token_ids: the ids of the prompt and then of the output, the last one included.
        num_hidden_layers: of the model's configuration, dense layers included.
        num_experts_per_tok: of the model's configuration.
        start_len: the request's `routed_experts_start_len`: leading tokens that have no rows.
        dtype: `meta_info["routed_experts_dtype"]` where it is given.
        moe_layers: which of the layers are MoE layers; None for all.

    Raises:
        ValueError: as `from_arrays`; text that is not base64, another dtype, or numbers that do not fit the tokens.
    """
    if dtype not in _SGLANG_DTYPES:
        raise ValueError(f"dtype ({dtype}) must be one of {', '.join(_SGLANG_DTYPES)}; take it from the response")
    raw = _decode_base64(routed_experts)
    bytes_per_token = num_hidden_layers * num_experts_per_tok * np.dtype(dtype).itemsize
    if bytes_per_token < 1 or len(raw) % bytes_per_token:
        raise ValueError(
            f"routed_experts ({len(raw)} bytes) must hold num_hidden_layers ({num_hidden_layers}) x "
            f"num_experts_per_tok ({num_experts_per_tok}) x {dtype} a token; take them from the model and the response"
        )
    rows_NLK = np.frombuffer(raw, dtype=dtype).reshape(-1, num_hidden_layers, num_experts_per_tok)
    return _from_rows(rows_NLK, token_ids, start_len, moe_layers)


def _from_rows(
    rows_NLK: NDArray[Any], token_ids: Sequence[int], num_skipped: int, moe_layers: Sequence[int] | None
) -> RoutingChunk:
    num_rows = len(token_ids) - 1 - num_skipped
    if rows_NLK.ndim != 3 or rows_NLK.dtype.kind not in "iu":
        found = f"{rows_NLK.dtype} {list(rows_NLK.shape)}"
        raise ValueError(
            f"routed_experts ({found}) must be integers [tokens, layers, experts per token]; "
            "start the engine with --enable-return-routed-experts"
        )
    if num_skipped < 0 or len(rows_NLK) != num_rows:
        raise ValueError(
            f"routed_experts ({len(rows_NLK)} rows) must have one for each of the {num_rows} tokens of the prompt and "
            f"the output, but for the first {num_skipped} and the last; pass the ids of both and the request's start"
        )
    num_layers = rows_NLK.shape[1]
    if moe_layers is not None:
        wrong = [layer for layer in moe_layers if not 0 <= layer < num_layers]
        if wrong or not moe_layers:
            raise ValueError(
                f"moe_layers ({', '.join(map(str, wrong)) or 'none'}) must be among the {num_layers} layers that were "
                "recorded; count from 0"
            )
        rows_NLK = rows_NLK[:, list(moe_layers)]
    return from_arrays(rows_NLK, np.asarray(token_ids[num_skipped:-1], dtype=np.int64))


def _check_recorded(expert_ids_NLK: NDArray[np.integer]) -> None:
    """Raise ValueError where ids can't be a router's choice: a negative one, or one expert twice."""
    if (lowest := int(expert_ids_NLK.min())) < 0:
        token, layer, _ = np.argwhere(expert_ids_NLK == lowest)[0].tolist()
        raise ValueError(
            f"expert_ids_NLK ({lowest}, token {token}, layer {layer}) must be at least 0; leave out padding, "
            "and tokens that a prefix cache answered"
        )
    sorted_NLK = np.sort(expert_ids_NLK, axis=-1)
    is_double_NL = np.any(sorted_NLK[..., 1:] == sorted_NLK[..., :-1], axis=-1)
    if is_double_NL.any():
        token, layer = np.argwhere(is_double_NL)[0].tolist()
        shown = ", ".join(map(str, expert_ids_NLK[token, layer].tolist()))
        raise ValueError(
            f"expert_ids_NLK ({shown}, token {token}, layer {layer}) must not name an expert twice; "
            "leave out tokens that were not recorded, and dense layers (moe_layers)"
        )


def _decode_npy(text: str) -> NDArray[Any]:
    try:
        return np.load(io.BytesIO(_decode_base64(text)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            "routed_experts (text) must be base64 of a .npy file; pass the response's own field"
        ) from error


def _decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("routed_experts (text) must be base64; pass the response's own field") from error
