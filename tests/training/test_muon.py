"""ExpertMuon against torch's own Muon on the single matrices.

Shapes: E experts, R rows and C columns of one matrix.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pathmoe.training.muon import ExpertMuon, orthogonalize

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def random_gradients(shape: tuple[int, ...], steps: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


def train(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], gradients: list[list[Tensor]]) -> None:
    for of_step in gradients:
        for parameter, gradient in zip(parameters, of_step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("adjust_lr_fn", [None, "original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(
    ("num_matrices", "rows", "columns"),
    [
        pytest.param(1, 24, 40, id="wide"),
        pytest.param(1, 40, 24, id="tall"),
        pytest.param(2, 24, 40, id="two-wide"),
        # As one matrix [48, 40] would be tall, and its two halves are wide: a missing split changes the shape's factor.
        pytest.param(2, 40, 24, id="two-tall"),
        pytest.param(3, 16, 16, id="three-square"),
    ],
)
def test_equals_torch_muon_on_every_matrix(
    num_matrices: int, rows: int, columns: int, nesterov: bool, adjust_lr_fn: str | None
) -> None:
    num_experts, steps = 5, 4
    shape = (num_experts, num_matrices * rows, columns)
    initial, *gradients = random_gradients(shape, steps + 1, seed=rows)
    settings = {
        "lr": 0.05,
        "weight_decay": 0.5,
        "momentum": 0.9,
        "nesterov": nesterov,
        "ns_steps": 4,
        "adjust_lr_fn": adjust_lr_fn,
    }

    ours = nn.Parameter(initial.clone())
    our_optimizer = ExpertMuon([ours], num_matrices=num_matrices, **settings)
    train(our_optimizer, [ours], [[gradient] for gradient in gradients])

    def matrices(tensor: Tensor) -> list[Tensor]:
        return [half for expert in tensor.detach() for half in expert.split(rows)]

    theirs = [nn.Parameter(matrix.clone()) for matrix in matrices(initial)]
    their_optimizer = torch.optim.Muon(theirs, **settings)
    train(their_optimizer, theirs, [matrices(gradient) for gradient in gradients])

    # Bit-equal where batched and single bfloat16 products round alike; elsewhere an entry of an update, which is at
    # most about one before its learning rate, may be off by a few bfloat16 roundings.
    ratio = 0.2 * max(rows, columns) ** 0.5 if adjust_lr_fn == "match_rms_adamw" else max(1.0, rows / columns) ** 0.5
    tolerance = steps * settings["lr"] * ratio * 2**-7
    for our_matrix, their_matrix in zip(matrices(ours), theirs, strict=True):
        torch.testing.assert_close(our_matrix, their_matrix.detach(), atol=tolerance, rtol=0)

    momentum_buffer = our_optimizer.state[ours]["momentum_buffer"]
    their_buffers = [their_optimizer.state[matrix]["momentum_buffer"] for matrix in theirs]
    assert torch.equal(momentum_buffer, torch.stack(their_buffers).reshape(shape))


def test_each_group_has_its_own_num_matrices() -> None:
    initial, gradient = random_gradients((3, 8, 12), 2, seed=0)
    joint, apart = nn.Parameter(initial.clone()), nn.Parameter(initial.clone())
    optimizer = ExpertMuon([{"params": [joint]}, {"params": [apart], "num_matrices": 2}], lr=0.1)
    train(optimizer, [joint, apart], [[gradient, gradient]])
    alone = nn.Parameter(initial.clone())
    train(ExpertMuon([alone], lr=0.1, num_matrices=2), [alone], [[gradient]])
    assert torch.equal(apart, alone)
    assert not torch.equal(apart, joint)


@given(
    st.lists(st.integers(1, 4), max_size=2),
    st.integers(1, 20),
    st.integers(1, 20),
    st.floats(1e-3, 1e3),
    st.integers(0, 2**31),
)
def test_orthogonalize_keeps_singular_vectors_and_evens_singular_values(
    batch: list[int], rows: int, columns: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rank = min(rows, columns)
    left = torch.linalg.qr(torch.randn(*batch, rows, rank, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(*batch, columns, rank, generator=generator)).Q
    singular_values = scale * (0.2 + torch.rand(*batch, rank, generator=generator))
    matrices = left * singular_values[..., None, :] @ right.mT

    orthogonal = orthogonalize(matrices, COEFFICIENTS, steps=5, eps=1e-7)
    assert orthogonal.shape == matrices.shape
    assert orthogonal.dtype == torch.bfloat16
    in_their_basis = left.mT @ orthogonal.float() @ right
    diagonal = in_their_basis.diagonal(dim1=-2, dim2=-1)
    # The polynomial maps every singular value into about [0.68, 1.13]; bfloat16 blurs values and vectors.
    assert diagonal.min() > 0.6
    assert diagonal.max() < 1.25
    assert (in_their_basis - torch.diag_embed(diagonal)).abs().max() < 0.1


def test_an_expert_without_tokens_only_decays() -> None:
    initial, gradient = random_gradients((4, 6, 10), 2, seed=1)
    gradient[2] = 0
    parameter = nn.Parameter(initial.clone())
    train(ExpertMuon([parameter], lr=0.1, weight_decay=0.5, num_matrices=2), [parameter], [[gradient]] * 3)
    assert parameter.isfinite().all()
    torch.testing.assert_close(parameter[2].detach(), initial[2] * (1 - 0.1 * 0.5) ** 3)


def test_a_parameter_without_gradient_stays() -> None:
    parameter = nn.Parameter(torch.ones(2, 4, 4))
    optimizer = ExpertMuon([parameter])
    optimizer.step()
    assert torch.equal(parameter, torch.ones(2, 4, 4))
    assert not optimizer.state


def test_gradients_are_left_as_they_are_in_bfloat16() -> None:
    (gradient,) = random_gradients((2, 4, 6), 1, seed=2)
    parameter = nn.Parameter(torch.zeros(2, 4, 6, dtype=torch.bfloat16))
    optimizer = ExpertMuon([parameter], nesterov=False, momentum=0.0)
    train(optimizer, [parameter], [[gradient.bfloat16()]])
    assert torch.equal(parameter.grad, gradient.bfloat16())
    assert torch.equal(optimizer.state[parameter]["momentum_buffer"], gradient.bfloat16())


def test_closure_is_run_with_gradients_and_its_loss_returned() -> None:
    parameter = nn.Parameter(torch.ones(2, 4, 4))
    optimizer = ExpertMuon([parameter], lr=0.1)

    def closure() -> Tensor:
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 32
    assert parameter.max() < 1


@pytest.mark.parametrize(("shape", "num_matrices"), [((4, 4), 1), ((2, 5, 4), 2), ((2, 2, 4, 4), 1)])
def test_refuses_what_it_cannot_split(shape: tuple[int, ...], num_matrices: int) -> None:
    with pytest.raises(ValueError, match=r"num_matrices \(\d\) must divide the rows of a 3-D parameter"):
        ExpertMuon([nn.Parameter(torch.ones(shape))], num_matrices=num_matrices)


def test_refuses_an_unknown_adjust_lr_fn() -> None:
    with pytest.raises(ValueError, match=r"adjust_lr_fn \(spectral\) must be one of"):
        ExpertMuon([nn.Parameter(torch.ones(2, 4, 4))], adjust_lr_fn="spectral")
