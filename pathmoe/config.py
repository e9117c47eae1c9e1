"""The model's configuration: the YAML schema, the `config.json` and the validator in one strict dataclass."""

import difflib
import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args, get_origin

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pathmoe.sharing import SharingPlan, sharing_plan

# What transformers itself passes beside the fields: through from_pretrained, Auto classes, and its own to_dict.
_TRANSFORMERS_KEYWORDS = {
    "attn_implementation", "experts_implementation", "output_attentions", "name_or_path", "model_type", "torch_dtype",
    "num_labels", "auto_map", "per_layer_config", "rope_theta", "rope_scaling", "_attn_implementation_autoset",
    "_commit_hash", "_name_or_path", "quantization_config",
}  # fmt: skip

_DTYPES = ("float32", "bfloat16", "float16", "float64")


def _one_line_type_errors(cls: type["PathMoEConfig"]) -> type["PathMoEConfig"]:
    """Make a strict dataclass say what a key takes in one line of a ValueError, and take 1 for 1.0."""
    types = {field.name: field.type for field in fields(cls)}
    strict_setattr = cls.__setattr__

    def set_field(self: "PathMoEConfig", name: str, value: Any) -> None:
        expected = types.get(name)
        choices = get_args(expected) or (expected,)
        if type(value) is int and float in choices and int not in choices:
            value = float(value)
        try:
            strict_setattr(self, name, value)
        except StrictDataclassFieldValidationError as error:
            allowed = [choice.__name__ if isinstance(choice, type) else str(choice) for choice in choices]
            allowed = ["null" if choice == "NoneType" else choice for choice in allowed]
            kind = "one of" if get_origin(expected) is Literal else "of type"
            raise ValueError(
                f"model.config.{name} ({value!r}) must be {kind} {', '.join(allowed)}; change it"
            ) from error

    cls.__setattr__ = set_field  # type: ignore[method-assign, assignment]  # strict sets it in the same way
    return cls


