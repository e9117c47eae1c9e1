import copy

import torch
from torch import nn

from pathmoe import PathMoEConfig, PathMoEForCausalLM
from pathmoe.bench.shares import loss_pass, optimizer_pass
from pathmoe.bench.tiny import TinyRun
from pathmoe.data import TokenDataModule
from pathmoe.training.optim import OptimizerConfig
from pathmoe.training.schedule import ScheduleConfig


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lm_head = nn.Linear(4, 6, bias=False)


def test_the_optimizer_is_timed_on_a_copy() -> None:
    config = PathMoEConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = PathMoEForCausalLM(config)
    data = TokenDataModule(source="c-functions", vocab_size=20)  # never prepared
    run = TinyRun(config, OptimizerConfig(name="adamw"), ScheduleConfig(), 1, 1.0, data)
    before = copy.deepcopy(model.state_dict())
    step = optimizer_pass(model, run)
    step()
    step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_loss_is_timed_through_the_head() -> None:
    seen = []

    def loss(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        seen.append((hidden.shape, head.shape))
        return (hidden @ head.T).square().sum()

    gradients = loss_pass(loss, Head(), (2, 3, 4))()
    assert seen == [((2, 3, 4), (6, 4))]
    assert [gradient.shape for gradient in gradients] == [(2, 3, 4), (6, 4)]
