"""Every statistic of a trace, in a few passes over its chunks: the sections of a report."""

# Shapes: N tokens, L MoE layers, E experts, K experts per token, S sequences.

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from pathmoe_eval.classes.path_tokens import PathTokenCounts
from pathmoe_eval.classes.separation import SeparationCounts
from pathmoe_eval.classes.token_classes import ClassNames, Tagger
from pathmoe_eval.classes.trace_classes import InPieces, trace_classes
from pathmoe_eval.experts.coactivation import CoactivationCounts
from pathmoe_eval.experts.domain_specialisation import DomainCounts
from pathmoe_eval.experts.load import LoadCounts
from pathmoe_eval.experts.token_ids import with_next_ids
from pathmoe_eval.experts.vocabulary_specialisation import VocabularyCounts
from pathmoe_eval.intervals.document_intervals import document_intervals
from pathmoe_eval.intervals.routing_counts import RoutingCounts, router_score_sums
from pathmoe_eval.path_and_layer_counts import PathAndLayerCounts
from pathmoe_eval.traces.routing_chunk import RoutingChunk
from pathmoe_eval.traces.trace import RoutingTrace

_FREQUENT_PATHS = 20
_DOCUMENT_GROUPS = 4096  # of a sketch, whose memory must not grow with the documents (our choice)


class Options(NamedTuple):
    """What an analysis does beyond the usual."""

    sets: bool = False
    """Also take the sets of all chosen experts as the elements of paths."""
    olmoe_script: bool = False
    """Count co-activation and vocabulary as the scripts of OLMoE do."""
    seed: int = 0
    """Of the permutations behind nulls."""
    sketch: bool = False
    """Count in memory that does not grow with the tokens: paths by `PathSketch`, without sets and classes."""


def analyse(
    trace: RoutingTrace, tokenizer: PreTrainedTokenizerBase | None, tagger: Tagger, options: Options
) -> dict[str, Any]:
    """Sections of a report, by name, as `dataclasses.asdict` makes them; those that the trace has no data for are left
    out.

    Memory is bounded by the distinct paths (with their classes), the longest document and the documents' number, and
    with `options.sketch` not by the paths.

    Args:
        trace: to read several times.
        tokenizer: that of the trace; None leaves out what needs text: classes of tokens, and the tokens of paths.
        tagger: see `load_tagger`.
        options: what else to do.

    Raises:
        ValueError: what is damaged in the trace; what the tagger raises.
    """
    if options.sketch:
        tokenizer = None
    names = ClassNames()
    counts = TraceCounts(trace, options, has_classes=tokenizer is not None)
    classes = None if tokenizer is None else InPieces(trace_classes(trace.chunks(), tokenizer, tagger, names))
    for chunk, next_ids_N in with_next_ids(trace.chunks()):
        counts.update(chunk, next_ids_N, None if classes is None else classes.take(chunk.num_tokens))
    sections = counts.sections()
    if "router_scores" in sections:
        said = trace.header.provenance
        how = said.get("score_function_from", "trace" if "score_function" in said else "assumed")
        sections["router_scores"]["score_function_from"] = how
    if (intervals := document_intervals(trace, counts.routing_counts())) is not None:
        sections["intervals"] = asdict(intervals)
    if tokenizer is not None:
        assert counts.separation is not None
        sections["path_tokens"] = _path_tokens(trace, counts.separation, tokenizer, names)
    return sections


