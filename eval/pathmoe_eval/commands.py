"""What each command of `pathmoe-eval` does, from its options to its files."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
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
from pathmoe_eval.evaluation.identity import (
    documents_identity,
    model_identity,
    recorded_identity,
    refuse_another_trace,
    trace_identity,
)
from pathmoe_eval.evaluation.perplexity import perplexity as perplexity_of_scores
from pathmoe_eval.evaluation.recording import record as record_trace
from pathmoe_eval.evaluation.scoring import TokenScores, join_scores, scored_batches
from pathmoe_eval.evaluation.windows import score_windows
from pathmoe_eval.experts.saturation import check_later, trace_saturation
from pathmoe_eval.perturbations.perturbing import Perturbations, measure_robustness
from pathmoe_eval.reports.report import (
    PAGE_FILE,
    REPORT_FILE,
    TRACE_FOLDER,
    read_report,
    refuse_another_report,
    write_report,
)
from pathmoe_eval.terminal_tables import perplexity_lines, robustness_lines
from pathmoe_eval.traces.moe_layers import moe_layers
from pathmoe_eval.traces.trace import RoutingTrace, open_trace

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
    run = run_of_documents(opened, model, data, documents, command)
    scores = _record(opened, documents, model, run, out, logits)
    print(f"{out}: routing of {_num_tokens(documents):,} tokens, {len(scores.position_N):,} of them scored")


def perplexity_command(model: ModelOptions, data: EvaluatedData, out: Path | None, command: str) -> None:
    """Print perplexity and bits per byte; with `out`, write a report of them."""
    opened = model.open()
    documents = list(read_evaluated(data, opened))
    run = {} if out is None else run_of_documents(opened, model, data, documents, command)
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
    """Write the report of a trace, or of a model's routing, whose trace then lies in the report's folder.

    A command that broke goes on, when it is given again, from what it has left: see `_recorded`.
    """
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
        opened = model.open()
        tokenizer = opened.tokenizer
        recorded = _recorded(opened, model, data, later_trace, out, logits, command)
    if tag is None:
        tag = load_tagger("python" if recorded.header.data == PYTHON_STDLIB else "text")
    run = _run_of_trace(recorded, command, options)
    refuse_another_report(out, run)
    if later_trace is not None:
        sections["saturation"] = asdict(trace_saturation(recorded, later_trace))
    sections |= analyse(recorded, tokenizer, tag, options)
    write_report(out, {"run": run, "sections": sections})
    print(f"{out / PAGE_FILE}: {recorded.num_tokens:,} tokens; every number is in {out / REPORT_FILE}")


def _recorded(
    opened: EvaluatedModel,
    model: ModelOptions,
    data: EvaluatedData,
    later: RoutingTrace | None,
    out: Path,
    logits: bool,
    command: str,
) -> RoutingTrace:
    """The trace of a model's routing, in the folder of a report that says its perplexity.

    A trace that is there and of this very run is not recorded again, and perplexity that the report has stays.
    """
    documents = list(read_evaluated(data, opened))
    run = run_of_documents(opened, model, data, documents, command)
    refuse_another_report(out, run)
    _check_before_recording(opened, documents, later)
    folder = out / TRACE_FOLDER
    if not folder.is_dir() or not any(folder.iterdir()):
        scores = _record(opened, documents, model, run, folder, logits)
    else:
        trace = open_trace(folder)
        refuse_another_trace(trace, run, logits)
        sys.stderr.write(f"note: {folder} is the trace of this run, which is not recorded again\n")
        if (out / REPORT_FILE).exists() and "perplexity" in read_report(out / REPORT_FILE)["sections"]:
            return trace
        scores = join_scores(scored_batches(opened.model, score_windows(documents, **model.windows(opened))))
    # Before the analysis, so that what breaks there costs no forward.
    write_report(out, {"run": run, "sections": {"perplexity": asdict(perplexity_of_scores(scores, documents))}})
    return open_trace(folder)


def _check_before_recording(
    opened: EvaluatedModel, documents: Sequence[EvaluatedDocument], later: RoutingTrace | None
) -> None:
    if max(len(document.token_ids) for document in documents) < 2:
        raise ValueError("--data (0 scored tokens) must hold a document of at least 2 tokens; give longer text")
    if later is not None:
        layers = moe_layers(opened.model)
        check_later(later, num_tokens=_num_tokens(documents), num_layers=len(layers), num_experts=layers[0].num_experts)


def perturb_command(
    model: ModelOptions, data: EvaluatedData, perturbations: Perturbations, out: Path, command: str
) -> None:
    """Write a report of perplexity under interventions, or add it to the report of the same model and data."""
    opened = model.open()
    documents = list(read_evaluated(data, opened))
    run = run_of_documents(opened, model, data, documents, command)
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
    run: Mapping[str, Any],
    folder: Path,
    logits: bool,
) -> TokenScores:
    return record_trace(
        opened,
        documents,
        folder,
        **model.windows(opened),
        data=run["data"],
        logits=logits,
        provenance={"command": run["command"], "identity": recorded_identity(run)} | provenance(),
    )


def _num_tokens(documents: Sequence[EvaluatedDocument]) -> int:
    return sum(len(document.token_ids) for document in documents)


def run_of_documents(
    opened: EvaluatedModel,
    model: ModelOptions,
    data: EvaluatedData,
    documents: Sequence[EvaluatedDocument],
    command: str,
) -> dict[str, Any]:
    """What a report says of its run, where nothing was recorded."""
    return {
        "command": command,
        "model": opened.name,
        "data": str(data.data),
        "num_tokens": _num_tokens(documents),
        "num_sequences": len(documents),
        **model.windows(opened),
        **model_identity(opened.model),
        **documents_identity(documents),
        "versions": provenance(),
        "created": now(),
    }


def now() -> str:
    """The date and time, UTC."""
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
    missing = f"the tokenizer of the trace ({name}) is not there" if name else "the trace names no tokenizer"
    sys.stderr.write(f"note: {missing}: without classes and tokens of paths\n")
    return None


def _run_of_trace(trace: RoutingTrace, command: str, options: Options) -> dict[str, Any]:
    """What a report says of its run."""
    header = trace.header
    return {
        "command": command,
        **trace_identity(trace),
        "num_sequences": trace.num_sequences,
        "num_layers": header.num_layers,
        "num_experts": header.num_experts,
        "num_experts_per_tok": header.num_experts_per_tok,
        "router_of_layer": list(header.router_of_layer),
        "layer_names": list(header.layer_names),
        "seed": options.seed,
        "versions": provenance(),
        "created": now(),
    }
