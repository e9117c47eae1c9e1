"""The language model: a transformers model whose layers are handed their routers."""

# Shapes: B batch, S sequence, T = B*S tokens, D hidden, E experts, K experts per token, L deciding layers.

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.olmoe.modeling_olmoe import OlmoeAttention, OlmoeRMSNorm, OlmoeRotaryEmbedding
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeMLP
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from pathmoe.attention_mask import attention_bounds
from pathmoe.balancing import expert_load, sum_over_ranks
from pathmoe.config import PathMoEConfig
from pathmoe.experts import Experts
from pathmoe.losses import language_model_loss, routing_losses
from pathmoe.moe import MoELayer
from pathmoe.noise import layer_noise
from pathmoe.routers import LayerRouter, Router, build_router
from pathmoe.routing import Routing


@dataclass
class PathMoEModelOutput(MoeModelOutputWithPast):
    """What the decoder returns: transformers' fields and one `Routing` per MoE layer."""

    routings: tuple[Routing, ...] | None = None


@dataclass
class PathMoECausalLMOutput(MoeCausalLMOutputWithPast):
    """What the language model returns: transformers' fields, the parts of the loss, and the routings."""

    cross_entropy: Tensor | None = None
    """Next-token cross-entropy, without the routing losses."""
    z_loss: Tensor | None = None
    """Mean z-loss of the deciding layers, before its coefficient."""
    expert_load: Tensor | None = None
    """Tokens per expert [deciding layers, E] of this batch, without padding."""
    balance_load: Tensor | None = None
    """The load that the balance loss saw: with a global batch, of all ranks and of earlier micro-batches too."""
    routings: tuple[Routing, ...] | None = None
    """One per MoE layer; layers that share a decision hold the same one."""


class DecoderLayer(GradientCheckpointingLayer):
    """Attention, then experts or a dense feed-forward, each behind an RMS norm and around a residual."""

    def __init__(self, config: PathMoEConfig, layer_idx: int, decides: bool) -> None:
        super().__init__()
        self.is_moe = layer_idx >= config.first_k_dense_replace
        self.self_attn = OlmoeAttention(config, layer_idx)  # type: ignore[arg-type]  # reads only what ours has too
        self.mlp = MoELayer(config, decides) if self.is_moe else Qwen2MoeMLP(config)
        self.input_layernorm = OlmoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = OlmoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        previous: Routing | None = None,
        noise_TE: Tensor | None = None,
        router: LayerRouter | None = None,
        token_mask_T: Tensor | None = None,
        keep_logits: bool = False,
        **attention_kwargs: Any,
    ) -> tuple[Tensor, Routing | None]:
        """Hidden states [B, S, D] after the layer, and the routing that holds from here on."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **attention_kwargs)
        hidden_states = hidden_states + attended
        normalised = self.post_attention_layernorm(hidden_states)
        if not self.is_moe:
            return hidden_states + self.mlp(normalised), previous
        expert_output, routing = self.mlp(normalised, router, previous, noise_TE, token_mask_T, keep_logits)
        return hidden_states + expert_output, routing


class PathMoEPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of the family."""

    config_class = PathMoEConfig
    config: PathMoEConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    # Steps of a selection bias are far below bf16's spacing.
    _keep_in_fp32_modules_strict = ["selection_bias_E"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "router_logits": OutputRecorder(Router, index=0),
        "hidden_states": OutputRecorder(DecoderLayer, index=0),
        "attentions": OutputRecorder(OlmoeAttention, index=1),
    }

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """Our kernels unless another implementation is asked for."""
        return super().get_correct_experts_implementation(requested_experts or "pathmoe")

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As transformers'; its loading makes every parameter anew, so that frozen ones are frozen again."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.freeze_routers()
        return loaded

    def freeze_routers(self) -> None:
        """Take the routers out of training where `router_frozen` says so."""
        if self.config.router_frozen:
            for module in self.modules():
                if isinstance(module, Router | nn.GRUCell):
                    module.requires_grad_(False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, Experts):
            init.normal_(module.gate_up_proj, mean=0.0, std=std)
            init.normal_(module.down_proj, mean=0.0, std=std)
        elif isinstance(module, Router):
            module.reset_parameters(std)
        elif isinstance(module, nn.GRUCell):
            # PyTorch's own range for recurrent cells, which transformers leaves alone on the meta device.
            bound = module.hidden_size**-0.5
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)
        elif isinstance(module, MoELayer) and module.selection_bias_E is not None:
            init.zeros_(module.selection_bias_E)


