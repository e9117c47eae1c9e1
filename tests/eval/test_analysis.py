"""The sections of a report, against the accumulators handed everything at once."""

# Shapes: N tokens, L MoE layers, K experts per token, E experts.

import json
import tracemalloc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pathmoe.data import train_bpe
from pathmoe_eval.analysis import Options, analyse
from pathmoe_eval.classes.text_classes import text_classes
from pathmoe_eval.experts.coactivation import CoactivationCounts
from pathmoe_eval.experts.domain_specialisation import DomainCounts
from pathmoe_eval.experts.load import LoadCounts
from pathmoe_eval.experts.router_scores import RouterScoreSums
from pathmoe_eval.layers.consistency import ConsistencyCounts
from pathmoe_eval.paths.concentration import concentration
from pathmoe_eval.paths.paths import PathCounts
from pathmoe_eval.traces.routing_chunk import RoutingChunk
from pathmoe_eval.traces.trace import RoutingTrace, open_trace
from pathmoe_eval.traces.trace_header import TraceHeader
from pathmoe_eval.traces.trace_writer import TraceWriter

BPE = train_bpe(["a few words to learn from, 12 of them or more"], 290)
LENGTHS = [50, 1, 30, 19]
DOMAINS = ["news", "code", "news", "code"]


class Routing:
    """Of 100 tokens in 4 sequences."""

    def __init__(self, L: int = 5, E: int = 6, K: int = 3) -> None:
        rng = np.random.default_rng(0)
        N = sum(LENGTHS)
        self.shape = {"num_layers": L, "num_experts": E, "num_experts_per_tok": K}
        self.logits_NLE: NDArray[np.float32] = rng.normal(size=(N, L, E)).astype(np.float32)
        self.expert_ids_NLK = np.argsort(-self.logits_NLE, axis=-1)[..., :K].astype(np.uint8)
        self.token_ids_N = rng.integers(0, 290, N)
        self.routers = (0, 0, 1, 1, 1)[:L]

    def written(self, folder: Path, **fields: Any) -> RoutingTrace:
        header = TraceHeader(
            **self.shape, layer_names=tuple(f"layer {i}" for i in range(len(self.routers))),
            router_of_layer=fields.pop("router_of_layer", self.routers), model="m", tokenizer="", data="d",
            vocab_size=290, has_weights=False, has_logits=True, has_predicted_ids=False, **fields,
        )  # fmt: skip
        with TraceWriter(folder, header) as writer:
            first = 0
            for length, domain in zip(LENGTHS, DOMAINS, strict=True):
                part = slice(first, first + length)
                chunk = RoutingChunk(
                    expert_ids_NLK=self.expert_ids_NLK[part], token_ids_N=self.token_ids_N[part],
                    starts_S1=np.array([0, length]), logits_NLE=self.logits_NLE[part],
                )  # fmt: skip
                writer.append(chunk, names=["a document"], domains=[domain])
                first += length
        return open_trace(folder)


def fed(counts: Any, *arrays: Any) -> Any:
    counts.update(*arrays)
    return asdict(counts.result())


def test_each_section_is_what_its_accumulator_gives(tmp_path: Path) -> None:
    r = Routing()
    sections = analyse(r.written(tmp_path / "t"), BPE, text_classes, Options(sets=True))
    layers = {"num_layers": 5, "num_experts": 6}
    paths, sets = PathCounts(**layers), PathCounts(**layers, set_size=3)
    paths.update(r.expert_ids_NLK[..., 0])
    sets.update(r.expert_ids_NLK)
    assert sections["concentration"]["whole"] == asdict(concentration(paths))
    assert sections["concentration"]["sets"] == asdict(concentration(sets))
    spans = [(block["first_layer"], block["num_layers"]) for block in sections["concentration"]["blocks"]]
    assert spans == [(0, 2), (2, 3)]
    ids = r.expert_ids_NLK
    assert sections["consistency"] == fed(ConsistencyCounts(**r.shape, router_of_layer=r.routers), ids)
    assert sections["load"] == fed(LoadCounts(**r.shape), ids)
    assert sections["coactivation"] == fed(CoactivationCounts(**r.shape), ids)
    scores = fed(RouterScoreSums(**r.shape, score_function="softmax"), r.logits_NLE, ids)
    assert sections["router_scores"] == scores | {"score_function_from": "assumed"}
    domains = DomainCounts(**r.shape, domains=["news", "code"], domain_of_document_S=np.array([0, 1, 0, 1]))
    assert sections["domains"] == fed(domains, ids, np.repeat(np.arange(4), LENGTHS))


