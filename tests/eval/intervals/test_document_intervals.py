"""Intervals of a trace, against analysing what is left of it without each group of documents."""

# Shapes: N tokens, L MoE layers, K experts per token, E experts.

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pathmoe.data import train_bpe
from pathmoe_eval.analysis import Options, analyse
from pathmoe_eval.classes.text_classes import text_classes
from pathmoe_eval.intervals.jackknife import jackknife_interval
from pathmoe_eval.intervals.routing_figures import limits
from pathmoe_eval.traces.routing_chunk import RoutingChunk
from pathmoe_eval.traces.trace import RoutingTrace, open_trace
from pathmoe_eval.traces.trace_header import TraceHeader
from pathmoe_eval.traces.trace_writer import TraceWriter

BPE = train_bpe(["a few words to learn from, 12 of them or more"], 290)


class Routing:
    """Of documents of some lengths, in 5 layers with two routers, top-2 of 6 experts."""

    def __init__(self, lengths: Sequence[int]) -> None:
        rng = np.random.default_rng(0)
        self.lengths = lengths
        self.logits_NLE: NDArray[np.float32] = rng.normal(size=(sum(lengths), 5, 6)).astype(np.float32)
        # Documents differ, so that there is something to be uncertain of.
        self.logits_NLE += np.repeat(rng.normal(size=(len(lengths), 5, 6)), lengths, axis=0).astype(np.float32)
        self.token_ids_N = rng.integers(0, 290, sum(lengths))

    def written(self, folder: Path, without: Sequence[int] = ()) -> RoutingTrace:
        header = TraceHeader(
            num_layers=5, num_experts=6, num_experts_per_tok=2, layer_names=tuple("abcde"),
            router_of_layer=(0, 0, 1, 1, 1), model="m", tokenizer="", data="d", vocab_size=290, has_weights=False,
            has_logits=True, has_predicted_ids=False,
        )  # fmt: skip
        ends = np.cumsum(self.lengths)
        with TraceWriter(folder, header) as writer:
            for document, (end, length) in enumerate(zip(ends, self.lengths, strict=True)):
                if document not in without:
                    part = slice(int(end) - length, int(end))
                    ids_NLK = np.argsort(-self.logits_NLE[part], axis=-1)[..., :2].astype(np.uint8)
                    chunk = RoutingChunk(
                        expert_ids_NLK=ids_NLK, token_ids_N=self.token_ids_N[part], starts_S1=np.array([0, length]),
                        logits_NLE=self.logits_NLE[part],
                    )  # fmt: skip
                    writer.append(chunk, names=["a document"], domains=[""])
        return open_trace(folder)


def sections_of(trace: RoutingTrace) -> dict[str, Any]:
    return analyse(trace, None, text_classes, Options())


def figure_at(sections: Any, place: str) -> float | None:
    for key in place.split("."):
        if isinstance(sections, list | tuple) and int(key) >= len(sections):
            return None
        sections = sections[int(key) if isinstance(sections, list | tuple) else key]
    return float(sections)


def test_each_interval_is_of_the_figure_at_its_place_without_each_document(tmp_path: Path) -> None:
    lengths = [60, 35, 80, 1, 50]
    routing = Routing(lengths)
    sections = sections_of(routing.written(tmp_path / "all"))
    rest = [sections_of(routing.written(tmp_path / str(document), [document])) for document in range(5)]
    found = sections["intervals"]
    assert found["num_documents"] == found["num_groups"] == 5
    for place, ends in found["ends"].items():
        figure = figure_at(sections, place)
        without = [figure_at(of_rest, place) for of_rest in rest]
        assert figure is not None and ends[0] <= figure <= ends[1]
        low, high = jackknife_interval(figure, np.array(without, dtype=np.float64), np.array(lengths), 0.95)
        least, most = limits(place, sum(lengths))
        assert ends == pytest.approx((max(low, least), min(high, most)), abs=1e-9), place
    assert {place.split(".")[0] for place in found["ends"]} == {"concentration", "consistency", "load", "router_scores"}


def test_many_documents_are_left_out_in_groups_of_consecutive_ones(tmp_path: Path) -> None:
    lengths = np.random.default_rng(3).integers(1, 9, 300).tolist()
    routing = Routing(lengths)
    trace = routing.written(tmp_path / "all")
    found = sections_of(trace)["intervals"]
    assert (found["num_documents"], found["num_groups"]) == (300, 64)
    place = "load.all_picks.mean_entropy_share"
    begins = np.cumsum(lengths) - lengths
    groups = [np.flatnonzero(begins * 64 // sum(lengths) == group).tolist() for group in range(64)]
    figure = figure_at(sections_of(trace), place)
    without = [
        figure_at(sections_of(routing.written(tmp_path / str(index), group)), place)
        for index, group in enumerate(groups)
    ]
    sizes = np.array([sum(lengths[document] for document in group) for group in groups])
    assert figure is not None
    expected = jackknife_interval(figure, np.array(without, dtype=np.float64), sizes, 0.95)
    assert found["ends"][place] == pytest.approx(expected, abs=1e-9)
    part = sections_of(trace.first(sum(lengths[:200])))["intervals"]
    assert (part["num_documents"], part["num_groups"]) == (200, 64)


def test_two_documents_have_no_intervals_and_a_part_of_a_trace_has_its_own(tmp_path: Path) -> None:
    trace = Routing([20, 30, 40, 50]).written(tmp_path / "t")
    assert "intervals" not in sections_of(trace.first(50))
    assert sections_of(trace.first(60))["intervals"]["num_documents"] == 3


def test_documents_that_are_not_selected_are_in_no_group(tmp_path: Path) -> None:
    trace = Routing([*[1] * 70, 4000, *[1] * 9]).written(tmp_path / "t")
    assert "intervals" not in sections_of(trace.first(4000))  # the short ones together are one group of 64
    found = sections_of(trace)["intervals"]
    assert (found["num_documents"], found["num_groups"]) == (80, 3)


def test_intervals_keep_to_the_range_of_their_figures_and_paths_that_are_all_distinct_have_none(tmp_path: Path) -> None:
    found = sections_of(Routing([1, 1, 1, 2]).written(tmp_path / "t"))["intervals"]["ends"]
    for place, ends in found.items():
        low, high = limits(place, 5)
        assert low <= ends[0] <= ends[1] <= high, place
    assert "concentration.whole.entropy.entropy_bits" not in found
    assert "load.all_picks.mean_entropy_share" in found
