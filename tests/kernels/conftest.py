"""What the tests of the kernels share: routing as a plain formula, and memory that holds garbage."""

# Shapes: T tokens, E experts, K experts per token, D hidden, N = T*K routed rows.

import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from pathmoe_kernels import Dispatch, Routed, RouteRule

# Elsewhere than on Linux there is no Triton, and nothing of it to test.
NEED_TRITON = [
    "test_*_triton.py",
    "test_device.py",
    "test_grouped.py",
    "test_launch.py",
    "test_resources.py",
    "test_traffic.py",
]
collect_ignore_glob = [] if find_spec("triton") else NEED_TRITON

GARBAGE = 1_234_567
"""No valid expert, row or position of a test."""


class RouteCase(NamedTuple):
    """One combination of the pairwise cover of `route`'s shapes and options."""

    tokens: str
    E: int
    choices: int
    """Zero for all E."""
    D: int
    dtype: torch.dtype
    sigmoid: bool
    norm_topk_prob: bool
    options: str

    @property
    def rule(self) -> RouteRule:
        balance, uniform = "balance" in self.options, "uniform" in self.options
        return RouteRule(self.choices or self.E, self.sigmoid, self.norm_topk_prob, 2.5, balance, uniform)

    def num_tokens(self, tile: int) -> int:
        return {"1": 1, "7": 7, "tile": tile, "tile + 1": tile + 1}[self.tokens]


VALUES: list[list[Any]] = [
    ["tile + 1", "7", "tile", "1"],
    [60, 3, 256, 16, 64, 128, 1],
    [2, 1, 4, 6, 8, 0],
    [33, 67, 1],
    [torch.float32, torch.float16, torch.bfloat16],
    [False, True],
    [False, True],
    ["", "logits", "bias balance", "mask balance", "bias mask balance logits", "uniform mask balance", "uniform"],
]
"""Of each field of `RouteCase`."""


