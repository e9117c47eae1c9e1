"""The text that a model is evaluated on: built-in sources, files and hub data sets, tokenised as the model knows it."""

# Shapes: N tokens of a document, V vocabulary.

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pathmoe.data import Source, TokenDataModule, encode
from pathmoe.data.local_files import find_files, read_file, read_records, text_of
from pathmoe.data.sources import C_FUNCTIONS, PYTHON_STDLIB, load_rows
from pathmoe.data.tokenizer import text_batches, token_byte_lengths
from pathmoe_eval.evaluation.evaluated_model import EvaluatedModel

HELD_OUT = "held-out"
"""Stands for what a model's run held out, whatever its source."""

_HUB_SPLIT = "validation"
_CHARACTERS_PER_BATCH = 200_000


@dataclass(frozen=True, kw_only=True)
class EvaluatedData:
    """What to evaluate on; the fields are options of the same names, `data` that of --data."""

    data: str | list[str] = PYTHON_STDLIB
    """python-stdlib or c-functions, of which only the held-out part is read; held-out, the documents that the model's
    run held out, of any source; a .txt, .jsonl, .json or .parquet file, a folder, a glob or a list of these; or the
    name of a hub data set, read as it is streamed. All else is read whole."""
    subset: str | None = None
    """Configuration of a hub data set."""
    split: str | None = None
    """Split of a hub data set; None is validation."""
    text_key: str = "text"
    """Key or column that holds the text of a record."""
    domain_key: str | None = None
    """Key or column that holds the domain of a record; without it, a document's domain is its file, or the source."""
    problem_key: str | None = None
    """Key or column that holds the problem that a record answers; its domain is then who wrote it."""
    max_documents: int | None = None
    """Documents to read at most, from the beginning."""
    max_document_tokens: int | None = None
    """Tokens to read of each document at most, from its beginning."""
    max_tokens: int | None = None
    """Tokens to read at most, bos and eos included; the last document is cut to make the number exact."""

    def __post_init__(self) -> None:
        """Refuse limits below 1, and a key of records where there are none."""
        for option in ("max_documents", "max_document_tokens", "max_tokens"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise ValueError(f"--{option} ({value}) must be at least 1; raise it or leave it out")
        for option in ("domain_key", "problem_key"):
            if (key := getattr(self, option)) is not None and self.data in (PYTHON_STDLIB, C_FUNCTIONS, HELD_OUT):
                raise ValueError(
                    f"--{option} ({key}) must not be set with --data {self.data}, which has no records; leave it out"
                )


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluatedDocument:
    """A document as a model gets it."""

    name: str
    """Its file or source, and its number there."""
    domain: str
    problem: str | None = None
    """What a record answers; None where no key was given."""
    text: str
    """The whole text, also where its tokens were cut."""
    token_ids: NDArray[np.int64]
    """[N], with the special tokens that the model expects around a document."""
    token_bytes: NDArray[np.float64]
    """[N] UTF-8 bytes of the text that each token stands for, 0 for special ones. Exact for byte-level tokenizers that
    do not normalise; for others the bytes of the text are shared out in proportion to the tokens' own lengths."""


class _Text(NamedTuple):
    name: str
    domain: str
    text: str
    problem: str | None = None


def read_evaluated(data: EvaluatedData, model: EvaluatedModel) -> Iterator[EvaluatedDocument]:
    """Documents of the data, in its order, tokenised; those without text are left out.

    Built-in sources give the documents that the model's run held out, or those that a run with default settings would
    have where its run was on other data. Models of this program get documents between bos and eos, as in training;
    others what their tokenizer puts around a text. Text that spells a special token stays text.

    Raises:
        ValueError: data that is empty or cannot be read, or a token id that the model has no embedding for.
    """
    num_documents = num_tokens = 0
    token_bytes_V = token_byte_lengths(model.tokenizer)
    with _as_options():
        texts = islice(_texts(data, model), data.max_documents)
        for batch in text_batches(texts, _CHARACTERS_PER_BATCH, lambda text: len(text.text)):
            for text, ids in zip(batch, _encode(model, [text.text for text in batch]), strict=True):
                document = _document(text, np.array(ids, dtype=np.int64), token_bytes_V)
                _check_vocabulary(document, model)
                if data.max_document_tokens is not None:
                    document = _first_tokens(document, data.max_document_tokens)
                if data.max_tokens is not None:
                    document = _first_tokens(document, data.max_tokens - num_tokens)
                num_documents, num_tokens = num_documents + 1, num_tokens + len(document.token_ids)
                yield document
                if num_tokens == data.max_tokens:
                    return
    if not num_documents:
        raise ValueError(f"--data ({data.data}) must hold text, but holds none; give other data")


def _first_tokens(document: EvaluatedDocument, number: int) -> EvaluatedDocument:
    return replace(document, token_ids=document.token_ids[:number], token_bytes=document.token_bytes[:number])


@contextmanager
def _as_options() -> Iterator[None]:
    """Have errors about data name the options that it was given by here."""
    try:
        yield
    except ValueError as error:
        message = re.sub(r"\bdata\.source\b", "--data", str(error))
        raise ValueError(re.sub(r"\bdata\.(text_key|subset|split)\b", r"--\1", message)) from error


# --- texts ---


def _texts(data: EvaluatedData, model: EvaluatedModel) -> Iterator[_Text]:
    if isinstance(data.data, str) and data.data in (PYTHON_STDLIB, C_FUNCTIONS):
        return _held_out(data.data, model.run_data)
    if data.data == HELD_OUT:
        if model.run_data is None:
            raise ValueError(
                f"--data ({HELD_OUT}) needs the run of --model ({model.name}), whose folder tells what it held out; "
                "give a run or a checkpoint in it, or other data"
            )
        return _texts_held_out(TokenDataModule(**model.run_data), str(model.run_data["source"]))
    source = Source(source=data.data, text_key=data.text_key)
    if source.has_splits:
        source = replace(source, subset=data.subset, split=data.split or _HUB_SPLIT)
        return _hub_texts(source, data)
    # A source that has neither refuses them.
    replace(source, subset=data.subset, split=data.split or source.split)
    return _file_texts(find_files(data.data), data)


def _held_out(source: str, run_data: dict[str, Any] | None) -> Iterator[_Text]:
    is_of_run = run_data is not None and run_data["source"] == source and not run_data.get("mixture")
    module = TokenDataModule(**run_data) if run_data is not None and is_of_run else TokenDataModule(source=source)
    return _texts_held_out(module, source)


def _texts_held_out(module: TokenDataModule, source: str) -> Iterator[_Text]:
    for number, document in enumerate(module.held_out_documents(), start=1):
        yield _Text(f"{source}, {document.group or 'document'} {number}", source, document.text)


def _hub_texts(source: Source, data: EvaluatedData) -> Iterator[_Text]:
    name = str(source.source)
    for number, row in enumerate(load_rows(source, streaming=True)):
        where = f"{name}, {source.split} row {number}"
        if text := text_of(row, source.text_key, where):
            yield _Text(
                where, _label(row, data, "domain_key", where) or name, text, _label(row, data, "problem_key", where)
            )


def _file_texts(files: list[Path], data: EvaluatedData) -> Iterator[_Text]:
    folder = os.path.commonpath([file.resolve().parent for file in files])
    labels = [key for key in (data.domain_key, data.problem_key) if key is not None]
    for file in files:
        domain = os.path.relpath(file.resolve(), folder)
        if file.suffix == ".txt":
            for option in ("domain_key", "problem_key"):
                if (key := getattr(data, option)) is not None:
                    raise ValueError(f"--{option} ({key}) must be a key of records, but {file} has none; leave it out")
            yield from (_Text(domain, domain, document.text) for document in read_file(file, data.text_key))
            continue
        for number, row in enumerate(read_records(file, list(dict.fromkeys([data.text_key, *labels]))), start=1):
            where = f"{file}, record {number}"
            if text := text_of(row, data.text_key, where):
                label, problem = (_label(row, data, option, where) for option in ("domain_key", "problem_key"))
                yield _Text(f"{domain}, record {number}", label or domain, text, problem)


def _label(row: dict[str, Any], data: EvaluatedData, option: str, where: str) -> str | None:
    """What a record has under the key that an option names; None where it names none."""
    key = getattr(data, option)
    if key is None:
        return None
    if key not in row:
        raise ValueError(f"--{option} ({key}) must be one of the keys of {where} ({', '.join(row)}); change it")
    value = row[key]
    if not isinstance(value, str | int) or value == "":
        raise ValueError(
            f"--{option} ({key}) must name text or whole numbers, but {where} holds {value!r:.40}; change it"
        )
    return str(value)


# --- tokens ---


def _encode(model: EvaluatedModel, texts: list[str]) -> list[list[int]]:
    tokenizer = model.tokenizer
    if model.ends_documents:
        bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        return [[*bos, *ids, tokenizer.eos_token_id] for ids in encode(tokenizer, texts)]
    encoded: Any = tokenizer(texts, split_special_tokens=True, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _document(text: _Text, token_ids_N: NDArray[np.int64], token_bytes_V: NDArray[np.int64]) -> EvaluatedDocument:
    num_bytes = len(text.text.encode())
    own_bytes_N = token_bytes_V[token_ids_N].astype(np.float64)
    own_bytes = int(own_bytes_N.sum())
    # Unknown tokens stand for text, too, but nobody knows for how much.
    scale = num_bytes / own_bytes if own_bytes else 0.0
    return EvaluatedDocument(
        name=text.name,
        domain=text.domain,
        problem=text.problem,
        text=text.text,
        token_ids=token_ids_N,
        token_bytes=own_bytes_N * scale,
    )


def _check_vocabulary(document: EvaluatedDocument, model: EvaluatedModel) -> None:
    highest = int(document.token_ids.max(initial=0))
    if highest >= model.vocab_size:
        raise ValueError(
            f"--model ({model.name}) has a tokenizer that gives {document.name} the token id {highest}, which must be "
            f"below the model's vocabulary ({model.vocab_size}); put the tokenizer beside it that it was trained with"
        )