class PathMoEModel(PathMoEPreTrainedModel):
    """The decoder: embeddings, layers, final norm, and the routers that the layers share."""

    def __init__(self, config: PathMoEConfig) -> None:
        super().__init__(config)
        self.sharing = plan = config.sharing
        dense = config.first_k_dense_replace
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.routers = nn.ModuleList(build_router(config, len(layers)) for layers in plan.deciders_of_router)
        self.router_cell = (
            nn.GRUCell(config.router_dim, config.router_dim) if config.router_type == "recurrent" else None
        )
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, layer - dense in plan.deciding_layers)
            for layer in range(config.num_hidden_layers)
        )
        self.norm = OlmoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = OlmoeRotaryEmbedding(config)  # type: ignore[arg-type]  # reads only what ours has too
        self.gradient_checkpointing = False
        self.post_init()
        self.freeze_routers()

    def router_of(self, moe_layer: int) -> LayerRouter | None:
        """What MoE layer `moe_layer` decides with; None for a layer that follows another's decision."""
        if self.sharing.decider_of_layer[moe_layer] != moe_layer:
            return None
        router: Any = self.routers[self.sharing.router_of_layer[moe_layer]]
        return LayerRouter(router, self.sharing.slot_of_layer[moe_layer], self.router_cell)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        noise_seed: int | None = None,
        keep_router_logits: bool = False,
        **kwargs: Any,
    ) -> PathMoEModelOutput:
        """Hidden states after the final norm [B, S, D], and the routing of each MoE layer.

        Args:
            input_ids: [B, S] token ids (or `inputs_embeds` [B, S, D], not both).
            attention_mask: [B, past + S], 0 for padding; without it, positions that restart bound documents.
            position_ids: [B, S].
            past_key_values: keys and values of earlier tokens.
            inputs_embeds: [B, S, D].
            use_cache: whether to return keys and values.
            noise_seed: seed of this forward's router noise (training, `router_noise_std` > 0); torch's default
                generator when None.
            keep_router_logits: have the routings hold their logits, as `output_router_logits` does too, which besides
                leaves the hooks of transformers' recorder on every layer, in training also.
            **kwargs: for the attention implementation.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds must be given")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(hidden_states.shape[1], device=hidden_states.device) + past_length)[None]
        # Before a cache is made: beside one, transformers would not look for documents in the positions.
        bounds = attention_bounds(self.config, hidden_states, attention_mask, past_key_values, position_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        attention = {
            **bounds,
            "position_embeddings": self.rotary_emb(hidden_states, position_ids),
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            **kwargs,
        }

        decide_as = {
            "token_mask_T": _token_mask(attention_mask, hidden_states.shape[1]),
            "keep_logits": keep_router_logits or kwargs.get("output_router_logits", self.config.output_router_logits),
        }
        routing: Routing | None = None
        routings = []
        for layer_idx, layer in enumerate(self.layers):
            moe_layer = layer_idx - self.config.first_k_dense_replace
            router, noise_TE = None, None
            if moe_layer >= 0 and (router := self.router_of(moe_layer)) is not None:
                noise_TE = self._noise(hidden_states, noise_seed, moe_layer)
            hidden_states, routing = layer(hidden_states, routing, noise_TE, router=router, **decide_as, **attention)
            if moe_layer >= 0:
                routings.append(routing)
        return PathMoEModelOutput(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values, routings=tuple(routings)
        )

    def _noise(self, hidden_states: Tensor, noise_seed: int | None, moe_layer: int) -> Tensor | None:
        if not self.training or self.config.router_noise_std == 0:
            return None
        num_tokens = hidden_states.shape[0] * hidden_states.shape[1]
        shape = (num_tokens, self.config.num_experts)
        return layer_noise(shape, self.config.router_noise_std, noise_seed, moe_layer, hidden_states.device)


class PathMoEForCausalLM(PathMoEPreTrainedModel, GenerationMixin):
    """The decoder with an output head, a loss, and generation."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: PathMoEConfig) -> None:
        super().__init__(config)
        self.model = PathMoEModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        earlier_load: Tensor | None = None,
        return_logits: bool = True,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> PathMoECausalLMOutput:
        """Logits, and with labels the loss: cross-entropy plus the balance and z-losses that the config asks for.

        Args:
            input_ids: [B, S] token ids.
            attention_mask: [B, past + S], 0 for padding, which is never counted as expert load.
            position_ids: [B, S]; restarts bound documents. `generate` looks for the name here, to skip padding.
            labels: [B, S] token ids as in `input_ids`, shifted here; -100 is no target.
            shift_labels: [B, S] targets already aligned with `input_ids`, instead of `labels`.
            num_items_in_batch: divisor of the summed cross-entropy; the number of targets when None.
            earlier_load: `balance_load` of the step's previous micro-batch, for `router_aux_loss_scope: global_batch`.
            return_logits: False leaves the logits out and computes the loss in chunks, with far less memory.
            logits_to_keep: how many last positions, or which ones, get logits.
            **kwargs: for the decoder (past_key_values, noise_seed, keep_router_logits, ...).
        """
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs)
        hidden_states = outputs.last_hidden_state
        if labels is not None:
            shift_labels = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]

        logits = self.lm_head(slice_logits_to_keep(hidden_states, logits_to_keep)) if return_logits else None
        loss = cross_entropy = aux_loss = z_loss = None
        mask_T = _token_mask(attention_mask, hidden_states.shape[1])
        deciding = [outputs.routings[layer] for layer in self.model.sharing.deciding_layers]
        load_LE = balance_load_LE = expert_load(deciding)
        if shift_labels is not None:
            full_logits = logits if logits is not None and logits.shape[1] == hidden_states.shape[1] else None
            loss = cross_entropy = language_model_loss(
                hidden_states, self.lm_head.weight, shift_labels, num_items_in_batch, full_logits
            )
            if (
                self.training
                and self.config.router_aux_loss_coef
                and self.config.router_aux_loss_scope == "global_batch"
            ):
                balance_load_LE = sum_over_ranks(load_LE) + (0 if earlier_load is None else earlier_load)
            aux_loss, z_loss = routing_losses(deciding, self.config, mask_T, balance_load_LE)
            if aux_loss is not None:
                loss = loss + self.config.router_aux_loss_coef * aux_loss
            if z_loss is not None:
                loss = loss + self.config.router_z_loss_coef * z_loss
        return PathMoECausalLMOutput(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
            cross_entropy=cross_entropy,
            z_loss=z_loss,
            expert_load=load_LE,
            balance_load=balance_load_LE,
            routings=outputs.routings,
        )


def _token_mask(attention_mask: Any, length: int) -> Tensor | None:
    """Which of the last `length` positions hold tokens, [T]; a mask of pairs, as a static cache needs, says nothing."""
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2:
        return None
    return attention_mask[:, -length:].reshape(-1).bool()
