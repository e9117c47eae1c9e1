"""Bytes that a training forward keeps for its backward, and the largest that come and go, from the configuration."""

# Symbols: T tokens, N = T*K routed rows, B batch, S sequence, V vocabulary, D hidden, Q width of all keys, H heads,
# E experts, K experts per token, F expert width, W width of a dense feed-forward, P router width.

from dataclasses import dataclass

from pathmoe.config import PathMoEConfig
from pathmoe.losses import LOGITS_AT_A_TIME

_FP32 = 4


@dataclass(frozen=True)
class NumberSizes:
    """Bytes of one number, where the precision decides."""

    residual: int
    """Embeddings, the residual stream and the norms' outputs: those of the weights at hand in the forward."""
    gemm: int
    """What matrix products and attention take."""

    @property
    def casts(self) -> bool:
        """Whether autocast casts what products take, weights included, which then are kept in both dtypes."""
        return self.residual != self.gemm


def number_sizes(precision: str, is_sharded: bool) -> NumberSizes:
    """Sizes under Lightning's `precision`; FSDP2 gathers weights in bf16 under bf16-mixed, so that nothing casts."""
    if precision == "bf16-mixed":
        return NumberSizes(residual=2 if is_sharded else 4, gemm=2)
    size = {"bf16-true": 2, "64-true": 8}.get(precision, 4)
    return NumberSizes(size, size)


@dataclass(frozen=True)
class Forward:
    """One forward on one rank."""

    batch_size: int
    sequence_length: int
    attention: str
    """`model.attn_implementation`."""
    sizes: NumberSizes
    expert_parallel_size: int = 1
    """Ranks that share the experts, to which tokens are sent."""

    @property
    def moves_rows(self) -> bool:
        """Whether they are sent at all."""
        return self.expert_parallel_size > 1

    @property
    def tokens(self) -> int:
        """T."""
        return self.batch_size * self.sequence_length


@dataclass(frozen=True)
class ActivationBytes:
    """What a forward keeps, by where."""

    layers: int
    """All decoder layers, without checkpointing."""
    largest_layer: int
    """The layer with the most."""
    checkpoints: int
    """All layers with checkpointing: what goes into each, and the decisions, which outlive them."""
    outside: int
    """Embeddings, rotary embedding, mask and final norm."""
    loss: int
    """Output head and cross-entropy."""

    def kept(self, checkpointing: bool) -> int:
        """At most at once: with checkpointing, the layer that backward has computed again is the largest."""
        layers = self.checkpoints + self.largest_layer if checkpointing else self.layers
        return layers + self.outside + self.loss


def activation_bytes(config: PathMoEConfig, of: Forward) -> ActivationBytes:
    """What one training forward keeps for its backward.

    Per token, with r and g the bytes of a number in the residual stream and in products, and where autocast casts, a
    copy for each product that takes x (marked c) and the weights in g bytes besides:

        norm                4D of its input in fp32, rD before its weight, 4
        attention           norm, gD (c: 3gD) into q, k, v; norms of q and k: (4 + g)(D + Q) + 8;
                            q, k, v and output: g(2D + 2Q), or 4gD where keys are repeated for the query heads; and
                                sdpa        log-sum-exp 4H, and its float mask gS in each layer
                                eager       probabilities 4HS, and gHS where g is not 4
                                flex, flash log-sum-exp 4H
        feed-forward        norm, gD (c: 2gD), 4gW: gate, its SiLU, up, their product
        experts             norm, gD, pre-activation 2gFK; shared ones as a feed-forward, x of which is there already
        a decision          ids, weights, order and position 16K, log-sum-exp 4; x in r bytes, or in fp32 where the
                            router is not a plain matrix; the logits 4E where the kernel does not compute them, and
                                cosine      4(2P + E) + 8
                                recurrent   36P, as plain PyTorch has it; the fused cell on a GPU keeps less
        outside             token ids 8, cos and sin 2rD/H, the final norm; the mask S in bool (eager: rS)
        loss                gD and, where autocast casts, the head gVD once; in fp32 the gradients of both instead

    x that two of these share counts once. Left out: what does not grow with tokens, but for autocast's weights, such as
    the routers' matrices in fp32; and the padding of F that grouped GEMMs need.

    Where ranks share the experts, the experts' x are the rows that arrive, with ids, weights, order and position of
    their choices: at most one for each choice and for each rank, for a load that is the same on all ranks.

    Source: the operations of `pathmoe.model`, Olmoe's attention and `pathmoe_kernels`, one by one.
    """
    plan, dense = config.sharing, config.first_k_dense_replace
    layers = [
        _attention(config, of) + (_dense(config, of) if layer < dense else _moe(config, of, layer - dense))
        for layer in range(config.num_hidden_layers)
    ]
    decision = 16 * config.num_experts_per_tok + 4
    if _logits_are_kept(config):
        decision += _FP32 * config.num_experts
    if config.router_noise_std:
        decision += _FP32 * config.num_experts
    if config.router_type == "recurrent":
        decision += _FP32 * config.router_dim
    inputs = config.num_hidden_layers * of.sizes.residual * config.hidden_size
    return ActivationBytes(
        layers=sum(layers),
        largest_layer=max(layers),
        checkpoints=of.tokens * (inputs + len(plan.deciding_layers) * decision),
        outside=_outside(config, of),
        loss=_loss(config, of),
    )


