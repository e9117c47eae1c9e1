"""Every statistic of a trace, in a few passes over its chunks: the sections of a report."""

# Shapes: N tokens, L MoE layers, E experts, K experts per token, S sequences.

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from pathmoe_eval.classes.path_tokens import PathTokenCounts
from pathmoe_eval.classes.separation import SeparationCounts
from pathmoe_eval.classes.token_classes import ClassNames, Tagger
from pathmoe_eval.classes.trace_classes import trace_classes
from pathmoe_eval.experts.coactivation import CoactivationCounts
from pathmoe_eval.experts.domain_specialisation import DomainCounts
from pathmoe_eval.experts.token_ids import NO_ID, next_token_ids, shuffle_ids
from pathmoe_eval.experts.vocabulary_specialisation import VocabularyCounts
from pathmoe_eval.intervals.document_intervals import document_intervals
from pathmoe_eval.intervals.routing_counts import routing_counts
from pathmoe_eval.layer_blocks import fixed_blocks, layer_blocks
from pathmoe_eval.paths.concentration import concentration
from pathmoe_eval.paths.path_blocks import BlockCounts
from pathmoe_eval.paths.paths import PathCounts
from pathmoe_eval.traces.routing_chunk import RoutingChunk
from pathmoe_eval.traces.trace import RoutingTrace

_LAYERS_OF_A_BLOCK = 4  # where no layers share a router: as many as in PathB4, so that the two compare
_FREQUENT_PATHS = 20


class Options(NamedTuple):
    """What an analysis does beyond the usual."""

    sets: bool = False
    """Also take the sets of all chosen experts as the elements of paths."""
    olmoe_script: bool = False
    """Count co-activation and vocabulary as the scripts of OLMoE do."""
    seed: int = 0
    """Of the permutations behind nulls."""


def analyse(
    trace: RoutingTrace, tokenizer: PreTrainedTokenizerBase | None, tagger: Tagger, options: Options
) -> dict[str, Any]:
    """Sections of a report, by name, as `dataclasses.asdict` makes them; those that the trace has no data for are left
    out.

    Args:
        trace: to read several times.
        tokenizer: that of the trace; None leaves out what needs text: classes of tokens, and the tokens of paths.
        tagger: see `load_tagger`.
        options: what else to do.

    Raises:
        ValueError: what is damaged in the trace; what the tagger raises.
    """
    names = ClassNames()
    classes_N = None if tokenizer is None else trace_classes(trace.chunks(), tokenizer, tagger, names)
    counts = _Counts(trace, options, has_classes=classes_N is not None)
    start = 0
    for chunk in trace.chunks():
        stop = start + chunk.num_tokens
        counts.update(chunk, slice(start, stop), None if classes_N is None else classes_N[start:stop])
        start = stop
    sections = counts.sections(options)
    if "router_scores" in sections:
        said = trace.header.provenance
        how = said.get("score_function_from", "trace" if "score_function" in said else "assumed")
        sections["router_scores"]["score_function_from"] = how
    if (intervals := document_intervals(trace, counts.routing)) is not None:
        sections["intervals"] = asdict(intervals)
    if tokenizer is not None and classes_N is not None:
        assert counts.separation is not None
        sections["path_tokens"] = _path_tokens(trace, counts.separation, tokenizer, classes_N, names)
    return sections