@pytest.mark.parametrize(
    ("provenance", "function", "how"),
    [
        ({"score_function": "sigmoid", "score_function_from": "config"}, "sigmoid", "config"),
        ({"score_function": "sigmoid"}, "sigmoid", "trace"),
        ({}, "softmax", "assumed"),
    ],
)
def test_router_scores_say_how_their_function_is_known(
    provenance: dict[str, str], function: str, how: str, tmp_path: Path
) -> None:
    trace = Routing().written(tmp_path / "t", provenance=provenance)
    scores = analyse(trace, None, text_classes, Options())["router_scores"]
    assert (scores["score_function"], scores["score_function_from"]) == (function, how)


def test_flow_counts_transitions_of_top_1_experts(tmp_path: Path) -> None:
    r = Routing()
    flow = np.array(analyse(r.written(tmp_path / "t"), None, text_classes, Options())["flow"])
    wanted = np.zeros((4, 6, 6), dtype=int)
    for token in r.expert_ids_NLK[..., 0].tolist():
        for pair in range(4):
            wanted[pair, token[pair], token[pair + 1]] += 1
    assert (flow == wanted).all()


def test_the_vocabulary_is_of_the_token_and_of_the_next_one(tmp_path: Path) -> None:
    vocabulary = analyse(Routing().written(tmp_path / "t"), None, text_classes, Options())["vocabulary"]
    assert vocabulary.keys() == {"input", "next"}
    # Each sequence's last token has no next one.
    assert (vocabulary["input"]["num_tokens"], vocabulary["next"]["num_tokens"]) == (100, 96)


def test_the_most_frequent_paths_are_counted_with_their_tokens(tmp_path: Path) -> None:
    r = Routing(L=2, E=2, K=1)
    whole, *blocks = analyse(r.written(tmp_path / "t", router_of_layer=(0, 0)), BPE, text_classes, Options())[
        "path_tokens"
    ]
    assert (whole["first_layer"], whole["num_layers"], len(blocks)) == (0, 2, 0)
    found = {path["path"]: path["num_tokens"] for path in whole["paths"]}
    wanted: dict[tuple[int, ...], int] = {}
    for path in map(tuple, r.expert_ids_NLK[..., 0].tolist()):
        wanted[path] = wanted.get(path, 0) + 1
    assert found == wanted
    for path in whole["paths"]:
        rows = (r.expert_ids_NLK[..., 0] == path["path"]).all(axis=1)
        assert path["num_distinct_tokens"] == len(set(r.token_ids_N[rows].tolist()))
        assert sum(item["num_tokens"] for item in path["classes"]) == path["num_tokens"]


def test_layers_without_shared_routers_are_taken_in_blocks_of_four(tmp_path: Path) -> None:
    trace = Routing().written(tmp_path / "t", router_of_layer=(0, 1, 2, 3, 4))
    sections = analyse(trace, None, text_classes, Options())
    spans = [(block["first_layer"], block["num_layers"]) for block in sections["concentration"]["blocks"]]
    assert spans == [(0, 4), (4, 1)]
    assert sections["consistency"]["leads_with"] == "companions"


@pytest.mark.parametrize(
    ("shape", "missing"),
    [({"L": 1}, {"consistency", "flow"}), ({"K": 1}, {"coactivation"}), ({}, set())],
    ids=["one layer", "one expert a token", "all"],
)
def test_sections_without_data_are_left_out(shape: dict[str, int], missing: set[str], tmp_path: Path) -> None:
    every = {
        "concentration", "load", "vocabulary", "consistency", "flow", "coactivation", "router_scores", "domains",
        "separation", "path_tokens", "intervals",
    }  # fmt: skip
    trace = Routing(**shape).written(tmp_path / "t")
    assert analyse(trace, BPE, text_classes, Options()).keys() == every - missing
    without_text = analyse(trace, None, text_classes, Options())
    assert without_text.keys() == every - missing - {"separation", "path_tokens"}


