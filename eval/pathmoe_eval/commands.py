"""What each command of `pathmoe-eval` does, from its options to its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pathmoe.data.sources import PYTHON_STDLIB
from pathmoe.training.provenance import provenance
from pathmoe_eval.analysis import Options, analyse
from pathmoe_eval.evaluated_data import EvaluatedData, EvaluatedDocument, read_evaluated
from pathmoe_eval.evaluated_model import DType, EvaluatedModel, open_model
from pathmoe_eval.perplexity import PerplexityResult
from pathmoe_eval.perplexity import perplexity as perplexity_of_scores
from pathmoe_eval.recording import record as record_trace
from pathmoe_eval.report import write_report
from pathmoe_eval.saturation import Saturation, SaturationCounts
from pathmoe_eval.scoring import TokenScores, join_scores, scored_batches
from pathmoe_eval.token_classes import load_tagger
from pathmoe_eval.trace import RoutingTrace, open_trace
from pathmoe_eval.windows import score_windows

TRACE_FOLDER = "trace"
_LONGEST_WINDOW = 4096


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

    def windows(self, model: EvaluatedModel) -> dict[str, int]:
        """max_length and stride as `score_windows` takes them."""
        max_length = self.max_length
        if max_length is None:
            max_length = min(model.context_length or _LONGEST_WINDOW, _LONGEST_WINDOW)
        return {"max_length": max_length, "stride": max(1, max_length // 2) if self.stride is None else self.stride}


def record_command(model: ModelOptions, data: EvaluatedData, out: Path, logits: bool, command: str) -> None:
    """Write the routing of every token of the data as a trace."""
    opened = model.open()
    scores, _ = _record(opened, model, data, out, logits, command)
    print(f"{out}: routing of {open_trace(out).num_tokens:,} tokens, {len(scores.position_N):,} of them scored")


def perplexity_command(model: ModelOptions, data: EvaluatedData, out: Path | None, command: str) -> None:
    """Print perplexity and bits per byte; with `out`, write a report of them."""
    opened = model.open()
    documents = list(read_evaluated(data, opened))
    batches = scored_batches(opened.model, score_windows(documents, **model.windows(opened)))
    result = perplexity_of_scores(join_scores(batches), documents)
    for line in perplexity_lines(result):
        print(line)
    if out is not None:
        run = {"command": command, "model": opened.name, "data": str(data.data), "num_tokens": _num_tokens(documents)}
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
    sections: dict[str, Any] = {}
    tokenizer: PreTrainedTokenizerBase | None
    if trace is None:
        assert model is not None
        trace = out / TRACE_FOLDER
        opened = model.open()
        scores, documents = _record(opened, model, data, trace, logits, command)
        sections["perplexity"] = asdict(perplexity_of_scores(scores, documents))
        tokenizer = opened.tokenizer
    recorded = open_trace(trace)
    if model is None:
        tokenizer = _tokenizer_of(recorded)
    of_code = recorded.header.data == PYTHON_STDLIB
    sections |= analyse(recorded, tokenizer, load_tagger(tagger or ("python" if of_code else "text")), options)
    if later is not None:
        sections["saturation"] = asdict(saturation(recorded, open_trace(later)))
    write_report(out, {"run": run_of_trace(recorded, command, options), "sections": sections})
    print(f"{out / 'index.html'}: {recorded.num_tokens:,} tokens; every number in {out / 'report.json'}")


def _record(
    opened: EvaluatedModel, model: ModelOptions, data: EvaluatedData, folder: Path, logits: bool, command: str
) -> tuple[TokenScores, list[EvaluatedDocument]]:
    documents = list(read_evaluated(data, opened))
    scores = record_trace(
        opened,
        documents,
        folder,
        **model.windows(opened),
        data=str(data.data),
        logits=logits,
        provenance={"command": command} | provenance(),
    )
    return scores, documents


def _num_tokens(documents: Sequence[EvaluatedDocument]) -> int:
    return sum(len(document.token_ids) for document in documents)


def _tokenizer_of(trace: RoutingTrace) -> PreTrainedTokenizerBase | None:
    """The tokenizer that the trace names; None where it names none, or none that is there."""
    name = trace.header.tokenizer
    if not name:
        return None
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError):
        return None


def saturation(earlier: RoutingTrace, later: RoutingTrace) -> Saturation:
    """Picks that an earlier checkpoint shares with a later one, on the same tokens.

    Raises:
        ValueError: traces of other tokens, or of models of another shape.
    """
    header = earlier.header
    counts = SaturationCounts(
        num_layers=header.num_layers, num_experts=header.num_experts, num_experts_per_tok=header.num_experts_per_tok
    )
    if earlier.num_tokens != later.num_tokens:
        raise ValueError(
            f"--later ({later.num_tokens} tokens) must be a trace of the same {earlier.num_tokens} tokens; record both "
            "with the same --data, --max_tokens and windows"
        )
    # Chunks end where record batches do, which are of one size in traces of one shape.
    for one, two in zip(earlier.chunks(), later.chunks(), strict=True):
        counts.update(one.expert_ids_NLK, two.expert_ids_NLK, one.token_ids_N, two.token_ids_N)
    return counts.result()


def run_of_trace(trace: RoutingTrace, command: str, options: Options) -> dict[str, Any]:
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
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def perplexity_lines(result: PerplexityResult) -> list[str]:
    """A table for the terminal."""
    rows = [("all", result.total), *((domain.domain, domain) for domain in result.by_domain)]
    lines = [f"{'':24} {'tokens':>11} {'perplexity':>10} {'95% interval':>19} {'bits/byte':>9}"]
    for name, of in rows if len(result.by_domain) > 1 else rows[:1]:
        interval = "" if of.perplexity_interval is None else "{:.2f} to {:.2f}".format(*of.perplexity_interval)
        per_byte = "" if of.bits_per_byte is None else f"{of.bits_per_byte:.4f}"
        value = "" if of.perplexity is None else f"{of.perplexity:.3f}"
        lines.append(f"{name[:24]:24} {of.num_tokens:11,} {value:>10} {interval:>19} {per_byte:>9}")
    lines.append(f"intervals: bootstrap over {result.total.num_documents:,} documents")
    return lines