@_one_line_type_errors
@strict
@dataclass(repr=False, kw_only=True)
class PathMoEConfig(PreTrainedConfig):
    """Shape, routing and sharing of a PathMoE language model.

    Field names are those of transformers' MoE models where it has one. An unknown key is an error.

    Raises:
        ValueError: a value or a combination that no model can be built from; the message names the key and the remedy.
    """

    model_type: ClassVar[str] = "pathmoe"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {"num_local_experts": "num_experts"}

    vocab_size: int = 4096
    """Rows of the embedding; at least the tokenizer's size."""
    hidden_size: int = 256
    """Width D of the residual stream."""
    num_hidden_layers: int = 8
    """Decoder layers, dense ones included."""
    num_attention_heads: int = 4
    """Query heads."""
    num_key_value_heads: int | None = None
    """Key and value heads (grouped-query attention); as many as query heads when unset."""
    intermediate_size: int | None = None
    """Width of a dense layer's SwiGLU; that of the active experts together when unset."""
    moe_intermediate_size: int = 128
    """Width F of one expert's SwiGLU."""
    num_experts: int = 16
    """Routed experts E in each MoE layer."""
    num_experts_per_tok: int = 4
    """Experts K that each token is sent to."""
    n_shared_experts: int = 0
    """Experts that every token passes through beside its routed ones."""
    first_k_dense_replace: int = 0
    """Leading layers with a dense feed-forward instead of experts."""

    layers_per_router: int | list[int] | None = 1
    """Consecutive MoE layers that share one router's parameters (1: independent routers), or a list of block lengths;
    null for all layers."""
    layers_per_decision: int | list[int] | None = 1
    """Consecutive MoE layers that share one decision, made by the first of them, or a list of block lengths; null for
    all layers."""
    router_type: Literal["linear", "cosine", "recurrent"] = "linear"
    """How router logits come from the hidden state: a matrix, a cosine in a low dimension, or a GRU along depth."""
    router_rank: int = 0
    """Rank r of a per-layer correction A_l B_l to a linear router's matrix; 0 for none."""
    router_dim: int = 64
    """Width of the cosine or recurrent router's projection."""
    router_bias: bool = False
    """Whether a linear router adds a learnt bias to its logits."""
    router_frozen: bool = False
    """Whether router parameters stay as initialised."""
    scoring_func: Literal["softmax", "sigmoid"] = "softmax"
    """What turns router logits into scores."""
    norm_topk_prob: bool = True
    """Whether the chosen experts' weights are scaled to sum to one; with one expert per token the weight is then
    constant and the router gets no gradient from the cross-entropy, so that training refuses it."""
    routed_scaling_factor: float = 1.0
    """Factor on the chosen experts' weights, after any normalisation."""
    router_noise_std: float = 0.0
    """Standard deviation of Gaussian noise on router logits in training."""
    router_aux_loss_coef: float = 0.0
    """Coefficient of the Switch load-balancing loss, averaged over deciding layers; 0 for none."""
    router_aux_loss_scope: Literal["micro_batch", "global_batch"] = "micro_batch"
    """Over which tokens that loss counts the experts' load f, which sums to num_experts_per_tok over the experts: those
    of the micro-batch, or of all ranks and of all micro-batches of the optimizer step so far (not of those to come)."""
    router_z_loss_coef: float = 0.0
    """Coefficient of the squared log-sum-exp of router logits; 0 for none."""
    router_bias_update_rate: float = 0.0
    """Step of the selection bias that balances load without a loss, per optimizer step; 0 for none."""
    force_uniform_routing: bool = False
    """Send tokens to experts in turn instead of by score: equal load, for benchmarks only."""

    max_position_embeddings: int = 4096
    """Longest sequence that the model is meant for."""
    rms_norm_eps: float = 1e-5
    """Epsilon of the RMS norms."""
    attention_bias: bool = False
    """Whether attention projections have biases."""
    clip_qkv: float | None = None
    """Bound on the absolute value of queries, keys and values; unset for none."""
    initializer_range: float = 0.02
    """Standard deviation of initial weights."""
    rope_parameters: dict[str, Any] | None = None
    """Rotary embedding as transformers takes it, such as {rope_type: default, rope_theta: 10000}."""
    tie_word_embeddings: bool = False
    """Whether the output head is the embedding matrix."""
    use_cache: bool = True
    """Whether generation keeps keys and values."""
    pad_token_id: int | None = None
    """Padding token."""
    bos_token_id: int | None = None
    """Beginning-of-document token."""
    eos_token_id: int | list[int] | None = None
    """End-of-document token or tokens."""
    output_router_logits: bool = False
    """Whether the model returns every layer's router logits."""

    # OlmoeAttention reads it; dropout would need a random state that a resumed run does not have.
    attention_dropout: ClassVar[float] = 0.0
    # The expert kernels are SwiGLU; the dense feed-forward, which is transformers', reads it here.
    hidden_act: ClassVar[str] = "silu"

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what follows from other fields, and refuse what does not fit together."""
        self._refuse_unknown(kwargs)
        self._check_dtype(kwargs)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.intermediate_size is None:
            self.intermediate_size = self.moe_intermediate_size * (self.num_experts_per_tok + self.n_shared_experts)
        super().__post_init__(**kwargs)
        self._check_sizes()
        self._check_rope()
        self._check_token_ids()
        self._check_routing()
        _ = self.sharing

    @classmethod
    def _refuse_unknown(cls, kwargs: dict[str, Any]) -> None:
        # transformers would keep any keyword as an attribute, so that a typo trains the default.
        known = [field.name for field in fields(cls)]
        for name in kwargs:
            if name not in _TRANSFORMERS_KEYWORDS:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}?" if close else "see PathMoEConfig for the known ones"
                raise ValueError(f"model.config.{name} ({kwargs[name]!r}) is not a known key; {hint}")

    def _check_dtype(self, kwargs: dict[str, Any]) -> None:
        # transformers looks any name up in torch.
        name = self.dtype or kwargs.get("torch_dtype")
        if isinstance(name, str) and name not in _DTYPES:
            raise ValueError(f"model.config.dtype ({name}) must be one of {', '.join(_DTYPES)}, null; change it")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers' own, but keyword arguments that are fields are checked together with the rest."""
        for name in kwargs.keys() & ({field.name for field in fields(cls)} - {"dtype"}):
            config_dict = {**config_dict, name: kwargs.pop(name)}
        return super().from_dict(config_dict, **kwargs)

    @property
    def sharing(self) -> SharingPlan:
        """Which router serves which MoE layer, and which layer decides for which."""
        return sharing_plan(self.num_moe_layers, self.layers_per_router, self.layers_per_decision)

    @property
    def num_moe_layers(self) -> int:
        """Decoder layers that have experts."""
        return self.num_hidden_layers - self.first_k_dense_replace

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def _check_sizes(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "moe_intermediate_size",
                     "num_experts", "num_experts_per_tok", "router_dim", "intermediate_size",
                     "num_key_value_heads", "max_position_embeddings"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"model.config.{name} ({getattr(self, name)}) must be at least 1; raise it")
        for name in ("n_shared_experts", "first_k_dense_replace", "router_rank", "router_noise_std",
                     "router_aux_loss_coef", "router_z_loss_coef", "router_bias_update_rate"):  # fmt: skip
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"model.config.{name} ({getattr(self, name)}) must be finite and not negative; use 0 for none"
                )
        for name in ("rms_norm_eps", "initializer_range", "routed_scaling_factor", "clip_qkv"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                remedy = "lower it" if value > 0 else "raise it"
                raise ValueError(f"model.config.{name} ({value}) must be finite and above 0; {remedy}")
        if self.first_k_dense_replace >= self.num_hidden_layers:
            raise ValueError(
                f"model.config.first_k_dense_replace ({self.first_k_dense_replace}) must be below "
                f"model.config.num_hidden_layers ({self.num_hidden_layers}); leave at least one MoE layer"
            )
        for name, divisor in (("hidden_size", "num_attention_heads"), ("num_attention_heads", "num_key_value_heads")):
            if getattr(self, name) % getattr(self, divisor):
                raise ValueError(
                    f"model.config.{name} ({getattr(self, name)}) must be a multiple of "
                    f"model.config.{divisor} ({getattr(self, divisor)}); change one of them"
                )
        if self.head_dim % 2:
            raise ValueError(
                f"model.config.hidden_size ({self.hidden_size}) must give heads of even width for rotary embedding, "
                f"not {self.head_dim}; change it or model.config.num_attention_heads ({self.num_attention_heads})"
            )

    def _check_rope(self) -> None:
        rope = self.rope_parameters or {}
        types = ("default", *ROPE_INIT_FUNCTIONS)
        if rope.get("rope_type") not in types:
            raise ValueError(
                f"model.config.rope_parameters.rope_type ({rope.get('rope_type')}) must be one of {', '.join(types)}; "
                "change it"
            )
        # transformers only warns of these, and knows the keys of the other types better than we do.
        unknown = rope.keys() - {"rope_type", "rope_theta"}
        if rope["rope_type"] == "default" and unknown:
            name = min(unknown)
            raise ValueError(
                f"model.config.rope_parameters.{name} ({rope[name]!r}) is not a known key; "
                "the default rope_type takes rope_theta"
            )
        for name in rope.keys() - {"rope_type"}:
            if isinstance(rope[name], str):
                raise ValueError(f"model.config.rope_parameters.{name} ({rope[name]!r}) must be a number; change it")
        try:
            self.validate_rope()
        except KeyError as error:
            raise ValueError(f"model.config.rope_parameters ({rope}) must be complete; {error.args[0]}") from error

    def _check_token_ids(self) -> None:
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            ids = [] if value is None else value if isinstance(value, list) else [value]
            if any(not 0 <= token_id < self.vocab_size for token_id in ids):
                raise ValueError(
                    f"model.config.{name} ({value}) must be from 0 to below model.config.vocab_size "
                    f"({self.vocab_size}); change one of them"
                )

    def _check_routing(self) -> None:
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"model.config.num_experts_per_tok ({self.num_experts_per_tok}) must be at most "
                f"model.config.num_experts ({self.num_experts}); lower the first or raise the second"
            )
        if self.router_rank and self.router_type != "linear":
            raise ValueError(
                f"model.config.router_rank ({self.router_rank}) must be 0 with model.config.router_type "
                f"({self.router_type}); only a linear router takes a low-rank correction"
            )
        if self.router_bias and self.router_type != "linear":
            raise ValueError(
                f"model.config.router_bias (true) must be false with model.config.router_type ({self.router_type}); "
                "only a linear router takes a bias"
            )
