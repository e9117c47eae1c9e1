"""Mutants that no test can tell from the kernels, each with the reason."""

PAST_THE_END = "rows past the last one take this, and nothing of theirs is stored or summed over"
TAKEN_IS_INSIDE = "experts' rows end where all rows do, or before"
OTHER_FACTOR = "it is multiplied by another number that is zero there"
FILLED_WITH_FALSE = (
    "the load fills what is outside with false, and the condition says so once more; one of them is enough"
)
REPLACED_BEYOND = "logits beyond the last expert become minus infinity whatever they are"
THREADS = "a barrier between threads; the interpreter has one (README.md argues why it is needed)"
UNREAD = "memory that nobody reads"

EQUIVALENT: dict[str, dict[str, str]] = {
    "metadata_triton": {
        "is_last_program: tl.debug_barrier() => pass": THREADS,
        "scan_chunks: tl.debug_barrier() => pass": THREADS,
        "scan_chunks: tl.load(tile_ptr, inside, 0, cache_modifier='.cg') => "
        "tl.load(tile_ptr, inside, 1, cache_modifier='.cg')": (
            "only the last tile has chunks past the last one, and what is summed up there is not read again"
        ),
        "place_rows_kernel: inside & (tl.sum(hit, axis=1) == 0) => tl.sum(hit, axis=1) == 0": (
            "rows past the chunk's last come after all that are placed, so that counting them moves none"
        ),
    },
    "route_backward_triton": {
        "choice_gradient: tl.load(grad_weights_ptr + row + k, inside, 0.0) => "
        "tl.load(grad_weights_ptr + row + k, inside, 1.0)": PAST_THE_END,
        "choice_gradient: tl.load(weights_ptr + row + k, inside, 0.0) => "
        "tl.load(weights_ptr + row + k, inside, 1.0)": PAST_THE_END,
        "choice_gradient: tl.load(weights_ptr + row + k, inside, 0.0) => "
        "tl.load(weights_ptr + row + k, inside, 1.0) (2)": PAST_THE_END,
        "choice_gradient: -1 => 1": PAST_THE_END,
        "choice_gradient: -1 => -2": PAST_THE_END,
        "choice_gradient: tl.load(grad_weights_ptr + row + k, inside, 0.0) => "
        "tl.load(grad_weights_ptr + row + k, inside, 1.0) (2)": PAST_THE_END,
        "hidden_gradient: range(0, BLOCK_E, 16) => range(0, BLOCK_E - 1, 16)": "BLOCK_E is a multiple of 16",
        "hidden_gradient: tl.load(grad_logits_ptr + row * E + expert[None, :], "
        "inside[:, None] & real[None, :], 0.0) => tl.load(grad_logits_ptr + row * E + expert[None, :], "
        "inside[:, None] & real[None, :], 1.0)": OTHER_FACTOR,
        "hidden_gradient: tl.load(gate_ptrs, real[:, None] & within[None, :], 0.0) => "
        "tl.load(gate_ptrs, real[:, None] & within[None, :], 1.0)": OTHER_FACTOR,
        "route_backward_kernel: tl.load(lse_ptr + token, inside, 0.0) => "
        "tl.load(lse_ptr + token, inside, 1.0)": PAST_THE_END,
        "route_backward_kernel: tl.load(grad_probability_ptr + expert, real, 0.0) => "
        "tl.load(grad_probability_ptr + expert, real, 1.0)": OTHER_FACTOR,
        "route_backward_kernel: inside & (tl.load(mask_ptr + token, inside, 0) != 0) => "
        "tl.load(mask_ptr + token, inside, 0) != 0": FILLED_WITH_FALSE,
        "route_backward_kernel: tl.load(mask_ptr + token, inside, 0) => "
        "tl.load(mask_ptr + token, inside, 1)": FILLED_WITH_FALSE,
        "route_backward_kernel: tl.load(grad_lse_ptr + token, inside, 0.0) => "
        "tl.load(grad_lse_ptr + token, inside, 1.0)": PAST_THE_END,
        "route_backward_kernel: tl.debug_barrier() => pass": THREADS,
        "route_backward: gate_ED is not None => gate_ED is None": (
            "a tile of another size gives the same gradients; RESOURCES.md lists the sizes, and a test holds them"
        ),
    },
    "route_forward_triton": {
        "ranking_tile: tl.load(bias_ptr + expert, real, 0.0) => tl.load(bias_ptr + expert, real, 1.0)": (
            "ranks beyond the last expert become minus infinity whatever they are"
        ),
        "ranking_tile: tl.where(bad[:, None], 0.0, ranking) => tl.where(bad[:, None], 1.0, ranking)": (
            "all ranks of the row tie, at any number"
        ),
        "route_forward_kernel: inside & (tl.load(mask_ptr + token, inside, 0) != 0) => "
        "tl.load(mask_ptr + token, inside, 0) != 0": FILLED_WITH_FALSE,
        "route_forward_kernel: tl.load(mask_ptr + token, inside, 0) => "
        "tl.load(mask_ptr + token, inside, 1)": FILLED_WITH_FALSE,
        "route_forward_kernel: counted[:, None] & real[None, :] => counted[:, None]": (
            "sums beyond the last expert are not stored"
        ),
        "tokens_per_chunk: 8192 if has_gate else 4096 => 8193 if has_gate else 4096": "the quotients are the same",
        "tokens_per_chunk: 8192 if has_gate else 4096 => 8192 if has_gate else 4097": "the quotients are the same",
        "route_forward: num_chunks if rule.probability_sum else 0 => num_chunks if rule.probability_sum else 1": UNREAD,
        "block_hidden: 128 if num_experts <= 16 else 64 => 129 if num_experts <= 16 else 64": (
            "the quotients are the same"
        ),
        "block_hidden: 128 if num_experts <= 16 else 64 => 128 if num_experts <= 16 else 65": (
            "the quotients are the same"
        ),
    },
    "route_tiles": {
        "logits_tile: tl.load(x_ptr + row * E + expert[None, :], inside[:, None] & real[None, :], 0.0) => "
        "tl.load(x_ptr + row * E + expert[None, :], inside[:, None] & real[None, :], 1.0)": REPLACED_BEYOND,
        "logits_tile: tl.load(gate_ptrs, real[None, :] & within[:, None], 0.0) => "
        "tl.load(gate_ptrs, real[None, :] & within[:, None], 1.0)": OTHER_FACTOR,
        "logsumexp_rows: tl.where(tl.abs(highest) < float('inf'), highest, 0.0) => "
        "tl.where(tl.abs(highest) < float('inf'), highest, 1.0)": "infinity and NaN stay so with any finite shift",
        "sigmoid: logits >= 0 => logits > 0": "at zero both branches are one half",
    },
    "rows_triton": {
        "gather_rows_kernel: tl.load(source_ptr + token[:, None].to(tl.int64) * width + column[None, :], stored, 0.0)"
        " => tl.load(source_ptr + token[:, None].to(tl.int64) * width + column[None, :], stored, 1.0)": PAST_THE_END,
        "gather_rows_kernel: tl.load(position_ptr + token.to(tl.int64) * K + k, inside, 0) => "
        "tl.load(position_ptr + token.to(tl.int64) * K + k, inside, 1)": PAST_THE_END,
        "combine_rows_kernel: tl.load(position_ptr + choice, inside, 0) => "
        "tl.load(position_ptr + choice, inside, 1)": PAST_THE_END,
        "combine_rows_kernel: tl.load(weights_ptr + choice, taken, 0.0) => "
        "tl.load(weights_ptr + choice, taken, 1.0)": OTHER_FACTOR,
    },
    "swiglu_triton": {
        "swiglu_kernel: tl.load(gate_ptrs, taken, 0.0) => tl.load(gate_ptrs, taken, 1.0)": OTHER_FACTOR,
        "swiglu_kernel: tl.load(gate_ptrs + width, taken, 0.0) => tl.load(gate_ptrs + width, taken, 1.0)": OTHER_FACTOR,
        "swiglu_backward_kernel: inside & (position < tl.load(last_end_ptr)) => "
        "position < tl.load(last_end_ptr)": TAKEN_IS_INSIDE,
        "swiglu_backward_kernel: tl.load(order_ptr + position, inside, 0) => "
        "tl.load(order_ptr + position, inside, 1)": PAST_THE_END,
        "swiglu_backward_kernel: tl.load(weights_ptr + row, taken, 0.0) => "
        "tl.load(weights_ptr + row, taken, 1.0)": OTHER_FACTOR,
        "swiglu_backward_kernel: tl.load(pre_activation_ptr + gate_offset, taken[:, None] & within, 0.0) => "
        "tl.load(pre_activation_ptr + gate_offset, taken[:, None] & within, 1.0)": OTHER_FACTOR,
        "swiglu_backward_kernel: tl.load(pre_activation_ptr + gate_offset + width, taken[:, None] & within, 0.0) => "
        "tl.load(pre_activation_ptr + gate_offset + width, taken[:, None] & within, 1.0)": OTHER_FACTOR,
        "swiglu_backward_kernel: tl.load(grad_ptr + offset * width + column, taken[:, None] & within, 0.0) => "
        "tl.load(grad_ptr + offset * width + column, taken[:, None] & within, 1.0)": OTHER_FACTOR,
    },
    "zero_groups_triton": {
        "zero_empty_groups: min(triton.cdiv(size, BLOCK), PROGRAMS_PER_EXPERT) => "
        "max(triton.cdiv(size, BLOCK), PROGRAMS_PER_EXPERT)": "with more programs some find nothing to do",
    },
}
"""By file, then by the mutant's name."""
