"""From a model and a prompt to a tree on disk, by tree search, by independent samples or by beam search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pathmoe.data import encode
from pathmoe.training.provenance import provenance
from pathmoe_eval.evaluation.evaluated_model import EvaluatedModel
from pathmoe_eval.evaluation.identity import model_identity
from pathmoe_eval.generation.beam_search import beam_search
from pathmoe_eval.generation.decoder import Decoder
from pathmoe_eval.generation.journal import Journal
from pathmoe_eval.generation.search import Limits, SearchedTree, check_prompt, tree_search
from pathmoe_eval.generation.segments import Sampling
from pathmoe_eval.generation.tree_files import write_tree
from pathmoe_eval.traces.moe_layers import MoELayer

JOURNAL_FILE = "journal.jsonl"


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How a prompt is gone on from: by tree search, unless it is to be by samples or by beams."""

    sampling: Sampling = field(default_factory=Sampling)
    limits: Limits = field(default_factory=Limits)
    """Of the search; beam search has `num_beams` and `sampling.max_new_tokens` only."""
    batch_size: int = 16
    """Sequences of a forward at most; the tree does not depend on it."""
    num_samples: int = 0
    """Sequences drawn independently of each other from the prompt's end (best-of-N sampling); with these max_mass is 0,
    so that they fork nowhere, and all of them are decoded."""
    num_beams: int = 0
    """Beams of a beam search."""

    def __post_init__(self) -> None:
        """Refuse numbers below 0, and samples together with beams."""
        for name in ("num_samples", "num_beams"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} ({getattr(self, name)}) must be at least 0; raise it")
        if self.num_samples and self.num_beams:
            raise ValueError(
                f"--num_beams ({self.num_beams}) must be 0 with --num_samples ({self.num_samples}); leave one out"
            )
        if self.num_samples:
            most = max(self.limits.max_completions, self.num_samples)
            object.__setattr__(self, "sampling", replace(self.sampling, max_mass=0.0))
            object.__setattr__(self, "limits", replace(self.limits, max_completions=most))

    @property
    def method(self) -> str:
        """`tree`, `samples` or `beams`."""
        return "beams" if self.num_beams else "samples" if self.num_samples else "tree"


def generate(
    model: EvaluatedModel,
    prompt: str,
    generation: Generation,
    folder: Path,
    prompt_file: Path | None = None,
    identity: Mapping[str, str] | None = None,
) -> SearchedTree:
    """Continue a prompt, and write `tree.arrow` and `journal.jsonl` into a folder.

    The journal lets a search that was interrupted go on, and one with higher limits use what another has decoded. The
    tree names what it was made from: model and its hash, tokenizer, prompt, options, forwarded tokens, versions.

    Args:
        model: to generate with.
        prompt: text to go on from; text that spells a special token stays text.
        generation: how.
        folder: made if it is not there.
        prompt_file: that the prompt is from; the tree names it.
        identity: `model_identity` of the model where it is known already, since large weights take minutes to hash.

    Raises:
        ValueError: a prompt without tokens, or that with `max_new_tokens` is longer than the model can read; a model
            without an end-of-sequence token; a folder of another search, or of one that runs.
    """
    prompt_ids, eos_ids = encode_prompt(model, prompt), end_ids(model)
    sampling, limit = generation.sampling, _max_length(model)
    if limit is not None and len(prompt_ids) + sampling.max_new_tokens > limit:
        raise ValueError(
            f"--max_new_tokens ({sampling.max_new_tokens}) must leave room for the prompt's {len(prompt_ids)} tokens "
            f"within the {limit} that the model can read; lower it"
        )
    search = {
        "model": model.name,
        **(model_identity(model.model) if identity is None else identity),
        "tokenizer": model.tokenizer_place,
        "prompt": prompt,
        "prompt_ids": prompt_ids,
        "eos_ids": sorted(eos_ids),
        "method": generation.method,
        "sampling": asdict(sampling),
    }
    check_prompt(prompt_ids, model.vocab_size)
    # A model without routers leaves no journal.
    with Decoder(model.model) as decoder, Journal(folder / JOURNAL_FILE, search) as journal:
        searched = _searched(decoder, prompt_ids, generation, eos_ids, model.vocab_size, journal)
        made_from = _made_from(search, generation, searched, decoder, prompt_file)
        # What earlier processes fed once more counts for none.
        made_from["num_forwarded"] += journal.num_fed_before
        write_tree(folder, searched.tree, made_from)
    return searched