def test_one_domain_is_no_section(tmp_path: Path) -> None:
    trace = Routing().written(tmp_path / "t").of_domain("code")
    sections = analyse(trace, BPE, text_classes, Options())
    assert "domains" not in sections
    assert sections["load"]["num_tokens"] == 20


def test_sections_are_plain_json(tmp_path: Path) -> None:
    sections = analyse(Routing().written(tmp_path / "t"), BPE, text_classes, Options(sets=True))
    json.dumps(sections, allow_nan=False)


def test_the_same_twice(tmp_path: Path) -> None:
    trace = Routing().written(tmp_path / "t")
    assert analyse(trace, BPE, text_classes, Options()) == analyse(trace, BPE, text_classes, Options())
    other = analyse(trace, BPE, text_classes, Options(seed=1))
    assert other["separation"] != analyse(trace, BPE, text_classes, Options())["separation"]


def test_a_sketch_leaves_out_what_needs_each_path_and_no_other_number_changes(tmp_path: Path) -> None:
    trace = Routing().written(tmp_path / "t")
    exact = analyse(trace, BPE, text_classes, Options())
    sections = analyse(trace, BPE, text_classes, Options(sketch=True))
    assert exact.keys() - sections.keys() == {"concentration", "separation", "path_tokens"}
    whole = sections.pop("sketch")["whole"]["entropy"]
    assert whole["entropy_bits"] == pytest.approx(exact["concentration"]["whole"]["entropy"]["entropy_bits"])
    del sections["domains"]  # whose nulls exchange groups, in another order
    ends = exact["intervals"]["ends"]
    exact["intervals"]["ends"] = {place: ends[place] for place in ends if not place.startswith("concentration.")}
    assert sections == {name: exact[name] for name in sections}
    json.dumps(sections, allow_nan=False)


def test_documents_are_counted_in_groups_only_in_fixed_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathmoe_eval.analysis._DOCUMENT_GROUPS", 2)
    trace = Routing().written(tmp_path / "t")
    exact = analyse(trace, None, text_classes, Options())["domains"]
    sketched = analyse(trace, None, text_classes, Options(sketch=True))["domains"]
    assert (exact["num_groups"], sketched["num_groups"]) == (4, 2)
    assert exact["information_bits"] == sketched["information_bits"]


def generated(folder: Path, num_tokens: int) -> RoutingTrace:
    """A trace of few paths in sequences that cross its batches; more tokens are more of the same."""
    rng = np.random.default_rng(0)
    header = TraceHeader(
        num_layers=3, num_experts=4, num_experts_per_tok=2, layer_names=("a", "b", "c"), router_of_layer=(0, 0, 1),
        model="m", tokenizer="", data="d", vocab_size=290, has_weights=False, has_logits=False,
        has_predicted_ids=False,
    )  # fmt: skip
    with TraceWriter(folder, header) as writer:
        for number in range(num_tokens // 5000):
            first_N = rng.integers(0, 4, (5000, 3, 1))
            chunk = RoutingChunk(
                expert_ids_NLK=np.concatenate([first_N, (first_N + 1) % 4], axis=2),
                token_ids_N=rng.integers(33, 120, 5000), starts_S1=np.arange(0, 5001, 1000),
            )  # fmt: skip
            writer.append(chunk, names=["a"] * 5, domains=[("x", "y")[number % 2]] * 5)
    return open_trace(folder)


@pytest.mark.parametrize("sketch", [False, True])
def test_memory_does_not_grow_with_tokens(sketch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathmoe_eval.paths.path_sketch._BLOCK_TOKENS", 1 << 16)
    peaks = []
    for num_tokens in (140_000, 420_000):
        trace = generated(tmp_path / f"{num_tokens}", num_tokens)
        tracemalloc.start()
        analyse(trace, None if sketch else BPE, lambda text, spans: ["letter"] * len(spans), Options(sketch=sketch))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 280,000 tokens more: less than 3 bytes for each, where an id of each would be 4 or 8
    assert peaks[1] - peaks[0] < 3 * 280_000


def test_the_vocabulary_of_next_tokens_crosses_batches_of_the_trace(tmp_path: Path) -> None:
    trace = generated(tmp_path / "t", 140_000)
    assert len(list(trace.chunks())) > 2
    vocabulary = analyse(trace, None, text_classes, Options())["vocabulary"]
    assert vocabulary["next"]["num_tokens"] == 140_000 - 140
