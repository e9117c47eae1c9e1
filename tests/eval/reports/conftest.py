"""Reports of all sections, made by the accumulators, and of a study of locality."""

# Shapes: N tokens, M documents, L MoE layers, K experts per token, E experts.

import functools
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pathmoe.data import train_bpe

MakeReport = Callable[..., dict[str, Any]]
"""From what a report is to differ in to a report with every section, as it is read from its file."""


@pytest.fixture(scope="session")
def make_report(tmp_path_factory: pytest.TempPathFactory) -> MakeReport:
    """Reports of random routing, made by the accumulators."""
    made = functools.cache(lambda **fields: json.dumps(_report(tmp_path_factory.mktemp("trace") / "trace", **fields)))
    return lambda **fields: json.loads(made(**fields))


def _report(
    folder: Path,
    num_tokens: int = 300,
    num_experts: int = 6,
    num_experts_per_tok: int = 2,
    router_of_layer: tuple[int, ...] = (0, 0, 1, 1, 1),
    model: str = "runs/one/last.ckpt",
    seed: int = 0,
    sketch: bool = False,
) -> dict[str, Any]:
    from pathmoe_eval.analysis import Options, analyse
    from pathmoe_eval.classes.text_classes import text_classes
    from pathmoe_eval.experts.saturation import SaturationCounts
    from pathmoe_eval.perturbations.robustness import PER_BLOCK, PER_LAYER, PerturbedSums, robustness
    from pathmoe_eval.reports.report import FORMAT
    from pathmoe_eval.traces.routing_chunk import RoutingChunk
    from pathmoe_eval.traces.trace import open_trace
    from pathmoe_eval.traces.trace_header import TraceHeader
    from pathmoe_eval.traces.trace_writer import TraceWriter

    rng = np.random.default_rng(seed)
    num_layers = len(router_of_layer)
    shape = {"num_layers": num_layers, "num_experts": num_experts, "num_experts_per_tok": num_experts_per_tok}
    bpe = train_bpe(["a few words to learn from, 12 of them or more"], 290)
    header = TraceHeader(
        **shape, layer_names=tuple(f"layers.{layer}" for layer in range(num_layers)), router_of_layer=router_of_layer,
        model=model, tokenizer="", data="data.jsonl", vocab_size=290, has_weights=False, has_logits=True,
        has_predicted_ids=False,
    )  # fmt: skip
    # Layers resemble each other, so that figures differ from what chance gives.
    own_NE = rng.normal(size=(num_tokens, 1, num_experts))
    logits_NLE = (own_NE + rng.normal(size=(num_tokens, num_layers, num_experts))).astype(np.float32)
    expert_ids_NLK = np.argsort(-logits_NLE, axis=-1)[..., :num_experts_per_tok].astype(np.uint8)
    token_ids_N = rng.integers(0, 290, num_tokens)
    bounds = np.linspace(0, num_tokens, 5).astype(int)
    with TraceWriter(folder, header) as writer:
        for document, (first, last) in enumerate(itertools.pairwise(bounds.tolist())):
            chunk = RoutingChunk(
                expert_ids_NLK=expert_ids_NLK[first:last], token_ids_N=token_ids_N[first:last],
                starts_S1=np.array([0, last - first]), logits_NLE=logits_NLE[first:last],
            )  # fmt: skip
            writer.append(chunk, names=[f"document {document}"], domains=[("news", "code")[document % 2]])
    sections = analyse(open_trace(folder), bpe, text_classes, Options(sets=not sketch, sketch=sketch))
    later = SaturationCounts(**shape)
    later.update(expert_ids_NLK, np.roll(expert_ids_NLK, 1, axis=0), token_ids_N, token_ids_N)
    free_M, tokens_M = 4.0 * np.diff(bounds), np.diff(bounds)
    perturbed = [
        PerturbedSums(intervention=name, setting=setting, nats_RM=free_M + rng.uniform(0, 2, (3, 1)) * tokens_M)
        for name, setting in ((PER_LAYER, None), (PER_BLOCK, None), ("logit noise", 0.5))
    ]
    report = {
        "format": FORMAT,
        "run": {
            "command": f"pathmoe-eval paths --model {model}", "model": model, "data": "data.jsonl",
            "num_tokens": num_tokens, "num_sequences": 4, **shape, "router_of_layer": router_of_layer,
            "layer_names": header.layer_names, "seed": 0, "versions": {"torch": "2.13.0", "triton": None},
            "created": "2026-01-01T00:00:00+00:00",
        },
        "sections": sections | {
            "perplexity": asdict(_perplexity(rng, bounds)),
            "saturation": asdict(later.result()),
            "perturbation": asdict(robustness(free_M, tokens_M, perturbed, router_of_layer, num_resamples=50)),
        },
    }  # fmt: skip
    return report


def _perplexity(rng: np.random.Generator, bounds: NDArray[np.int64]) -> Any:
    from pathmoe_eval.evaluation.evaluated_data import EvaluatedDocument
    from pathmoe_eval.evaluation.perplexity import perplexity
    from pathmoe_eval.evaluation.scoring import TokenScores

    lengths_M = np.diff(bounds)
    documents = [
        EvaluatedDocument(
            name=f"document {document}", domain=("news", "code")[document % 2], text="", token_ids=np.arange(length),
            token_bytes=np.full(length, 3.0),
        )
        for document, length in enumerate(lengths_M.tolist())
    ]  # fmt: skip
    position_N = np.concatenate([np.arange(1, length) for length in lengths_M])
    scores = TokenScores(
        document_N=np.repeat(np.arange(len(lengths_M)), lengths_M - 1), position_N=position_N, token_id_N=position_N,
        log_probability_N=-rng.uniform(1, 7, len(position_N)),
    )  # fmt: skip
    return perplexity(scores, documents, num_resamples=50)


@pytest.fixture(scope="session")
def study_sections(program_tree) -> Callable[[], dict[str, Any]]:
    """Sections of the study of `program_tree`, as they are read from a report's file."""
    from pathmoe_eval.locality.study import Comparison, study_tree
    from pathmoe_eval.programs.compilers import open_compiler

    if shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    compilers = [open_compiler("gcc", "c", level) for level in ("O0", "O2")]
    comparison = Comparison(num_permutations=19, num_resamples=50)
    tree, tokenizer, made_from = program_tree
    sections = study_tree(tree, made_from, tokenizer, compilers, comparison, num_workers=2, seed=0)
    text = json.dumps(sections)
    return lambda: json.loads(text)


@pytest.fixture(scope="session")
def geometry_section(build_moe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The section of a small model's geometry, as it is read from a report's file; not to be changed."""
    from pathmoe_eval.geometry.analysis import GeometryOptions, analyse_geometry
    from pathmoe_eval.geometry.router_map import router_maps
    from pathmoe_eval.geometry.state_files import record_states
    from tests.eval.geometry.test_state_files import documents_of

    model = build_moe("olmoe")
    folder = tmp_path_factory.mktemp("geometry") / "states"
    documents = documents_of([30, 25, 40, 8])
    files = record_states(SimpleNamespace(model=model), documents, [0, 1, 2], folder, max_length=16, stride=8)
    options = GeometryOptions(num_pairs=300, num_token_classes=10)
    section = analyse_geometry(files, router_maps(model), [0, 1, 2], 1e-7, options)
    read: dict[str, Any] = json.loads(json.dumps(section))
    return read