def encode_prompt(model: EvaluatedModel, prompt: str) -> list[int]:
    """Token ids of a text that goes on: bos where the model knows it before texts, and no eos.

    Raises:
        ValueError: there are none.
    """
    tokenizer = model.tokenizer
    if model.ends_documents:
        ids = [*([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]), *encode(tokenizer, [prompt])[0]]
    else:
        encoded: Any = tokenizer(prompt, split_special_tokens=True, return_attention_mask=False, verbose=False)
        ids = list(encoded["input_ids"])
        # Of a tokenizer that ends texts. Where bos is the same token, an empty prompt is one.
        if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
            ids.pop()
    if not ids:
        raise ValueError(f"--prompt ({prompt!r}) must have at least one token; give text to go on from")
    return [int(token) for token in ids]


def end_ids(model: EvaluatedModel) -> frozenset[int]:
    """Tokens that end a sequence: those of the model's generation config, and its tokenizer's.

    Raises:
        ValueError: there are none.
    """
    config: Any = model.model.generation_config
    declared = None if config is None else config.eos_token_id
    ids = {*(declared if isinstance(declared, list) else [declared]), model.tokenizer.eos_token_id} - {None}
    if not ids:
        raise ValueError(
            f"--model ({model.name}) must have an end-of-sequence token; name one in its generation_config.json"
        )
    return frozenset(int(token) for token in ids)


def _searched(
    decoder: Decoder,
    prompt_ids: list[int],
    generation: Generation,
    eos_ids: frozenset[int],
    vocab_size: int,
    journal: Journal,
) -> SearchedTree:
    if generation.num_beams:
        return beam_search(
            decoder,
            prompt_ids,
            num_beams=generation.num_beams,
            max_new_tokens=generation.sampling.max_new_tokens,
            eos_ids=eos_ids,
            vocab_size=vocab_size,
        )
    return tree_search(
        decoder,
        prompt_ids,
        generation.sampling,
        generation.limits,
        eos_ids=eos_ids,
        vocab_size=vocab_size,
        batch_size=generation.batch_size,
        journal=journal,
        num_samples=generation.num_samples,
    )


def _made_from(
    search: Mapping[str, Any],
    generation: Generation,
    searched: SearchedTree,
    decoder: Decoder,
    prompt_file: Path | None,
) -> dict[str, Any]:
    return {
        **search,
        "prompt_file": None if prompt_file is None else str(prompt_file.resolve()),
        "limits": asdict(generation.limits),
        "batch_size": generation.batch_size,
        "num_samples": generation.num_samples,
        "num_beams": generation.num_beams,
        "num_forwarded": searched.num_forwarded,
        "num_read_again": searched.num_read_again,
        "num_forwards": decoder.num_steps,
        "bytes_per_expert": bytes_per_expert(decoder.recorder.layers),
        "layer_names": [layer.name for layer in decoder.recorder.layers],
        "router_of_layer": list(decoder.recorder.router_of_layer),
        "versions": provenance(),
    }


def bytes_per_expert(layers: Sequence[MoELayer]) -> int:
    """Bytes of one expert's parameters as they are loaded, mean over layers and experts."""
    sizes = [
        parameter.numel() * parameter.element_size() for layer in layers for parameter in layer.experts.parameters()
    ]
    return max(1, round(sum(sizes) / sum(layer.num_experts for layer in layers)))


def _max_length(model: EvaluatedModel) -> int | None:
    length = getattr(model.model.config.get_text_config(), "max_position_embeddings", None)
    return None if length is None else int(length)
