"""Parameters, FLOPs and bytes of a model, from its configuration alone."""

# Symbols: D hidden, S sequence, E experts, K experts per token, F expert width, P router width, R rank of a correction.

from dataclasses import dataclass
from typing import Literal

import torch

from pathmoe.config import PathMoEConfig


@dataclass(frozen=True)
class ParameterCounts:
    """Number of parameters by part, each counted once however many layers share it; buffers are none."""

    embeddings: int
    """Embedding and, unless tied to it, output head."""
    attention: int
    """Projections with their biases, and the norms of queries and keys."""
    norms: int
    """The norms before attention, before the feed-forward, and after the last layer."""
    dense: int
    """Feed-forwards of the leading dense layers."""
    routed_experts: int
    """All routed experts."""
    active_experts: int
    """The K routed experts per layer that one token passes through."""
    shared_experts: int
    """The experts that every token passes through."""
    routers: int
    """Routers, their per-layer corrections, and the recurrent routers' cell."""
    frozen: int
    """Those of the above that are not trained."""
    hidden_matrices: int
    """Those of the above that Muon takes: matrices of attention, feed-forwards and experts."""

    @property
    def total(self) -> int:
        """All parameters."""
        outside_experts = (
            self.embeddings + self.attention + self.norms + self.dense + self.shared_experts + self.routers
        )
        return outside_experts + self.routed_experts

    @property
    def active(self) -> int:
        """Parameters that one token's forward touches, the whole embedding included (as the PathMoE paper counts)."""
        return self.total - self.routed_experts + self.active_experts

    @property
    def trainable(self) -> int:
        """Parameters that get a gradient."""
        return self.total - self.frozen


@dataclass(frozen=True)
class FlopsPerToken:
    """Floating-point operations of the model's own mathematics, a multiply-add being two.

    Element-wise work, norms, softmax, the choice of experts, and what activation checkpointing computes again are left
    out, as is usual for model FLOPs utilisation.
    """

    gemms: int
    """Matrix products with weights in the forward."""
    attention: int
    """Products of queries with keys, and of probabilities with values, in the forward."""

    @property
    def forward(self) -> int:
        """Of one forward."""
        return self.gemms + self.attention

    @property
    def training(self) -> int:
        """Of one forward and backward; a backward is two forwards: gradients of the inputs and of the weights."""
        return 3 * self.forward


@dataclass(frozen=True)
class TrainingBytes:
    """Bytes that training holds through a whole step, before any sharding; activations come on top."""

    weights: int
    gradients: int
    optimizer_state: int

    @property
    def total(self) -> int:
        """All three."""
        return self.weights + self.gradients + self.optimizer_state


def parameter_counts(config: PathMoEConfig) -> ParameterCounts:
    """Parameters of the model that `config` builds."""
    width, layers, moe_layers = config.hidden_size, config.num_hidden_layers, config.num_moe_layers
    attention_matrices = layers * _attention_matrices(config)
    attention_vectors = layers * (width + _key_width(config))
    if config.attention_bias:
        attention_vectors += layers * (2 * width + 2 * _key_width(config))
    dense = _dense_weights(config)
    expert = 3 * width * config.moe_intermediate_size
    routed, shared = moe_layers * config.num_experts * expert, moe_layers * config.n_shared_experts * expert
    routers = _router_parameters(config)
    return ParameterCounts(
        embeddings=config.vocab_size * width * (1 if config.tie_word_embeddings else 2),
        attention=attention_matrices + attention_vectors,
        norms=(2 * layers + 1) * width,
        dense=dense,
        routed_experts=routed,
        active_experts=moe_layers * config.num_experts_per_tok * expert,
        shared_experts=shared,
        routers=routers,
        frozen=routers if config.router_frozen else 0,
        hidden_matrices=attention_matrices + dense + routed + shared,
    )


def flops_per_token(config: PathMoEConfig, sequence_length: int) -> FlopsPerToken:
    """FLOPs per token at `sequence_length` tokens per sequence.

    gemms = 2 * (weights of the matrices that one token is multiplied with, counted at each use: a shared router once
    per layer that decides with it, merged with its low-rank correction; the output head but not the embedding look-up).
    attention = 2 * 2 * D * (S + 1) / 2 per layer: a token attends to (S + 1) / 2 on average, itself included. Sequences
    of several documents attend to less; the figure stays that of one.
    """
    width, layers = config.hidden_size, config.num_hidden_layers
    experts_of_token = config.num_experts_per_tok + config.n_shared_experts
    weights = (
        layers * _attention_matrices(config)
        + _dense_weights(config)
        + config.num_moe_layers * experts_of_token * 3 * width * config.moe_intermediate_size
        + len(config.sharing.deciding_layers) * _router_weights_per_use(config)
        + config.vocab_size * width
    )
    return FlopsPerToken(gemms=2 * weights, attention=layers * 2 * width * (sequence_length + 1))


def training_bytes(
    config: PathMoEConfig,
    optimizer: Literal["adamw", "muon"] = "adamw",
    weight_dtype: torch.dtype = torch.float32,
    state_dtype: torch.dtype = torch.float32,
) -> TrainingBytes:
    """Bytes of weights, gradients (in the weights' dtype) and optimizer state.

    AdamW keeps two numbers per trainable parameter and Muon one; under "muon" AdamW still takes what is no hidden
    matrix. Step counters are left out.
    """
    counts = parameter_counts(config)
    states = 2 * counts.trainable - (counts.hidden_matrices if optimizer == "muon" else 0)
    return TrainingBytes(
        weights=counts.total * weight_dtype.itemsize,
        gradients=counts.trainable * weight_dtype.itemsize,
        optimizer_state=states * state_dtype.itemsize,
    )


def _key_width(config: PathMoEConfig) -> int:
    assert config.num_key_value_heads is not None, "the config fills it in"
    return config.head_dim * config.num_key_value_heads


def _attention_matrices(config: PathMoEConfig) -> int:
    """Weights of one layer's four projections."""
    return 2 * config.hidden_size * (config.hidden_size + _key_width(config))


def _dense_weights(config: PathMoEConfig) -> int:
    """Weights of the leading dense layers' feed-forwards."""
    assert config.intermediate_size is not None, "the config fills it in"
    return config.first_k_dense_replace * 3 * config.hidden_size * config.intermediate_size


def _router_parameters(config: PathMoEConfig) -> int:
    plan, width, experts = config.sharing, config.hidden_size, config.num_experts
    router_dim, rank = config.router_dim, config.router_rank
    if config.router_type == "cosine":
        bias_and_scale = router_dim + 1
        return plan.num_routers * (router_dim * (width + experts) + bias_and_scale)
    if config.router_type == "recurrent":
        cell = 3 * (2 * router_dim * router_dim + 2 * router_dim)
        return plan.num_routers * router_dim * (width + experts) + cell
    corrections = len(plan.deciding_layers) * rank * (experts + width)
    return plan.num_routers * experts * (width + config.router_bias) + corrections


def _router_weights_per_use(config: PathMoEConfig) -> int:
    """Weights of the matrices that one decision multiplies a token with."""
    router_dim, experts = config.router_dim, config.num_experts
    if config.router_type == "linear":
        return config.hidden_size * experts
    cell = 6 * router_dim * router_dim if config.router_type == "recurrent" else 0
    return router_dim * (config.hidden_size + experts) + cell
