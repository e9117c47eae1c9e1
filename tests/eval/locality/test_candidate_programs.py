"""Programs as their tokens spell them, against known texts and lines; lines of equal assembly with real gcc."""

# Shapes: C completions.

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe.data import encode, train_bpe
from pathmoe.data.c_functions import c_program
from pathmoe_eval.locality.candidate_programs import candidate_programs, equal_lines
from pathmoe_eval.locality.pairs import completion_pairs
from pathmoe_eval.programs.compilers import open_compiler
from pathmoe_eval.programs.equivalence import compile_programs, equivalence
from pathmoe_eval.programs.sandbox import Limits

CORPUS = [c_program(0, index) for index in range(40)] + ["naïve\r\n\n\t世界\n"]
BPE = train_bpe(CORPUS, 600)


def lines_by_offsets(text: str) -> list[int]:
    """The line of each token of a text by the characters that the tokenizer says it stands for."""
    encoded = BPE(text, return_offsets_mapping=True, add_special_tokens=False)
    found = []
    for start, end in encoded["offset_mapping"]:
        blank = text[start:end]
        first = start + len(blank) - len(blank.lstrip())
        found.append(1 + text[:first].count("\n"))
    return found


def tree_of(plant_tree, texts: list[str]):
    completions = [[*ids, BPE.eos_token_id] for ids in encode(BPE, texts)]
    return plant_tree(completions, lambda *_: [[0, 1]], 4, prompt=(BPE.bos_token_id,))


@pytest.mark.parametrize("index", range(12))
def test_programs_and_their_lines_are_those_that_were_tokenised(plant_tree, index: int) -> None:
    texts = [c_program(1, index), c_program(2, index)]
    tree = tree_of(plant_tree, texts)
    for text, program in zip(texts, candidate_programs(tree, BPE), strict=True):
        assert program.text == text
        first, *lines, last = program.line_T.tolist()
        assert (first, last) == (-1, -1)
        assert lines == lines_by_offsets(text)


@given(st.text(st.sampled_from("ab \n\tï世{;"), max_size=30))
def test_of_any_text_pieces_of_characters_included(plant_tree, text: str) -> None:
    tree = tree_of(plant_tree, [text])
    (program,) = candidate_programs(tree, BPE)
    assert program.text == text
    assert program.line_T[1:-1].tolist() == lines_by_offsets(text)


def test_a_token_that_ends_sequences_is_no_text_even_if_it_is_not_special(plant_tree) -> None:
    (newline,) = encode(BPE, ["\n"])[0]
    tree = plant_tree([[*encode(BPE, ["int a;"])[0], newline]], lambda *_: [[0, 1]], 4, prompt=(BPE.bos_token_id,))
    assert candidate_programs(tree, BPE)[0].text == "int a;"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here")
def test_lines_of_equal_assembly_belong_together(program_tree) -> None:
    tree, tokenizer, _ = program_tree
    programs = candidate_programs(tree, tokenizer)
    compiler, limits = open_compiler("gcc", "c"), Limits()
    compilations = compile_programs([program.text for program in programs], compiler, limits, 2)
    group_C = np.full(len(programs), -1)
    for rank, group in enumerate(equivalence(compilations, compiler, limits).groups):
        group_C[list(group.members)] = rank
    pairs = completion_pairs(
        tree, relation="any", grouping="within", max_pairs=99, seed=0, group_C=group_C
    )  # fmt: skip
    completions = tree.completions()
    number = {node: place for place, node in enumerate(completions.tolist())}
    code = ("int f", "return", "}")
    for first, second, lines in zip(
        pairs.first_P.tolist(), pairs.second_P.tolist(), equal_lines(pairs, completions, compilations), strict=True
    ):
        # Each of the three lines that make instructions, wherever comments and blank lines have moved it.
        where = [
            [next(n for n, line in enumerate(program.text.split("\n"), 1) if mark in line) for mark in code]
            for program in (programs[number[first]], programs[number[second]])
        ]
        assert sorted(lines) == sorted(zip(*where, strict=True))
