"""Whether a run fits its GPU, and which of its settings would make it fit."""

from dataclasses import replace

from pathmoe.training.gpu_memory import TrainingShape, gpu_memory
from pathmoe.training.optim import OptimizerConfig
from pathmoe.training.plan import GIB, PlanConfig

_MOST_RANKS = 1024

Changes = list[tuple[str, TrainingShape]]
"""Sizes of one change, the smallest first: in words, and the shape after it."""


def check_fits(shape: TrainingShape, plan: PlanConfig, global_batch_size: int) -> None:
    """Refuse a run that its GPU has no room for.

    Args:
        shape: what the memory follows from.
        plan: the GPU; nothing is refused where none is named.
        global_batch_size: blocks of one optimizer step, which a pass of all ranks has to divide.

    Raises:
        ValueError: need, memory, the largest part, and each single change that would be enough; where none is, several
            together.
    """
    if plan.bytes is None:
        return
    need, usable = gpu_memory(shape), plan.bytes - plan.reserve
    if need.total <= usable:
        return
    name, value = ("gpu", plan.gpu) if plan.memory_gib is None else ("memory_gib", plan.memory_gib)
    largest = max(need.parts, key=lambda part: need.parts[part])
    advice = _advice(shape, usable, global_batch_size)
    raise ValueError(
        f"plan.{name} ({value}) must have room for {need.total / GIB:.1f} GiB, most of it {largest} "
        f"({need.parts[largest] / GIB:.1f} GiB), on each rank (of {shape.layout.world_size}), but has "
        f"{usable / GIB:.1f} of {plan.bytes / GIB:.1f} GiB beside the reserve; {advice}"
    )


def _advice(shape: TrainingShape, usable: int, global_batch_size: int) -> str:
    """Every single change that is enough; else changes one after the other until it is."""
    needs = {
        words: need for kind in _KINDS for words, _, need in _first_that_fits(kind(shape), usable, global_batch_size)
    }
    enough = [f"{words} ({need / GIB:.1f} GiB)" for words, need in needs.items() if need <= usable]
    if enough:
        return f"set {', or '.join(enough)}"
    together, need = [], gpu_memory(shape).total
    for kind in _KINDS:
        for words, changed, need_then in _first_that_fits(kind(shape), usable, global_batch_size):
            shape, need = changed, need_then
            together.append(words)
        if need <= usable:
            return f"set all of: {', '.join(together)} ({need / GIB:.1f} GiB)"
    with_all = f", not even all of: {', '.join(together)} ({need / GIB:.1f} GiB)" if together else ""
    return f"no setting is enough{with_all}; take a GPU with more memory or a smaller model"


def _first_that_fits(changes: Changes, usable: int, global_batch_size: int) -> list[tuple[str, TrainingShape, int]]:
    """The smallest size of a change that is enough, or the largest that there is, with the need after it."""
    found: list[tuple[str, TrainingShape, int]] = []
    for words, shape in changes:
        if global_batch_size % (shape.micro_batch_size * shape.layout.world_size):
            continue
        found = [(words, shape, gpu_memory(shape).total)]
        if found[0][2] <= usable:
            break
    return found


def _checkpointing(shape: TrainingShape) -> Changes:
    if shape.checkpointing:
        return []
    return [("model.activation_checkpointing to true", replace(shape, checkpointing=True))]


def _smaller_micro_batch(shape: TrainingShape) -> Changes:
    sizes = [size for size in range(shape.micro_batch_size - 1, 0, -1) if shape.micro_batch_size % size == 0]
    return [(f"data.micro_batch_size to {size}", replace(shape, micro_batch_size=size)) for size in sizes]


def _attention_without_mask(shape: TrainingShape) -> Changes:
    if shape.attention not in ("sdpa", "eager"):
        return []
    return [("model.attn_implementation to flex_attention", replace(shape, attention="flex_attention"))]


def _sharding(shape: TrainingShape) -> Changes:
    layout = shape.layout
    if layout.is_sharded:
        one = [("trainer.strategy.init_args.num_replicas to 1", replace(shape, layout=replace(layout, num_replicas=1)))]
        return one if layout.num_replicas > 1 else []
    if shape.precision not in ("32-true", "bf16-mixed"):
        return []
    changes, ranks = [], layout.world_size
    while ranks <= _MOST_RANKS:
        sharded = replace(layout, is_sharded=True, world_size=ranks)
        words = "--config fsdp2" + (f" on {ranks} ranks" if ranks != layout.world_size else "")
        changes.append((words, replace(shape, layout=sharded, optimizer=OptimizerConfig(name="adamw"))))
        ranks *= 2
    return changes


def _more_ranks(shape: TrainingShape) -> Changes:
    layout, changes = shape.layout, []
    ranks = 2 * layout.world_size
    while layout.is_sharded and ranks <= _MOST_RANKS:
        changes.append((f"{ranks} ranks", replace(shape, layout=replace(layout, world_size=ranks))))
        ranks *= 2
    return changes


_KINDS = (_checkpointing, _smaller_micro_batch, _attention_without_mask, _sharding, _more_ranks)
