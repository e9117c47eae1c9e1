"""Gaussian noise on router logits as a function of (seed, layer): the same when a forward is computed again."""

import hashlib

import torch
from torch import Tensor


def fold_seed(*parts: int) -> int:
    """One 63-bit seed from several integers, the same on every platform; near parts give unrelated seeds."""
    digest = hashlib.blake2b(",".join(str(int(part)) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def layer_noise(shape: tuple[int, int], std: float, noise_seed: int | None, layer: int, device: torch.device) -> Tensor:
    """Noise for one layer's router logits, fp32.

    Args:
        shape: tokens, experts.
        std: standard deviation, in units of logits.
        noise_seed: what identifies this forward (seed, step, micro-batch and rank folded); None draws from torch's
            default generator, whose state a checkpoint does not hold.
        layer: index of the MoE layer.
        device: where the noise is drawn; devices have streams of their own.
    """
    generator = None
    if noise_seed is not None:
        generator = torch.Generator(device=device)
        generator.manual_seed(fold_seed(noise_seed, layer))
    return std * torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
