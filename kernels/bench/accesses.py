"""Watch what kernels load, store and update in Triton's interpreter."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder

PLACES = {
    "load": ("create_masked_load", 0, 1),
    "store": ("create_masked_store", 0, 2),
    "update": ("create_atomic_rmw", 1, 3),
}
"""Of each kind of access, the builder's method, and which of its arguments are the addresses and the mask.

Those without a mask come here too, with one that is all true. What follows the mask differs between versions.
"""

Access = Callable[[str, Any, Any, Any], Any]


@contextmanager
def watched(launch: Callable[[str, dict[str, Any]], None], access: Access) -> Iterator[None]:
    """Call `launch` before each launch, and `access` before each access.

    Args:
        launch: takes the kernel's name and its arguments by name.
        access: takes a key of `PLACES`, the builder, addresses and mask, and returns the mask to go on with.
    """
    run = InterpretedFunction.run

    def watched_run(self: Any, *args: Any, **options: Any) -> None:
        named = dict(zip(self.arg_names, args, strict=False)) | options
        launch(self.fn.__name__, {name: named[name] for name in self.arg_names if name in named})
        run(self, *args, **options)

    with ExitStack() as stack:
        stack.enter_context(patch.object(InterpretedFunction, "run", watched_run))
        for kind, (name, _, _) in PLACES.items():
            stack.enter_context(patch.object(InterpreterBuilder, name, _watched_method(kind, access)))
        yield


def _watched_method(kind: str, access: Access) -> Callable[..., Any]:
    name, where_addresses, where_mask = PLACES[kind]
    method = getattr(InterpreterBuilder, name)

    def watched_method(self: Any, *arguments: Any) -> Any:
        mask = access(kind, self, arguments[where_addresses], arguments[where_mask])
        return method(self, *arguments[:where_mask], mask, *arguments[where_mask + 1 :])

    return watched_method
