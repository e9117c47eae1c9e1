"""Random numbers that belong to tokens, not to a generator's state: the same in whatever batches the tokens come.

A token's draw is a function of a seed, of its MoE layer, and of the token ids from the beginning of its row up to its
own, hence of what a causal model may know of it. Rows padded on the right draw the same as alone; equal beginnings of
two documents draw the same, too. Steps of generation see one token each and would draw by its id alone.
"""

# Shapes: B batch, S sequence, T = B*S tokens, E draws of a token.

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

_LOW_64 = (1 << 64) - 1
_TOP_BIT = 1 << 63
_PREFIX_MULTIPLIER = 0xD1342543DE82EF95
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class TokenKeys:
    """Follows, inside of `with`, what a model's embedding is given, for draws that belong to these tokens."""

    def __init__(self, model: Any) -> None:
        self._embedding: nn.Module = model.get_input_embeddings()
        self._kind = type(model).__name__
        self._prefix_T: Tensor | None = None

    def __enter__(self) -> Self:
        self._handle = self._embedding.register_forward_pre_hook(self._see)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._handle.remove()

    def _see(self, embedding: nn.Module, args: tuple[Any, ...]) -> None:
        self._prefix_T = prefix_keys(args[0]).flatten()

    def draws(self, *, seed: int, layer: int, shape: tuple[int, int], device: torch.device) -> Tensor:
        """Uniform int64 [T, E] for the forward under way, see `draw`.

        Raises:
            ValueError: a forward of which the embedding has not seen all tokens.
        """
        num_tokens = 0 if self._prefix_T is None else len(self._prefix_T)
        if self._prefix_T is None or num_tokens != shape[0]:
            raise ValueError(
                f"model ({self._kind}) must be given input_ids of all {shape[0]} tokens to draw for them, and its "
                f"embedding saw {num_tokens}; do not pass inputs_embeds"
            )
        return draw(self._prefix_T.to(device), seed=seed, layer=layer, num_draws=shape[1])


def prefix_keys(input_ids_BS: Tensor) -> Tensor:
    """A key [B, S] int64 of each token and all before it in its row: sum over j <= s of mix(id_j) P^(s - j) mod 2^64.

    Args:
        input_ids_BS: [B, S] integers.
    """
    ids_BS = _mix(input_ids_BS.long() + _signed(_GOLDEN))
    power_S = _powers(_PREFIX_MULTIPLIER, ids_BS.shape[1], ids_BS.device)
    inverse_S = _powers(pow(_PREFIX_MULTIPLIER, -1, 1 << 64), ids_BS.shape[1], ids_BS.device)
    return (ids_BS * inverse_S).cumsum(dim=1) * power_S


def draw(prefix_T: Tensor, *, seed: int, layer: int, num_draws: int) -> Tensor:
    """Pseudo-random int64 [T, E], uniform over all values: a counter through SplitMix64's finaliser.

    The finaliser is that of Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; how
    token, layer and seed make the counter is our choice.

    Args:
        prefix_T: [T] int64 of `prefix_keys`.
        seed: any.
        layer: index of the MoE layer.
        num_draws: E.
    """
    stream = _mix(torch.tensor(_signed(seed), device=prefix_T.device))
    stream = _mix(stream + layer)
    counter_E = torch.arange(1, num_draws + 1, device=prefix_T.device) * _signed(_GOLDEN)
    return _mix(_mix(prefix_T ^ stream)[:, None] + counter_E)


def standard_normal(draws_TE: Tensor) -> Tensor:
    """Standard Gaussian fp32 from uniform int64, by the inverse of its distribution function in fp64."""
    # 52 bits and a half: neither 0 nor 1 in fp64.
    uniform_TE = (_shift_right(draws_TE, 12).double() + 0.5) * 2.0**-52
    return torch.special.ndtri(uniform_TE).float()


def _powers(base: int, number: int, device: torch.device) -> Tensor:
    factors_S = torch.full((number,), _signed(base), dtype=torch.int64, device=device)
    factors_S[:1] = 1
    return factors_S.cumprod(dim=0)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MIX_2)
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift that fills with zeros: torch's fills with the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The int64 of the same 64 bits."""
    value &= _LOW_64
    return value - (1 << 64) if value & _TOP_BIT else value
