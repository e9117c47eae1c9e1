"""Where a training step's time goes: MoE layers, loss, optimizer, and the rest, which is mostly attention."""

# Shapes: B batch, S sequence, T = B*S tokens, D hidden, V vocabulary.

import copy
import statistics
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from pathmoe.bench.layer import layer_pass, moe_layer
from pathmoe.bench.paired import paired_seconds
from pathmoe.bench.tiny import TinyRun
from pathmoe.losses import language_model_loss
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.optim import build_optimizer


def optimizer_pass(model: PreTrainedModel, run: TinyRun) -> Callable[[], None]:
    """Clip and step a copy of `model`, with gradients that stay."""
    model = copy.deepcopy(model)
    optimizer = build_optimizer(model, run.optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)

    def step() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), run.gradient_clip_val)
        optimizer.step()

    return step


def loss_pass(
    loss: Callable[[Tensor, Tensor], Tensor], model: PreTrainedModel, shape: tuple[int, ...]
) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward from the last hidden states [B, S, D] through the head [V, D] to the loss."""
    hidden_BSD, head_VD = torch.randn(shape, requires_grad=True), model.lm_head.weight
    return lambda: torch.autograd.grad(loss(hidden_BSD, head_VD), [hidden_BSD, head_VD])


def step_shares(
    steps: Mapping[str, Callable[[], None]], ours: PathMoEForCausalLM, peer: PreTrainedModel, run: TinyRun,
    labels_BS: Tensor, rounds: int,
) -> dict[str, float]:  # fmt: skip
    """Share of a step's time of each part, of both models, each the median over rounds that take turns.

    The parts are timed alone: the first MoE layer on random hidden states, times the number of layers; the loss from
    random hidden states; the optimizer with random gradients.

    Args:
        steps: whole steps of "ours" and "peer".
        ours: our model, for its parts.
        peer: transformers' model, for its parts.
        run: the tiny run.
        labels_BS: [B, S] targets.
        rounds: how many.
    """
    shape = (*labels_BS.shape, run.config.hidden_size)
    x_BSD, grad_BSD = torch.randn(shape, requires_grad=True), torch.randn(shape)
    peers_layer = peer.model.layers[0].mlp
    layers = {"ours": moe_layer(ours), "peer": (peers_layer, list(peers_layer.parameters()))}

    def peers_loss(hidden_BSD: Tensor, head_VD: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden_BSD, head_VD).flatten(0, 1), labels_BS.flatten())

    def our_loss(hidden_BSD: Tensor, head_VD: Tensor) -> Tensor:
        return language_model_loss(hidden_BSD, head_VD, labels_BS)

    candidates: dict[str, Callable[[], object]] = {}
    for name, model, loss in (("ours", ours, our_loss), ("peer", peer, peers_loss)):
        candidates[f"{name}, step"] = steps[name]
        candidates[f"{name}, MoE layers"] = layer_pass(*layers[name], x_BSD, grad_BSD)
        candidates[f"{name}, loss"] = loss_pass(loss, model, shape)
        candidates[f"{name}, optimizer"] = optimizer_pass(model, run)
    medians = {name: statistics.median(seconds) for name, seconds in paired_seconds(candidates, rounds).items()}
    shares: dict[str, float] = {}
    for name in ("ours", "peer"):
        parts = {
            "MoE layers": run.config.num_hidden_layers * medians[f"{name}, MoE layers"],
            "loss": medians[f"{name}, loss"],
            "optimizer": medians[f"{name}, optimizer"],
        }
        whole = medians[f"{name}, step"]
        parts["attention and the rest"] = whole - sum(parts.values())
        shares |= {f"share of {name}'s step: {part}": seconds / whole for part, seconds in parts.items()}
    return shares
