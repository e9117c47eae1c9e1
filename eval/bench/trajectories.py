"""Texts by several models, which go on from the same prompts, for `pathmoe-eval geometry --problem_key`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from pathmoe.training.errors import OneLineParser, fail, with_one_line_errors
from pathmoe_eval.commands import ModelOptions
from pathmoe_eval.evaluation.evaluated_data import EvaluatedData, read_evaluated
from pathmoe_eval.geometry.rollouts import generate_completions

_PROMPT_TOKENS = 21
_COMPLETION_TOKENS = 128
_TEXTS = 2


def main() -> None:
    """Write JSON lines with keys `text`, `author` and `problem` into the file of --out."""
    with_one_line_errors(_main)


def _main() -> None:
    parser = OneLineParser(description="Write how models go on from the same prompts, for pathmoe-eval geometry.")
    parser.add_argument("--models", nargs="+", required=True, help="Models of ours, which are the authors.")
    parser.add_argument("--data", required=True, help="Documents whose first tokens are the prompts.")
    parser.add_argument("--out", type=Path, required=True, help="File to write.")
    options = parser.parse_args()
    if len(set(options.models)) < len(options.models):
        fail(f"--models ({' '.join(options.models)}) must be different ones; take one out")
    if not options.out.parent.is_dir():
        fail(f"--out ({options.out}) must be a file in a folder that is there; make {options.out.parent} first")
    lines = [json.dumps(text) for text in trajectories(options.models, options.data)]
    options.out.write_text("\n".join(lines) + "\n")
    print(f"{options.out}: {len(lines)} texts")


def trajectories(models: Sequence[str], data: str) -> Iterator[dict[str, str]]:
    """Two completions of 128 tokens of the first 21 of each document, by each model; prompts are left out.

    No two share a seed, since models that draw with the same random numbers write texts that are more alike.

    Args:
        models: as `--model` of pathmoe-eval takes them.
        data: as its `--data`.

    Yields:
        The text, the model as its author, and the number of the document as the problem.
    """
    for author, name in enumerate(models):
        opened = ModelOptions(model=name).open()
        documents = read_evaluated(EvaluatedData(data=data, max_document_tokens=_PROMPT_TOKENS), opened)
        prompts = [document.token_ids for document in documents]
        for seed in range(_TEXTS * author, _TEXTS * (author + 1)):
            completions = generate_completions(opened.model, prompts, _COMPLETION_TOKENS, seed)
            for problem, completion in enumerate(completions):
                text = opened.tokenizer.decode(completion.tolist())
                yield {"text": text, "author": name, "problem": str(problem)}


if __name__ == "__main__":
    main()
