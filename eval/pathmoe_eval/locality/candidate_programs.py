"""The program that each completion of a tree spells, and the line of it that each token belongs to."""

# Shapes: T tokens of a sequence, C completions.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from pathmoe_eval.generation.tree import GenerationTree
from pathmoe_eval.locality.pairs import CompletionPairs
from pathmoe_eval.programs.compilation import Compilation


@dataclass(frozen=True, kw_only=True, eq=False)
class CandidateProgram:
    """Prompt and completion as one text."""

    text: str
    """Without special tokens and without the token that ended it."""
    line_T: NDArray[np.int64]
    """int64 [tokens of its path]: the line of each, from 1; -1 for tokens that are no text."""


def candidate_programs(tree: GenerationTree, tokenizer: PreTrainedTokenizerBase) -> list[CandidateProgram]:
    """The programs of a tree, in the order of `tree.completions()`.

    A token belongs to the line of its first character that is no whitespace; one of whitespace alone to the line on
    which it ends, so that indentation goes with what it indents (our choice).
    """
    lines_of_token: dict[int, tuple[int, int] | None] = {}
    programs = []
    for completion in tree.completions().tolist():
        token_ids = tree.token_ids_N[tree.path(completion)].tolist()
        text = _decoded(token_ids[:-1], tokenizer)
        for token in token_ids:
            if token not in lines_of_token:
                lines_of_token[token] = _lines_of_token(token, tokenizer)
        programs.append(CandidateProgram(text=text, line_T=_lines([lines_of_token[token] for token in token_ids])))
    return programs


def equal_lines(
    pairs: CompletionPairs, completions_C: NDArray[np.int64], compilations: Sequence[Compilation]
) -> list[list[tuple[int, int]]]:
    """For each pair of equivalent programs, lines of the first with lines of the second.

    Equal assembly line by line, so that two lines belong together where the same instruction is from the one here and
    from the other there. In the order of the assembly, each pair of lines once.

    Args:
        pairs: of programs with the same assembly.
        completions_C: `tree.completions()`.
        compilations: of these.
    """
    place_of = {completion: place for place, completion in enumerate(completions_C.tolist())}
    found = []
    for nodes in zip(pairs.first_P.tolist(), pairs.second_P.tolist(), strict=True):
        first, second = (compilations[place_of[node]].source_lines for node in nodes)
        both = dict.fromkeys(zip(first, second, strict=True))
        found.append([(here, there) for here, there in both if here is not None and there is not None])
    return found


def _decoded(token_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _lines_of_token(token: int, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int] | None:
    """Line ends in a token, those before its line and all; None of a special token."""
    # A line end is one byte in every vocabulary, also beside pieces of characters that do not decode alone.
    text = _decoded([token], tokenizer)
    if not text:
        return None
    leading = text[: len(text) - len(text.lstrip())]
    return leading.count("\n"), text.count("\n")


def _lines(lines_of_token: Sequence[tuple[int, int] | None]) -> NDArray[np.int64]:
    line_T = np.full(len(lines_of_token), -1, dtype=np.int64)
    line = 1
    for place, found in enumerate(lines_of_token):
        if found is not None:
            line_T[place] = line + found[0]
            line += found[1]
    return line_T
