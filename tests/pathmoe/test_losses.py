"""The loss in chunks against plain cross-entropy, and the routing losses against sums by hand."""

# Shapes: B batch, S sequence, T = B*S tokens, D hidden, V vocabulary, E experts, L deciding layers.

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func

from pathmoe import PathMoEConfig
from pathmoe.balancing import switch_loss, z_loss
from pathmoe.losses import language_model_loss, routing_losses
from pathmoe.routing import Routing, decide

# Torch halves its chunks of tokens until their logits are as large as the hidden states: V far above D is needed.
B, S, D, V = 4, 64, 16, 500


@pytest.fixture(autouse=True, params=["torch's chunks", "our chunks"])
def _several_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    # By default these few tokens would be one chunk; x is never smaller than 1, which leaves the choice to torch.
    monkeypatch.setattr("pathmoe.losses.LOGITS_AT_A_TIME", 1 if request.param == "torch's chunks" else 24 * V)


def inputs(masked: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    hidden_BSD = torch.randn(B, S, D, requires_grad=True)
    head_VD = torch.randn(V, D, requires_grad=True)
    labels_BS = torch.randint(0, V, (B, S)).masked_fill(torch.rand(B, S) < masked, -100)
    return hidden_BSD, head_VD, labels_BS


def exact_loss(hidden_BSD: Tensor, head_VD: Tensor, labels_BS: Tensor, num_items: int | None = None) -> Tensor:
    """Minus the mean log-probability of the targets, in fp64."""
    log_probabilities_TV = (hidden_BSD.double() @ head_VD.double().T).log_softmax(dim=-1).flatten(0, 1)
    targets = [(t, label) for t, label in enumerate(labels_BS.flatten().tolist()) if label != -100]
    total = torch.stack([log_probabilities_TV[t, label] for t, label in targets]).sum()
    return -total / (len(targets) if num_items is None else num_items)


def value_and_gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("in_chunks", [True, False])
@pytest.mark.parametrize("num_items", [None, 17, torch.tensor(17)])
def test_equals_plain_cross_entropy(in_chunks: bool, num_items: int | Tensor | None) -> None:
    hidden_BSD, head_VD, labels_BS = inputs()
    logits_BSV = None if in_chunks else hidden_BSD @ head_VD.T
    loss = language_model_loss(hidden_BSD, head_VD, labels_BS, num_items, logits_BSV)
    assert loss.dtype == torch.float32
    exact = exact_loss(hidden_BSD, head_VD, labels_BS, None if num_items is None else 17)
    for got, want in zip(
        value_and_gradients(loss, hidden_BSD, head_VD), value_and_gradients(exact, hidden_BSD, head_VD), strict=True
    ):
        torch.testing.assert_close(got.double(), want.double(), atol=2e-6, rtol=2e-5)


class OpDtypes(TorchDispatchMode):
    """Records the dtypes of the hidden states and the head that torch's op is handed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "linear_cross_entropy" in func.__name__:
            self.seen = [tensor.dtype for tensor in args[:2]]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_gemms_are_coarse_and_the_sum_is_not(dtype: torch.dtype) -> None:
    hidden_BSD, head_VD, labels_BS = inputs()
    leaves = (hidden_BSD, head_VD)
    with torch.autocast("cpu", dtype), OpDtypes() as ops:
        loss = language_model_loss(hidden_BSD, head_VD, labels_BS)
    assert ops.seen == [dtype, dtype]
    assert loss.dtype == torch.float32
    got = value_and_gradients(loss, *leaves)
    want = value_and_gradients(exact_loss(hidden_BSD, head_VD, labels_BS), *leaves)
    # A sum kept in bf16 would be off by percents: 8 bits, rounded once for each chunk.
    assert got[0].item() == pytest.approx(want[0].item(), rel=1e-3)
    for gradient, exact in zip(got[1:], want[1:], strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - exact).norm() < 0.02 * exact.norm()


def test_the_sum_of_many_tokens_keeps_its_precision_under_autocast() -> None:
    # Equal logits: every token costs log V, whatever the precision of the GEMM.
    hidden_BSD, head_VD = torch.zeros(1, 5000, D), torch.randn(V, D)
    labels_BS = torch.randint(0, V, (1, 5000))
    with torch.autocast("cpu", torch.bfloat16):
        loss = language_model_loss(hidden_BSD, head_VD, labels_BS)
    rounded = torch.tensor(float(V)).log().bfloat16().item()
    assert loss.item() == pytest.approx(rounded, rel=1e-6)


@pytest.mark.parametrize("in_chunks", [True, False])
@pytest.mark.parametrize("autocast", [False, True])
def test_without_targets_the_loss_is_zero_and_gradients_are_finite(in_chunks: bool, autocast: bool) -> None:
    hidden_BSD, head_VD, _ = inputs()
    labels_BS = torch.full((B, S), -100)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits_BSV = None if in_chunks else F.linear(hidden_BSD, head_VD)
        loss = language_model_loss(hidden_BSD, head_VD, labels_BS, logits_BSV=logits_BSV)
    assert loss.item() == 0
    for gradient in torch.autograd.grad(loss, (hidden_BSD, head_VD)):
        assert not gradient.any()  # NaN would be true


def largest_allocation(autocast: bool, in_chunks: bool) -> int:
    """Bytes of the largest tensor that the loss and its backward make, as the profiler sees it inside torch's op."""
    hidden_BSD, head_VD, labels_BS = inputs()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits_BSV = None if in_chunks else F.linear(hidden_BSD, head_VD)
            loss = language_model_loss(hidden_BSD, head_VD, labels_BS, logits_BSV=logits_BSV)
        loss.backward()
    return max(event.self_cpu_memory_usage for event in profiler.events())


@pytest.mark.parametrize("autocast", [False, True])
def test_in_chunks_the_logits_are_never_held_together(autocast: bool) -> None:
    element_size = 2 if autocast else 4
    assert largest_allocation(autocast, in_chunks=False) >= B * S * V * element_size
    # The gradient of the head, and chunks of logits below a quarter of the whole.
    assert V * D * element_size <= largest_allocation(autocast, in_chunks=True) < B * S * V * element_size / 4


def routings_of(config: PathMoEConfig, num_layers: int, mask_T: Tensor | None = None) -> list[Routing]:
    logits = [torch.randn(B * S, config.num_experts) for _ in range(num_layers)]
    return [decide(logits_TE, config, token_mask_T=mask_T) for logits_TE in logits]


@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid"])
def test_routing_losses_are_means_over_layers(scoring_func: str) -> None:
    config = PathMoEConfig(scoring_func=scoring_func, router_aux_loss_coef=0.01, router_z_loss_coef=0.001)
    mask_T = torch.rand(B * S) < 0.7
    routings = routings_of(config, 3, mask_T)
    balance, spread = routing_losses(routings, config, mask_T)
    assert balance is not None
    assert spread is not None
    # Before their coefficients.
    torch.testing.assert_close(balance, sum(switch_loss(r.routed) for r in routings) / 3)
    torch.testing.assert_close(spread, sum(z_loss(r.routed.logsumexp_T, mask_T) for r in routings) / 3)


def test_routing_losses_take_the_load_of_each_layer() -> None:
    config = PathMoEConfig(router_aux_loss_coef=0.01)
    routings, load_LE = routings_of(config, 2), torch.randint(1, 99, (2, 16))
    balance, _ = routing_losses(routings, config, load_LE=load_LE)
    losses = [switch_loss(r.routed, load_E) for r, load_E in zip(routings, load_LE, strict=True)]
    torch.testing.assert_close(balance, torch.stack(losses).mean())


@pytest.mark.parametrize(("aux", "z"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.1)])
def test_losses_that_nobody_asked_for_are_left_out(aux: float, z: float) -> None:
    config = PathMoEConfig(router_aux_loss_coef=aux, router_z_loss_coef=z)
    balance, spread = routing_losses(routings_of(config, 2), config)
    assert (balance is not None, spread is not None) == (aux > 0, z > 0)


def test_a_collapsed_layer_does_not_hide_behind_another() -> None:
    # Each layer uses half of the experts, the other half of them: pooled over layers, the load is uniform.
    config = PathMoEConfig(num_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.01)
    left_TE = torch.tensor([[9.0, 9.0, 0.0, 0.0]]).expand(8, 4)
    routings = [decide(left_TE, config), decide(left_TE.flip(1), config)]
    pooled = load_balancing_loss_func(tuple(routing.logits_TE for routing in routings), 4, 2)
    balance, _ = routing_losses(routings, config)
    assert balance is not None
    assert pooled == pytest.approx(2)  # the minimum
    assert balance.item() == pytest.approx(4, rel=1e-3)
