"""What each command of `pathmoe-eval` does, from its options to its files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pathmoe.data.hub import go_offline_without_hub
from pathmoe.data.sources import PYTHON_STDLIB
from pathmoe.training.provenance import provenance
from pathmoe_eval.analysis import Options, analyse
from pathmoe_eval.classes.token_classes import load_tagger
from pathmoe_eval.evaluation.evaluated_data import EvaluatedData, EvaluatedDocument, read_evaluated
from pathmoe_eval.evaluation.evaluated_model import DType, EvaluatedModel, open_model
from pathmoe_eval.evaluation.perplexity import perplexity as perplexity_of_scores
from pathmoe_eval.evaluation.recording import record as record_trace
from pathmoe_eval.evaluation.scoring import TokenScores, join_scores, scored_batches
from pathmoe_eval.evaluation.windows import score_windows
from pathmoe_eval.experts.saturation import trace_saturation
from pathmoe_eval.perturbations.perturbing import Perturbations, measure_robustness
from pathmoe_eval.reports.report import PAGE_FILE, REPORT_FILE, refuse_another_report, write_report
from pathmoe_eval.terminal_tables import perplexity_lines, robustness_lines
from pathmoe_eval.traces.trace import RoutingTrace, open_trace

TRACE_FOLDER = "trace"
_LONGEST_WINDOW = 4096


class _Windows(TypedDict):
    max_length: int
    stride: int


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """A model and how it reads documents."""

    model: str
    """A run folder, a checkpoint, last, a transformers folder, or a name on the hub."""
    dtype: DType = "auto"
    """Of the parameters; auto keeps that of the checkpoint."""
    device: str = "auto"
    """As torch names it; auto is cuda where there is one, else cpu."""
    max_length: int | None = None
    """Tokens of a forward at most; None takes the model's context, up to 4096."""
    stride: int | None = None
    """Tokens between the beginnings of two windows of a document; None takes half of max_length."""

    def open(self) -> EvaluatedModel:
        """The model, in evaluation mode."""
        return open_model(self.model, self.dtype, self.device)

    def windows(self, model: EvaluatedModel) -> _Windows:
        """max_length and stride as `score_windows` takes them."""
        max_length = self.max_length
        if max_length is None:
            max_length = min(model.context_length or _LONGEST_WINDOW, _LONGEST_WINDOW)
        stride = max(1, max_length // 2) if self.stride is None else self.stride
        return {"max_length": max_length, "stride": stride}


def record_command(model: ModelOptions, data: EvaluatedData, out: Path, logits: bool, command: str) -> None:
    """Write the routing of every token of the data as a trace."""
    opened = model.open()
    documents = list(read_evaluated(data, opened))
    scores = _record(opened, documents, model, data, out, logits, command)
    print(f"{out}: routing of {_num_tokens(documents):,} tokens, {len(scores.position_N):,} of them scored")


def perplexity_command(model: ModelOptions, data: EvaluatedData, out: Path | None, command: str) -> None:
    """Print perplexity and bits per byte; with `out`, write a report of them."""
    opened = model.open()
    documents = list(read_evaluated(data, opened))
    run = _run_of_documents(opened, data, documents, command)
    if out is not None:
        refuse_another_report(out, run)
    batches = scored_batches(opened.model, score_windows(documents, **model.windows(opened)))
    result = perplexity_of_scores(join_scores(batches), documents)
    for line in perplexity_lines(result):
        print(line)
    if out is not None:
        write_report(out, {"run": run, "sections": {"perplexity": asdict(result)}})


def paths_command(
    model: ModelOptions | None,
    data: EvaluatedData,
    trace: Path | None,
    out: Path,
    later: Path | None,
    tagger: str | None,
    logits: bool,
    options: Options,
    command: str,
) -> None:
    """Write the report of a trace, or of a model's routing, whose trace then lies in the report's folder."""
    refuse_another_report(out, {})
    tag = None if tagger is None else load_tagger(tagger)
    later_trace = None if later is None else open_trace(later)
    sections: dict[str, Any] = {}
    if model is None:
        assert trace is not None
        recorded = open_trace(trace)
        if data.max_tokens is not None:
            recorded = recorded.first(data.max_tokens)
        tokenizer = _tokenizer_of(recorded, tagger)
    else:
        _refuse_recorded(out)
        opened = model.open()
        tokenizer = opened.tokenizer
        documents = list(read_evaluated(data, opened))
        refuse_another_report(out, _run_of_documents(opened, data, documents, command))
        scores = _record(opened, documents, model, data, out / TRACE_FOLDER, logits, command)
        sections["perplexity"] = asdict(perplexity_of_scores(scores, documents))
        recorded = open_trace(out / TRACE_FOLDER)
    if tag is None:
        tag = load_tagger("python" if recorded.header.data == PYTHON_STDLIB else "text")
    sections |= analyse(recorded, tokenizer, tag, options)
    if later_trace is not None:
        sections["saturation"] = asdict(trace_saturation(recorded, later_trace))
    write_report(out, {"run": _run_of_trace(recorded, command, options), "sections": sections})
    print(f"{out / PAGE_FILE}: {recorded.num_tokens:,} tokens; every number is in {out / REPORT_FILE}")


def _refuse_recorded(out: Path) -> None:
    """Refuse to record again where a trace is, before the work begins."""
    if (trace := out / TRACE_FOLDER).exists():
        raise ValueError(
            f"--out ({out}) must hold no trace yet, but holds {trace}; analyse that with --trace {trace} in the place "
            "of --model, or remove it"
        )


def perturb_command(
    model: ModelOptions, data: EvaluatedData, perturbations: Perturbations, out: Path, command: str
) -> None:
    """Write a report of perplexity under interventions, or add it to the report of the same model and data."""
    opened = model.open()
    documents = list(read_evaluated(data, opened))
    run = _run_of_documents(opened, data, documents, command)
    refuse_another_report(out, run)
    result = measure_robustness(opened.model, documents, perturbations, **model.windows(opened))
    write_report(out, {"run": run, "sections": {"perturbation": asdict(result)}})
    for line in robustness_lines(result):
        print(line)
    print(f"{out / PAGE_FILE}: {result.num_tokens:,} scored tokens; every number is in {out / REPORT_FILE}")


def _record(
    opened: EvaluatedModel,
    documents: Sequence[EvaluatedDocument],
    model: ModelOptions,
    data: EvaluatedData,
    folder: Path,
    logits: bool,
    command: str,
) -> TokenScores:
    return record_trace(
        opened,
        documents,
        folder,
        **model.windows(opened),
        data=str(data.data),
        logits=logits,
        provenance={"command": command} | provenance(),
    )


def _num_tokens(documents: Sequence[EvaluatedDocument]) -> int:
    return sum(len(document.token_ids) for document in documents)


def _run_of_documents(
    opened: EvaluatedModel, data: EvaluatedData, documents: Sequence[EvaluatedDocument], command: str
) -> dict[str, Any]:
    """What a report says of its run, where nothing was recorded."""
    return {
        "command": command,
        "model": opened.name,
        "data": str(data.data),
        "num_tokens": _num_tokens(documents),
        "num_sequences": len(documents),
        "versions": provenance(),
        "created": _now(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _tokenizer_of(trace: RoutingTrace, tagger: str | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer that the trace names; without one that is there, None, which stderr is told."""
    name = trace.header.tokenizer
    try:
        if name:
            if not Path(name).is_dir():
                go_offline_without_hub()
            return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError):
        pass
    if tagger is not None:
        raise ValueError(
            f"--tagger ({tagger}) needs the tokenizer of the trace ({name}), which is not there; leave it out"
        )
    sys.stderr.write(f"note: the tokenizer of the trace ({name}) is not there: without classes and tokens of paths\n")
    return None


def _run_of_trace(trace: RoutingTrace, command: str, options: Options) -> dict[str, Any]:
    """What a report says of its run."""
    header = trace.header
    return {
        "command": command,
        "model": header.model,
        "data": header.data,
        "num_tokens": trace.num_tokens,
        "num_sequences": trace.num_sequences,
        "num_layers": header.num_layers,
        "num_experts": header.num_experts,
        "num_experts_per_tok": header.num_experts_per_tok,
        "router_of_layer": list(header.router_of_layer),
        "layer_names": list(header.layer_names),
        "seed": options.seed,
        "versions": provenance(),
        "created": _now(),
    }
