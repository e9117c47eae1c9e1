"""A run that its GPU has no room for: the message, and that its advice is good."""

import re
from dataclasses import replace
from typing import Any

import pytest

from pathmoe.config import PathMoEConfig
from pathmoe.training.fitting import check_fits
from pathmoe.training.gpu_memory import TrainingShape, gpu_memory
from pathmoe.training.layout import Layout
from pathmoe.training.optim import OptimizerConfig
from pathmoe.training.plan import GIB, RESERVE, PlanConfig

SHARDED = Layout(world_size=4, is_sharded=True)
BASE = TrainingShape(
    config=PathMoEConfig(
        vocab_size=50_000, hidden_size=512, num_hidden_layers=12, num_attention_heads=8, moe_intermediate_size=512,
        num_experts=32,
    ),
    optimizer=OptimizerConfig(name="muon"), layout=Layout(world_size=4), precision="bf16-mixed", attention="sdpa",
    micro_batch_size=8, sequence_length=2048, checkpointing=False,
)  # fmt: skip
CHANGES: dict[str, Any] = {
    "model.activation_checkpointing to true": lambda shape, _: replace(shape, checkpointing=True),
    "data.micro_batch_size to ": lambda shape, number: replace(shape, micro_batch_size=int(number)),
    "model.attn_implementation to flex_attention": lambda shape, _: replace(shape, attention="flex_attention"),
    "trainer.strategy.init_args.num_replicas to 1": lambda shape, _: replace(
        shape, layout=replace(shape.layout, num_replicas=1)
    ),
    "--config fsdp2": lambda shape, number: replace(
        shape,
        optimizer=OptimizerConfig(),
        layout=replace(shape.layout, is_sharded=True, world_size=int(number or shape.layout.world_size)),
    ),
    " ranks": lambda shape, number: replace(shape, layout=replace(shape.layout, world_size=int(number))),
}
"""What the advice says, to what a user would then do, with the number in it."""


def refusal(shape: TrainingShape, gib: float, global_batch_size: int = 4096) -> str:
    with pytest.raises(ValueError, match=r"^plan\.memory_gib \(") as error:
        check_fits(shape, PlanConfig(memory_gib=gib), global_batch_size)
    return str(error.value)


def gib_of(shape: TrainingShape) -> float:
    return gpu_memory(shape).total / GIB


def followed(shape: TrainingShape, advice: str) -> TrainingShape:
    """The shape after one piece of advice."""
    change = next(change for words, change in CHANGES.items() if words in advice)
    number = re.search(r"(?:to|on) (\d+)|(\d+) ranks", advice)
    return change(shape, next((group for group in number.groups() if group), None) if number else None)


def advised(message: str) -> list[tuple[str, float]]:
    """Single changes with the GiB that they promise."""
    found = re.findall(r"(?:set |, or )(.+?) \(([\d.]+) GiB\)", message.partition("the reserve; ")[2])
    return [(words, float(gib)) for words, gib in found]


SHAPES = {
    "ddp": BASE,
    "checkpointing": replace(BASE, checkpointing=True, attention="flex_attention"),
    "one": replace(BASE, layout=Layout()),
    "fsdp2": replace(BASE, layout=SHARDED, optimizer=OptimizerConfig()),
    "hybrid": replace(BASE, layout=replace(SHARDED, num_replicas=2), optimizer=OptimizerConfig(), checkpointing=True),
}


@pytest.mark.parametrize("share", [0.95, 0.7, 0.5, 0.3])
@pytest.mark.parametrize("name", SHAPES)
def test_every_single_change_that_is_advised_is_enough_and_none_is_left_out(name: str, share: float) -> None:
    shape = SHAPES[name]
    usable = share * gib_of(shape)
    message = refusal(shape, usable / (1 - RESERVE))
    single = advised(message) if "set all of" not in message and "no setting" not in message else []
    for words, promised in single:
        needed = gib_of(followed(shape, words))
        assert needed == pytest.approx(promised, abs=0.06)
        assert needed <= usable
    kinds = {next(kind for kind in CHANGES if kind in words) for words, _ in single}
    for kind in CHANGES.keys() - kinds - {"--config fsdp2", " ranks"}:
        changed = followed(shape, f"{kind}1" if kind.endswith("to ") else kind)
        assert changed == shape or gib_of(changed) > usable, kind


def test_a_run_that_fits_passes() -> None:
    need = gib_of(BASE)
    check_fits(BASE, PlanConfig(memory_gib=need / (1 - RESERVE) + 0.01), 32)
    check_fits(BASE, PlanConfig(), 32)


def test_the_message_has_the_need_the_memory_and_the_largest_part() -> None:
    memory = gpu_memory(BASE)
    message = refusal(BASE, 10.0)
    assert message.startswith(
        f"plan.memory_gib (10.0) must have room for {memory.total / GIB:.1f} GiB, most of it activations "
        f"({memory.activations / GIB:.1f} GiB), on each rank (of 4), but has 9.0 of 10.0 GiB beside the reserve; set "
    )
    assert "\n" not in message
    with pytest.raises(ValueError, match=r"^plan\.gpu \(a100-40\) must have room for "):
        check_fits(replace(BASE, micro_batch_size=64), PlanConfig(gpu="a100-40"), 256)


def test_several_changes_together_where_no_single_one_is_enough() -> None:
    shape = replace(SHAPES["fsdp2"], layout=replace(SHARDED, world_size=2))
    gib = 1.1 * gib_of(replace(shape, checkpointing=True, micro_batch_size=1, attention="flex_attention"))
    message = refusal(shape, gib / (1 - RESERVE), global_batch_size=16)
    together, promised = re.findall(r"; set all of: (.*) \(([\d.]+) GiB\)$", message)[0]
    for words in together.split(", "):
        shape = followed(shape, words)
    assert gib_of(shape) == pytest.approx(float(promised), abs=0.06)
    assert gib_of(shape) <= gib


def test_where_nothing_is_enough() -> None:
    message = refusal(BASE, 0.1)
    assert re.search(
        r"; no setting is enough, not even all of: .* GiB\); take a GPU with more memory or a smaller", message
    )
    bare = replace(BASE, layout=Layout(), precision="bf16-true", checkpointing=True, attention="flex_attention")
    message = refusal(replace(bare, micro_batch_size=1), 0.1, global_batch_size=1)
    assert message.endswith("; no setting is enough; take a GPU with more memory or a smaller model")


def test_no_change_breaks_the_global_batch() -> None:
    shape = SHAPES["fsdp2"]
    message = refusal(shape, 0.6 * gib_of(shape) / (1 - RESERVE), global_batch_size=32)
    assert " ranks" not in message.partition("the reserve; ")[2]
