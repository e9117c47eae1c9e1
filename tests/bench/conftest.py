"""What the tests of the benchmarks share."""

from collections.abc import Callable
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **kwargs or {})


def _operators_of(call: Callable[[], object]) -> list[str]:
    with _Operators() as operators:
        call()
    return operators.names


@pytest.fixture(scope="session")
def operators_of() -> Callable[[Callable[[], object]], list[str]]:
    """Runs a call and gives the names of the operators that ran, in order."""
    return _operators_of
