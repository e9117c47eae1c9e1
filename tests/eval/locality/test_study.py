"""The study of a planted tree of real programs gives the numbers that were planted, also where nothing compiles."""

# Shapes: N nodes.

import json
import shutil
from dataclasses import replace

import pytest

from pathmoe.data import encode
from pathmoe_eval.generation.tree import CUT
from pathmoe_eval.locality.study import Comparison, study_tree
from pathmoe_eval.programs.compilers import open_compiler

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here")

COMPARISON = Comparison(num_permutations=19, num_resamples=50)


def study(program_tree, comparison: Comparison = COMPARISON, tree=None, language: str = "c"):
    planted, tokenizer, made_from = program_tree
    compilers = [open_compiler("gcc", language, level) for level in ("O0", "O2")]
    return study_tree(tree or planted, made_from, tokenizer, compilers, comparison, num_workers=2, seed=0)


@pytest.fixture(scope="module")
def sections(program_tree):
    return study(program_tree)


def test_groups_are_those_that_were_planted(sections) -> None:
    first, second = sections["equivalence"]["levels"]
    assert (first["level"], second["level"]) == ("O0", "O2")
    assert (first["num_completed"], first["num_compiled"], first["failures"]) == (8, 7, {"error": 1})
    assert [group["num_programs"] for group in first["groups"]] == [4, 2, 1]
    assert [(one["num_groups"], one["num_programs"]) for one in first["largest"]] == [(1, 4), (3, 7)]
    assert first["largest"][0]["share_of_compiled"] == 4 / 7 and first["largest"][0]["share_of_completed"] == 4 / 8
    # Of 6 + 1 pairs one has equal texts; of the others four have other comments, and three other blank lines.
    differences = sections["equivalence"]["differences"]
    assert (differences["num_pairs"], differences["num_differing_pairs"]) == (7, 6)
    assert differences["comments_share"] == pytest.approx(4 / 6)
    assert differences["blank_lines_share"] == pytest.approx(3 / 6)
    assert differences["only_comments_or_blank_lines_share"] == 1
    assert differences["names_share"] == differences["other_share"] == 0


def test_every_choice_of_pairs_and_alignments_is_there_and_the_first_leads(sections) -> None:
    kinds = [(one["relation"], one["grouping"], one["alignment"]) for one in sections["decomposition"]]
    assert kinds == [
        ("any", "within", "diff"), ("any", "within", "position"), ("any", "within", "lines"),
        ("any", "across", "diff"), ("any", "across", "position"),
        ("siblings", "within", "diff"), ("siblings", "within", "position"), ("siblings", "within", "lines"),
    ]  # fmt: skip
    # Pairs within groups: 6 + 1; across: 4 * 2 + 4 * 1 + 2 * 1.
    assert [one["num_pairs_available"] for one in sections["decomposition"][:5]] == [7, 7, 7, 14, 14]


def test_overlap_is_that_which_was_planted(sections) -> None:
    for one in sections["decomposition"]:
        if one["num_pairs"]:
            # In the first two layers the token alone decides.
            assert one["same_token"]["jaccard"] is None or one["same_token"]["jaccard_of_layer"][:2] == (1, 1)
        if one["alignment"] == "position" and one["same_token"]["jaccard"] is not None:
            # At one distance from the fork, so at one depth, which decides in the third.
            assert one["same_token"]["jaccard_of_layer"][2] == 1
            assert one["different_token"]["jaccard_of_layer"] is None or (
                one["different_token"]["jaccard_of_layer"][2] == 1
            )


def test_the_tree_the_unions_and_the_caches_are_of_all_completions(sections, program_tree) -> None:
    assert (sections["tree"]["num_completions"], sections["tree"]["num_distinct"]) == (8, 7)
    assert sections["tree"]["drawn"]["num_completions"] == 8
    assert sections["union_growth"]["num_samples"] == 8 and sections["union_growth"]["sample_counts"] == (1, 2, 4)
    # Where depth alone decides, all samples of a step want the same.
    assert set(sections["union_growth"]["union_of_layer"][2]) == {2.0}
    kinds = [(one["order"], one["start"]) for one in sections["caches"]]
    assert kinds == [("samples", "warm"), ("samples", "empty"), ("parallel", "warm")]
    assert all(one["bytes_per_expert"] == 1000 for one in sections["caches"])
    assert [phase["phase"] for phase in sections["phases"]["phases"]] == ["prefill", "generation", "cumulative"]
    json.dumps(sections, allow_nan=False)