class TraceCounts:
    """The accumulators of the first pass."""

    def __init__(self, trace: RoutingTrace, options: Options, has_classes: bool) -> None:
        """Count what `trace` has, and with `has_classes` also how well paths separate classes."""
        header = trace.header
        layers = {"num_layers": header.num_layers, "num_experts": header.num_experts}
        shape = layers | {"num_experts_per_tok": header.num_experts_per_tok}
        self._options = options
        self._paths = PathAndLayerCounts(header, sets=options.sets, sketch=options.sketch)
        self._load = LoadCounts(**shape)
        self._coactivation = None
        if header.num_experts_per_tok > 1:
            self._coactivation = CoactivationCounts(**shape, olmoe_script=options.olmoe_script)
        self._scores = router_score_sums(header)
        self._domains = None
        if len(domains := trace.domains()) > 1:
            number_S = pc.fill_null(pc.index_in(trace.sequences()["domain"], pa.array(domains)), 0)
            self._domains = DomainCounts(
                **shape, domains=domains, domain_of_document_S=number_S.to_numpy(),
                max_groups=_DOCUMENT_GROUPS if options.sketch else None,
            )  # fmt: skip
        kinds = ["input", "next"] + (["predicted"] if header.has_predicted_ids else [])
        self._vocabulary = {
            kind: VocabularyCounts(**shape, vocab_size=header.vocab_size, num_ranks=1, layers=None) for kind in kinds
        }
        self.separation = SeparationCounts(**layers, router_of_layer=header.router_of_layer) if has_classes else None

    def update(
        self, chunk: RoutingChunk, next_ids_N: NDArray[np.integer], classes_N: NDArray[np.integer] | None
    ) -> None:
        """Add a chunk of the trace.

        Args:
            chunk: as the trace gives it.
            next_ids_N: integers [tokens], as `with_next_ids` gives them.
            classes_N: integers [tokens], the class of each; None without classes.

        Raises:
            ValueError: what does not fit the trace's header.
        """
        ids_NLK = chunk.expert_ids_NLK
        self._paths.update(ids_NLK)
        self._load.update(ids_NLK)
        if self._coactivation is not None:
            self._coactivation.update(ids_NLK)
        if self._scores is not None:
            assert chunk.logits_NLE is not None
            self._scores.update(chunk.logits_NLE, ids_NLK)
        if self._domains is not None:
            self._domains.update(ids_NLK, chunk.sequence_of_token_N())
        token_ids = {"input": chunk.token_ids_N, "next": next_ids_N, "predicted": chunk.predicted_ids_N}
        for kind, vocabulary in self._vocabulary.items():
            of_kind_N = token_ids[kind]
            assert of_kind_N is not None
            vocabulary.update(ids_NLK, of_kind_N)
        if self.separation is not None:
            assert classes_N is not None
            self.separation.update(ids_NLK[..., 0], classes_N, chunk.token_ids_N)

    def routing_counts(self) -> RoutingCounts:
        """The counts behind the figures that have an interval; not to be changed."""
        return RoutingCounts(
            paths=self._paths.exact_paths, consistency=self._paths.consistency, load=self._load, scores=self._scores
        )

    def sections(self) -> dict[str, Any]:
        """The sections of all that was counted."""
        options = self._options
        sections = self._paths.sections()
        sections["load"] = asdict(self._load.result())
        sections["vocabulary"] = {
            kind: asdict(counts.result(olmoe_script=options.olmoe_script, seed=options.seed))
            for kind, counts in self._vocabulary.items()
            if counts.num_tokens > 0
        }
        if self._coactivation is not None:
            sections["coactivation"] = asdict(self._coactivation.result())
        if self._scores is not None:
            sections["router_scores"] = asdict(self._scores.result())
        if self._domains is not None:
            sections["domains"] = asdict(self._domains.result())
        if self.separation is not None:
            sections["separation"] = asdict(self.separation.result(seed=options.seed))
        return sections


def _path_tokens(
    trace: RoutingTrace, separation: SeparationCounts, tokenizer: PreTrainedTokenizerBase, names: ClassNames
) -> list[dict[str, Any]]:
    """What the most frequent paths carry, whole and through each block of layers that share a router."""
    frequent = separation.most_frequent(_FREQUENT_PATHS)
    counts = {layers: PathTokenCounts(paths) for layers, paths in frequent.items()}
    for chunk in trace.chunks():
        for (first, last), of_part in counts.items():
            of_part.update(chunk.expert_ids_NLK[:, first:last, 0], chunk.token_ids_N, chunk.starts_S1)

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
