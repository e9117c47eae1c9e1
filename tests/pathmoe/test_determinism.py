import subprocess
import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pathmoe.determinism import call_math_functions_once


class Calls(TorchDispatchMode):
    """Operators with the size and dtype of what they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, int, torch.dtype]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], torch.Tensor):
            self.seen.add((func.name(), args[0].numel(), args[0].dtype))
        return func(*args, **kwargs or {})


def test_each_function_is_called_on_one_number() -> None:
    with Calls() as calls:
        call_math_functions_once()
    assert {size for _, size, _ in calls.seen} == {1}
    for name in ("cos", "sin", "exp", "log", "sqrt", "tanh"):
        assert {(f"aten::{name}", 1, torch.float32), (f"aten::{name}", 1, torch.float64)} <= calls.seen


def test_an_import_is_enough() -> None:
    # Nothing may compute a cosine before: torch's profiler sees that the import has.
    program = (
        "from torch.profiler import profile\n"
        "with profile() as seen:\n"
        "    import pathmoe\n"
        "print(sum(event.key == 'aten::cos' for event in seen.key_averages()))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip().endswith("1")