def test_choices_are_kept_to(program_tree) -> None:
    comparison = replace(COMPARISON, pairs=("any",), alignments=("position",), max_pairs=5, max_cached=2)
    (one,) = study(program_tree, comparison)["decomposition"]
    assert (one["relation"], one["grouping"], one["alignment"]) == ("any", "any", "position")
    assert (one["num_pairs"], one["num_pairs_available"]) == (5, 28)


def test_where_nothing_compiles_the_study_goes_on(program_tree) -> None:
    tree, tokenizer, made_from = program_tree
    python = open_compiler("python3", "python")
    comparison = replace(COMPARISON, pairs=("within", "any"))
    found = study_tree(tree, made_from, tokenizer, [python], comparison, num_workers=1, seed=0)
    (level,) = found["equivalence"]["levels"]
    assert (level["num_compiled"], level["failures"]) == (0, {"error": 8})
    assert [one["num_pairs"] for one in found["decomposition"]] == [0, 0, 0, 28, 28]
    json.dumps(found, allow_nan=False)


def test_hostile_programs_are_failed_compilations_and_the_study_goes_on(program_tree, plant_tree) -> None:
    _, tokenizer, made_from = program_tree
    endings = [
        "return a; }\n",
        '#include "/dev/zero"\n}\n',
        'asm(".incbin \\"/etc/passwd\\""); return 0; }\n',
        "return " + "(" * 3000 + "a" + ")" * 3000 + "; }\n}\n",
        "return b; }\n",
    ]
    completions = [[*ids, tokenizer.eos_token_id] for ids in encode(tokenizer, endings)]
    tree = plant_tree(
        completions, lambda token, *_: [[token % 3, 3 + token % 5]], 8, prompt=tuple(made_from["prompt_ids"])
    )  # fmt: skip
    comparison = replace(COMPARISON, pairs=("across",), alignments=("position",))
    found = study_tree(
        tree, made_from, tokenizer, [open_compiler("gcc", "c")], comparison, num_workers=2, seed=0
    )  # fmt: skip
    (level,) = found["equivalence"]["levels"]
    assert (level["num_completed"], level["num_compiled"]) == (5, 2)
    assert level["failures"]["forbidden_include"] == 2
    assert found["decomposition"][0]["num_pairs"] == 1


def test_a_tree_without_completions_or_of_empty_ones_is_refused(program_tree, plant_tree) -> None:
    tree = program_tree.tree
    cut_N = tree.end_N.copy()
    cut_N[tree.completions()] = CUT
    with pytest.raises(
        ValueError, match=r"^--max_new_tokens \(64\) must let a completion end after some tokens, and none of 8"
    ):
        study(program_tree, tree=replace(tree, end_N=cut_N))
    with pytest.raises(ValueError, match=r"^--max_new_tokens \(64\) must let a completion end after some tokens"):
        study(program_tree, tree=plant_tree([[0], [0]], lambda *_: [[0, 1]], 2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pairs": ()}, r"--pairs \(\[\]\) must name one or more"),
        ({"alignments": ("diff", "diff")}, r"--alignments \(\['diff', 'diff'\]\) must name one or more, each once"),
        ({"max_pairs": 0}, r"--max_pairs \(0\) must be at least 1"),
        ({"num_permutations": 0}, r"--num_permutations \(0\) must be at least 1"),
        ({"max_cached": 0}, r"--max_cached \(0\) must be at least 1"),
        ({"num_resamples": 1}, r"--num_resamples \(1\) must be at least 2"),
        ({"confidence": 1.0}, r"--confidence \(1.0\) must lie between 0 and 1"),
    ],
)
def test_bad_choices_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Comparison(**fields)
