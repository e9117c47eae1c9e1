"""The first part of an analysis against the accumulators that it is made of."""

# Shapes: N tokens, L MoE layers, K experts per token.

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from pathmoe_eval.layers.consistency import ConsistencyCounts
from pathmoe_eval.path_and_layer_counts import PathAndLayerCounts
from pathmoe_eval.paths.concentration import concentration
from pathmoe_eval.paths.path_blocks import BlockCounts
from pathmoe_eval.paths.paths import PathCounts
from pathmoe_eval.paths.sketched_paths import SketchedPathCounts
from pathmoe_eval.traces.trace_header import TraceHeader

LAYERS = {"num_layers": 6, "num_experts": 5}


def header(router_of_layer: tuple[int, ...] = (0, 0, 1, 1, 1, 1)) -> TraceHeader:
    return TraceHeader(
        num_layers=len(router_of_layer), num_experts=5, num_experts_per_tok=2,
        layer_names=tuple(f"layer {layer}" for layer in range(len(router_of_layer))), router_of_layer=router_of_layer,
        model="m", tokenizer="", data="d", vocab_size=9, has_weights=False, has_logits=False, has_predicted_ids=False,
    )  # fmt: skip


def routing(num_layers: int = 6) -> Any:
    return np.argsort(np.random.default_rng(0).random((200, num_layers, 5)), axis=-1)[..., :2].astype(np.uint8)


def sections_of(expert_ids_NLK: Any, header: TraceHeader, **options: bool) -> dict[str, Any]:
    counts = PathAndLayerCounts(header, **options)
    for chunk_NLK in np.split(expert_ids_NLK, [30, 31]):
        counts.update(chunk_NLK)
    return counts.sections()


def fed(counts: Any, array: Any) -> Any:
    counts.update(array)
    return counts


@pytest.mark.parametrize(
    ("routers", "blocks"),
    [((0, 0, 1, 1, 1, 1), [range(2), range(2, 6)]), ((0, 1, 2, 3, 4, 5), [range(4), range(4, 6)])],
    ids=["shared", "of their own"],
)
def test_exact_sections_are_those_of_the_accumulators(routers: tuple[int, ...], blocks: list[range]) -> None:
    ids_NLK = routing()
    top1_NL = ids_NLK[..., 0]
    sections = sections_of(ids_NLK, header(routers), sets=True)
    consistency = fed(ConsistencyCounts(**LAYERS, num_experts_per_tok=2, router_of_layer=routers), ids_NLK)
    assert sections == {
        "concentration": {
            "whole": asdict(concentration(fed(PathCounts(**LAYERS), top1_NL))),
            "blocks": [asdict(block) for block in fed(BlockCounts(blocks=blocks, **LAYERS), top1_NL).result()],
            "sets": asdict(concentration(fed(PathCounts(**LAYERS, set_size=2), ids_NLK))),
        },
        "consistency": asdict(consistency.result()),
        "flow": consistency.adjacent_top1().tolist(),
    }


def test_a_sketch_takes_the_place_of_the_counts_alone() -> None:
    ids_NLK = routing()
    exact, sections = sections_of(ids_NLK, header()), sections_of(ids_NLK, header(), sketch=True)
    assert sections.pop("sketch") == asdict(
        fed(SketchedPathCounts(**LAYERS, blocks=[range(2), range(2, 6)]), ids_NLK[..., 0]).result()
    )
    del exact["concentration"]
    assert sections == exact


def test_one_layer_has_no_pairs() -> None:
    assert sections_of(routing(1), header((0,))).keys() == {"concentration"}