def _pairwise(values: list[list[Any]]) -> Iterator[RouteCase]:
    """Cases, greedily, until any two values of any two fields have met, unless K would exceed E."""

    def fits(chosen: dict[int, Any]) -> bool:
        return chosen.get(2, 0) <= chosen.get(1, math.inf)

    cells = [(i, value) for i, column in enumerate(values) for value in column]
    missing = {(one, two) for one, two in combinations(cells, 2) if one[0] < two[0] and fits(dict((one, two)))}
    while missing:
        chosen = dict(min(missing, key=str))
        for i in range(len(values)):
            if i not in chosen:
                candidates = [chosen | {i: value} for value in values[i]]
                gains = [len(missing & set(combinations(sorted(c.items()), 2))) if fits(c) else -1 for c in candidates]
                chosen = candidates[gains.index(max(gains))]
        case = RouteCase(*(chosen[i] for i in range(len(values))))
        missing -= set(combinations(enumerate(case), 2))
        yield case


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument `route_case` runs on every case of the cover."""
    if "route_case" in metafunc.fixturenames:
        metafunc.parametrize("route_case", list(_pairwise(VALUES)), ids=lambda case: "-".join(map(str, case)))


def _poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def allocate_poisoned(*arguments: Any, **options: Any) -> Tensor:
        tensor = allocate(*arguments, **options)
        if type(tensor) is not Tensor:  # the compiler's have no memory
            return tensor
        if tensor.is_floating_point():
            return tensor.fill_(math.nan)
        return tensor.fill_(min(GARBAGE, torch.iinfo(tensor.dtype).max))

    return allocate_poisoned


class _Memory(NamedTuple):
    """Of one tensor that a launch is handed."""

    first: int
    end: int
    """Addresses."""
    writer: Any
    reader: Any
    """Of each byte: which program has stored or loaded there, -1 where none has and -2 where several have."""

    @staticmethod
    def of(tensor: Tensor) -> "_Memory":
        last = sum((n - 1) * by for n, by in zip(tensor.shape, tensor.stride(), strict=True))
        num_bytes = (last + 1) * tensor.element_size() if tensor.numel() else 0
        return _Memory(tensor.data_ptr(), tensor.data_ptr() + num_bytes, *np.full((2, num_bytes), -1))


class _Accesses:
    """What a launch in the interpreter touches, and what it should not have."""

    def __init__(self) -> None:
        self.kernel, self.ordered = "", -1
        self.memories: list[_Memory] = []
        self.wrong: list[str] = []

    def start(self, kernel: str, arguments: dict[str, Any]) -> None:
        self.kernel, self.ordered = kernel, -1
        self.memories = [_Memory.of(argument) for argument in arguments.values() if isinstance(argument, Tensor)]

    def checked(self, access: str, builder: Any, addresses: Any, mask: Any) -> Any:
        """The mask without what lies outside of all tensors."""
        program = np.ravel_multi_index(builder.grid_idx, builder.grid_dim)
        inside = np.zeros(addresses.data.shape, dtype=bool)
        for first, end, writer, reader in self.memories:
            within = mask.data & (addresses.data >= first) & (addresses.data < end)
            inside |= within
            touched = addresses.data[within] - first
            if access == "update":
                # The one that draws a ticket comes after those that drew before it.
                self.ordered = program
                continue
            others = writer[touched] if access == "load" else np.concatenate([writer[touched], reader[touched]])
            if program != self.ordered and ((others != -1) & (others != program)).any():
                self.wrong.append(f"{self.kernel}: a {access} of what another program touches as well")
            mine = writer if access == "store" else reader
            mine[touched] = np.where((mine[touched] == -1) | (mine[touched] == program), program, -2)
        if (mask.data & ~inside).any():
            self.wrong.append(f"{self.kernel}: a {access} outside of its tensors")
        return type(mask)(inside, mask.dtype)


@pytest.fixture
def checked_accesses() -> Iterator[list[str]]:
    """Kernels in the interpreter touch the tensors that they are handed, nothing else, and share without races.

    Of two programs that touch the same, one of which stores, the later must have drawn a ticket. Yields what was wrong.
    """
    if not find_spec("triton"):
        yield []
        return
    from accesses import watched

    accesses = _Accesses()
    with watched(accesses.start, accesses.checked):
        yield accesses.wrong
    assert not accesses.wrong, accesses.wrong[0]


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch, checked_accesses: list[str]) -> None:
    """New memory that Python code asks for holds NaN, or integers that index nothing; kernels stay inside of it."""
    for owner, name in [(torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")]:
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))


def _plain_route(
    x_TD: Tensor,
    gate_ED: Tensor | None,
    rule: RouteRule,
    selection_bias_E: Tensor | None = None,
    token_mask_T: Tensor | None = None,
    expert_ids_TK: Tensor | None = None,
) -> Routed:
    logits_TE = x_TD if gate_ED is None else torch.einsum("td,ed->te", x_TD, gate_ED)
    num_tokens, num_experts = logits_TE.shape
    num_choices = rule.num_experts_per_tok
    scores_TE = torch.sigmoid(logits_TE) if rule.sigmoid else torch.softmax(logits_TE, dim=-1)
    ranking_TE = logits_TE if selection_bias_E is None else scores_TE + selection_bias_E
    ids_TK = ranking_TE.argsort(dim=-1, descending=True, stable=True)[:, :num_choices]
    if rule.uniform:
        rows = [[(t * num_choices + k) % num_experts for k in range(num_choices)] for t in range(num_tokens)]
        ids_TK = torch.tensor(rows, dtype=torch.int64).view(num_tokens, num_choices)
    if expert_ids_TK is not None:
        ids_TK = expert_ids_TK
    weights_TK = scores_TE.gather(-1, ids_TK)
    if rule.norm_topk_prob:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    counted_T = torch.ones(num_tokens, dtype=torch.bool) if token_mask_T is None else token_mask_T
    order_N = ids_TK.flatten().argsort(stable=True)
    probability_TE = scores_TE / scores_TE.sum(dim=-1, keepdim=True)
    return Routed(
        weights_TK * rule.routed_scaling_factor,
        ids_TK,
        torch.logsumexp(logits_TE, dim=-1),
        ids_TK[counted_T].flatten().bincount(minlength=num_experts),
        probability_TE[counted_T].sum(dim=0) if rule.probability_sum else logits_TE.new_zeros(0),
        Dispatch(order_N, order_N.argsort(), ids_TK.flatten().bincount(minlength=num_experts).cumsum(0)),
    )


@pytest.fixture(scope="session")
def plain_route() -> Callable[..., Routed]:
    """Routing under autograd, written out, from x and gate, or from logits where the gate is None.

    It takes over a choice of experts that is handed in.
    """
    return _plain_route