class _Counts:
    """The accumulators of the first pass."""

    def __init__(self, trace: RoutingTrace, options: Options, has_classes: bool) -> None:
        header = trace.header
        layers = {"num_layers": header.num_layers, "num_experts": header.num_experts}
        shape = layers | {"num_experts_per_tok": header.num_experts_per_tok}
        routers = header.router_of_layer
        shared = len(set(routers)) < len(routers)
        blocks = layer_blocks(routers) if shared else fixed_blocks(header.num_layers, _LAYERS_OF_A_BLOCK)
        self.routing = routing_counts(header)
        self.blocks = BlockCounts(blocks=blocks, **layers)
        self.sets = PathCounts(**layers, set_size=header.num_experts_per_tok) if options.sets else None
        self.coactivation = None
        if header.num_experts_per_tok > 1:
            self.coactivation = CoactivationCounts(**shape, olmoe_script=options.olmoe_script)
        self.domains = None
        if len(domains := trace.domains()) > 1:
            number = {domain: index for index, domain in enumerate(domains)}
            of_sequence = [number.get(domain, 0) for domain in trace.sequences()["domain"].to_pylist()]
            self.domains = DomainCounts(**shape, domains=domains, domain_of_document_S=np.array(of_sequence))
        self.ids = _ids(trace)
        self.shuffled = {kind: shuffle_ids(ids_N, options.seed) for kind, ids_N in self.ids.items()}
        self.vocabulary = {
            kind: VocabularyCounts(**shape, vocab_size=header.vocab_size, num_ranks=1, layers=None)
            for kind, ids_N in self.ids.items()
            if (ids_N != NO_ID).any()
        }
        self.separation = SeparationCounts(**layers, router_of_layer=routers) if has_classes else None

    def update(self, chunk: RoutingChunk, tokens: slice, classes_N: NDArray[np.integer] | None) -> None:
        ids_NLK = chunk.expert_ids_NLK
        top1_NL = ids_NLK[..., 0]
        self.routing.update(chunk, slice(None))
        self.blocks.update(top1_NL)
        if self.sets is not None:
            self.sets.update(ids_NLK)
        if self.coactivation is not None:
            self.coactivation.update(ids_NLK)
        if self.domains is not None:
            self.domains.update(ids_NLK, chunk.sequence_of_token_N())
        for kind, vocabulary in self.vocabulary.items():
            vocabulary.update(ids_NLK, self.ids[kind][tokens], self.shuffled[kind][tokens])
        if self.separation is not None:
            assert classes_N is not None
            self.separation.update(top1_NL, classes_N, chunk.token_ids_N)

    def sections(self, options: Options) -> dict[str, Any]:
        consistency, scores = self.routing.consistency, self.routing.scores
        sections: dict[str, Any] = {
            "concentration": {
                "whole": asdict(concentration(self.routing.paths)),
                "blocks": [asdict(block) for block in self.blocks.result()],
            },
            "load": asdict(self.routing.load.result()),
            "vocabulary": {
                kind: asdict(counts.result(olmoe_script=options.olmoe_script))
                for kind, counts in self.vocabulary.items()
            },
        }
        if self.sets is not None:
            sections["concentration"]["sets"] = asdict(concentration(self.sets))
        if consistency is not None:
            sections["consistency"] = asdict(consistency.result())
            sections["flow"] = consistency.adjacent_top1().tolist()
        if self.coactivation is not None:
            sections["coactivation"] = asdict(self.coactivation.result())
        if scores is not None:
            sections["router_scores"] = asdict(scores.result())
        if self.domains is not None:
            sections["domains"] = asdict(self.domains.result())
        if self.separation is not None:
            sections["separation"] = asdict(self.separation.result(seed=options.seed))
        return sections


def _ids(trace: RoutingTrace) -> dict[str, NDArray[np.integer]]:
    """Ids [tokens] whose experts the vocabulary is about: of the token, of the next one, and of the predicted one."""
    chunks = list(trace.chunks())
    token_ids_N = np.concatenate([chunk.token_ids_N for chunk in chunks])
    sequence_of_N = np.concatenate([chunk.sequence_of_token_N() for chunk in chunks])
    starts_S1 = np.concatenate([[0], np.flatnonzero(np.diff(sequence_of_N)) + 1, [len(token_ids_N)]])
    ids = {"input": token_ids_N, "next": next_token_ids(token_ids_N, starts_S1)}
    if trace.header.has_predicted_ids:
        ids["predicted"] = np.concatenate([np.asarray(chunk.predicted_ids_N) for chunk in chunks])
    return ids


def _path_tokens(
    trace: RoutingTrace,
    separation: SeparationCounts,
    tokenizer: PreTrainedTokenizerBase,
    classes_N: NDArray[np.integer],
    names: ClassNames,
) -> list[dict[str, Any]]:
    """What the most frequent paths carry, whole and through each block of layers that share a router."""
    frequent = separation.most_frequent(_FREQUENT_PATHS)
    counts = {layers: PathTokenCounts(paths) for layers, paths in frequent.items()}
    start = 0
    for chunk in trace.chunks():
        stop = start + chunk.num_tokens
        for (first, last), of_part in counts.items():
            of_part.update(
                chunk.expert_ids_NLK[:, first:last, 0], chunk.token_ids_N, classes_N[start:stop], chunk.starts_S1
            )
        start = stop

    def text(token_id: int) -> str:
        return str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))

    return [
        {
            "first_layer": first,
            "num_layers": last - first,
            "paths": [asdict(path) for path in of_part.result(text, names.names)],
        }
        for (first, last), of_part in counts.items()
    ]