def largest_temporaries(config: PathMoEConfig, of: Forward) -> int:
    """Bytes that come and go within one operation, of that with the most: the experts' backward, or the loss.

    The experts' backward holds rows and their gradients [N, D] three times and activations and their gradients [N, F]
    four times; the gradients of weights, which leave it, are not counted. The loss holds a chunk of logits, in g bytes
    and in fp32, and a scratch of the head's gradient; below fp32 also the gradients of head and x. How long a chunk is
    follows torch's rule, of which a GPU takes half.
    """
    size, width = of.sizes.gemm, config.hidden_size
    rows = of.tokens * config.num_experts_per_tok
    experts = rows * size * (3 * width + 4 * config.moe_intermediate_size)
    head = config.vocab_size * width
    loss = _loss_chunk(config, of.tokens) * config.vocab_size * (size + _FP32) + head * size
    if size < _FP32:
        loss += (head + of.tokens * width) * size
    return max(experts, loss)


def _norm(of: Forward, width: int) -> int:
    return _FP32 * width + of.sizes.residual * width + _FP32


def _attention(config: PathMoEConfig, of: Forward) -> int:
    """Of one layer's attention, its norm included."""
    size, casts = of.sizes.gemm, of.sizes.casts
    assert config.num_key_value_heads is not None, "the config fills it in"
    width, heads, keys = config.hidden_size, config.num_attention_heads, config.head_dim * config.num_key_value_heads
    flexes_groups = of.attention == "flex_attention" and heads & (heads - 1) == 0
    kept_keys = keys if flexes_groups or of.attention.startswith("flash") else width
    per_token = _norm(of, width) + size * width * (3 if casts else 1)
    per_token += (_FP32 + size) * (width + keys) + 2 * _FP32
    per_token += size * (2 * width + 2 * kept_keys)
    if of.attention == "eager":
        per_token += heads * of.sequence_length * (_FP32 + (size if size != _FP32 else 0))
    else:
        per_token += _FP32 * heads
    if of.attention == "sdpa":
        per_token += size * of.sequence_length
    return of.tokens * per_token + (size * 2 * width * (width + keys) if casts else 0)


def _feed_forward(config: PathMoEConfig, of: Forward, width: int, x_is_kept: bool) -> int:
    """Of a SwiGLU that all tokens pass through."""
    size, casts = of.sizes.gemm, of.sizes.casts
    copies_of_x = 2 if casts else int(not x_is_kept)
    weights = 3 * config.hidden_size * width * size if casts else 0
    return of.tokens * size * (copies_of_x * config.hidden_size + 4 * width) + weights


def _dense(config: PathMoEConfig, of: Forward) -> int:
    """Of a leading dense layer's feed-forward, its norm included."""
    assert config.intermediate_size is not None, "the config fills it in"
    norm = of.tokens * _norm(of, config.hidden_size)
    return norm + _feed_forward(config, of, config.intermediate_size, x_is_kept=False)


def _moe(config: PathMoEConfig, of: Forward, moe_layer: int) -> int:
    """Of one MoE layer's norm, decision, experts and shared experts."""
    size, casts = of.sizes.gemm, of.sizes.casts
    width, choices, expert_width = config.hidden_size, config.num_experts_per_tok, config.moe_intermediate_size
    per_token = _norm(of, width) + 2 * size * expert_width * choices
    arriving = min(choices, of.expert_parallel_size)
    per_token += arriving * size * width + (arriving * 16 * choices if of.moves_rows else 0)
    if config.sharing.decider_of_layer[moe_layer] == moe_layer:
        per_token += _decision(config, of)
    whole = of.tokens * per_token
    if casts:
        whole += 3 * config.num_experts * width * expert_width * size
    if config.n_shared_experts:
        whole += _feed_forward(config, of, config.n_shared_experts * expert_width, x_is_kept=not of.moves_rows)
    return whole


def _decision(config: PathMoEConfig, of: Forward) -> int:
    """Per token, of a layer that decides: what the router keeps beside the x that experts keep, and the choice."""
    experts, router_dim = config.num_experts, config.router_dim
    kept = 16 * config.num_experts_per_tok + 4
    x_size = _FP32 if _logits_are_kept(config) or config.router_rank else of.sizes.residual
    if x_size != of.sizes.gemm or of.moves_rows:
        kept += x_size * config.hidden_size
    if _logits_are_kept(config):
        kept += _FP32 * experts
    if config.router_type == "cosine":
        kept += _FP32 * (2 * router_dim + experts) + 2 * _FP32
    elif config.router_type == "recurrent":
        kept += _FP32 * 9 * router_dim
    return kept


def _logits_are_kept(config: PathMoEConfig) -> bool:
    """Whether logits are computed before the routing kernel, which keeps them to itself otherwise."""
    return config.router_type != "linear" or config.router_bias or config.router_noise_std > 0


def _outside(config: PathMoEConfig, of: Forward) -> int:
    per_token = 8 + 2 * of.sizes.residual * config.head_dim + _norm(of, config.hidden_size)
    if of.attention == "sdpa":
        per_token += of.sequence_length
    elif of.attention == "eager":
        per_token += of.sizes.residual * of.sequence_length
    return of.tokens * per_token


def _loss(config: PathMoEConfig, of: Forward) -> int:
    size, head = of.sizes.gemm, config.vocab_size * config.hidden_size
    keeps_head = of.sizes.casts or size >= _FP32
    return size * (of.tokens * config.hidden_size + (head if keeps_head else 0))


def _loss_chunk(config: PathMoEConfig, tokens: int) -> int:
    """Tokens whose logits are there at a time, as `pathmoe.losses` asks torch for."""
    if tokens * config.hidden_size // 2 < LOGITS_AT_A_TIME:
        return min(tokens, max(1, LOGITS_AT_A_TIME // config.vocab_size))
    per_chunk = -(-tokens // -(-config.vocab_size // config.hidden_size))
    return min(tokens, 1 << (per_chunk - 1).bit_length())
