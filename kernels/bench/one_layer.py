"""One MoE layer, forward and backward, launched kernel by kernel on random data, and the bytes that this touches."""

# Shapes: T tokens, E experts, K experts per token, N = T*K routed rows, D hidden, F expert width, G = 2F,
# C chunks of rows.

import torch
from bounds import PLAIN, Options, Shape, Step, backward, forward, sort_by_expert
from torch import Tensor
from touched import Launch, count_touched

from pathmoe_kernels import Dispatch, RouteRule, expert_mlp_triton
from pathmoe_kernels.metadata_triton import count_rows, place_rows
from pathmoe_kernels.route_backward_triton import route_backward
from pathmoe_kernels.route_forward_triton import route_forward, tokens_per_chunk
from pathmoe_kernels.sort import ROWS_PER_CHUNK

DTYPES = {2: torch.bfloat16, 4: torch.float32}


def shape_of(num_tokens: int, num_experts: int, num_choices: int, hidden_size: int, width: int, itemsize: int) -> Shape:
    """The shape with the tile that `route` takes."""
    tile = tokens_per_chunk(num_experts, has_gate=True)
    return Shape(num_tokens, num_experts, num_choices, hidden_size, width, itemsize, tile)


def counted_layer(shape: Shape, options: Options = PLAIN) -> list[tuple[Step, Launch]]:
    """Each launch of a Triton kernel of the layer, and of a sort from bare ids: on paper, and in the interpreter."""
    results: list[Tensor] = []
    launches = count_touched(lambda: results.append(_launch(shape, options)))
    (ends_E,) = results
    num_empty = int((ends_E.diff(prepend=ends_E.new_zeros(1)) == 0).sum())
    shape = shape._replace(Z=num_empty)
    kernels = {launch.kernel for launch in launches}
    steps = [*forward(shape, options), *backward(shape, options), *sort_by_expert(shape, ROWS_PER_CHUNK)]
    return list(zip([step for step in steps if step.kernel in kernels], launches, strict=True))


def _launch(shape: Shape, options: Options) -> Tensor:
    """Launch them; returns the rows' ends [E]."""
    (T, E, K, D, F, *_), dtype = shape, DTYPES[shape.b]
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(sizes, generator=generator).to(dtype)

    x_TD, gate_ED, grad_TD = normal(T, D, dtype=dtype), normal(E, D, dtype=dtype), normal(T, D, dtype=dtype)
    weights = normal(E, 2 * F, D, dtype=dtype), normal(E, D, F, dtype=dtype)
    mask_T = normal(T) > 0 if options.masked else None
    bias_E = normal(E) if options.biased else None
    rule = RouteRule(K, norm_topk_prob=options.renormalised, probability_sum=options.probabilities)

    routed, chunk_starts_CE = route_forward(x_TD, gate_ED, bias_E, mask_T, E, rule)
    ids_N, ends_E = routed.expert_ids_TK.view(-1), routed.dispatch.ends_E
    dispatch = Dispatch(*place_rows(ids_N, chunk_starts_CE, ends_E, shape.tile * K), ends_E)
    _, pre_activation_NG = expert_mlp_triton.forward(x_TD, routed.weights_TK, *weights, dispatch)
    _, grad_weights_TK, *_ = expert_mlp_triton.backward(
        grad_TD, x_TD, routed.weights_TK, *weights, dispatch, pre_activation_NG, wants_experts=True
    )
    grads = (
        grad_weights_TK,
        normal(T) if options.logsumexp_gradient else None,
        normal(E) if options.probabilities else None,
    )
    saved = mask_T, routed.expert_ids_TK, routed.weights_TK, routed.logsumexp_T
    route_backward(x_TD, gate_ED, *saved, *grads, E, rule)

    starts_CE, bare_ends_E = count_rows(ids_N, E, ROWS_PER_CHUNK)
    place_rows(ids_N, starts_CE, bare_ends_E, ROWS_PER_CHUNK)
    return ends_E
