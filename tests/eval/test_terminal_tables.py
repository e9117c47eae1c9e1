"""Tables for the terminal: their numbers, and 80 columns whatever is in them."""

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.evaluation.perplexity import DomainPerplexity, PerplexityResult, PerplexityWithInterval
from pathmoe_eval.perturbations.robustness import PerturbedPerplexity, Robustness
from pathmoe_eval.terminal_tables import locality_lines, perplexity_lines, robustness_lines, task_lines

FIGURES: dict[str, Any] = {"num_documents": 3, "num_tokens": 123_456_789, "num_bytes": 1e9, "nats": 5e8}


def perplexity(domains: list[str], value: float | None = 57.5) -> PerplexityResult:
    interval = None if value is None else (value - 1, value + 1)
    of = FIGURES | {
        "perplexity": value, "bits_per_byte": value and value / 50, "perplexity_interval": interval,
        "bits_per_byte_interval": None,
    }  # fmt: skip
    return PerplexityResult(
        total=PerplexityWithInterval(**of),
        by_domain=tuple(DomainPerplexity(domain=name, **of) for name in domains),
        by_document=(),
        confidence=0.95,
        num_resamples=10,
        seed=0,
    )


def perturbed(
    name: str, setting: float | None, value: float | None, listed_share: float | None = None
) -> PerturbedPerplexity:
    return PerturbedPerplexity(
        intervention=name,
        setting=setting,
        num_seeds=1,
        perplexity=value,
        perplexity_of_seed=(value,),
        rise_percent=value,
        rise_percent_interval=None if value is None else (value - 1, value + 1),
        rise_percent_seed_std=None,
        listed_share=listed_share,
    )


def test_perplexity_of_all_and_of_domains() -> None:
    lines = perplexity_lines(perplexity(["news", "a domain of a name that is longer than a column"]))
    assert lines[1].split() == ["all", "123,456,789", "57.500", "56.50", "to", "58.50", "1.1500"]
    assert lines[2].split()[0] == "news"
    assert lines[-1] == "intervals: bootstrap over 3 documents"
    assert max(map(len, lines)) <= 80


def test_one_domain_is_all_of_it() -> None:
    assert len(perplexity_lines(perplexity(["news"]))) == 3


def test_what_is_not_defined_is_left_blank() -> None:
    lines = perplexity_lines(perplexity(["news"], None))
    assert len(lines) == 2
    assert lines[1].split() == ["all", "123,456,789"]


def robustness(*perturbed: PerturbedPerplexity, paths_from: str | None = None) -> Robustness:
    return Robustness(
        num_documents=3,
        num_tokens=9,
        free_perplexity=10.0,
        perturbed=perturbed,
        permutations=None,
        confidence=0.95,
        num_resamples=10,
        seed=0,
        paths_from=paths_from,
    )


def test_perturbations() -> None:
    lines = robustness_lines(
        robustness(
            perturbed("permutation of a long name per layer", None, 123456.7),
            perturbed("logit noise", 0.5, 0.25),
            perturbed("x", 3.0, None),
        )
    )
    assert lines[2].split() == ["logit", "noise", "0.5", "0.25", "+0.2", "-0.8", "to", "1.2"]
    assert lines[3].split() == ["x", "3"]
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(("paths_from", "of"), [(None, "the scored documents themselves"), ("a/trace", "a/trace")])
def test_lists_of_paths_say_how_many_tokens_are_on_them_and_where_they_are_from(
    paths_from: str | None, of: str
) -> None:
    few, every = perturbed("listed paths only", 100, 5.0, 0.75), perturbed("listed paths only", None, 4.0, 1.0)
    lines = robustness_lines(robustness(few, every, paths_from=paths_from))
    assert [line.split()[-1] for line in lines[:3]] == ["listed", "75.0%", "all"]
    assert lines[2].startswith("listed paths only, all ")
    assert lines[3:] == [
        "listed: tokens on listed paths; with all, only repeated context may change",
        f"paths are of {of}",
    ]
    assert max(map(len, lines)) <= 80


@given(st.floats(-2, 2) | st.floats(-1e-3, 1e-3))
def test_nothing_is_shown_as_minus_zero(value: float) -> None:
    ends = {"rise_percent_interval": (-abs(value), abs(value))}
    lines = robustness_lines(robustness(replace(perturbed("x", None, 1.0), rise_percent=value, **ends)))
    total = replace(perplexity([]).total, bits_per_byte=value)
    lines += perplexity_lines(replace(perplexity([]), total=total))
    assert not re.search(r"-0\.0*(\s|$)", "\n".join(lines))


def level(num_compiled: int, language: str = "c") -> dict[str, Any]:
    share = {"num_groups": 1, "num_programs": 2, "share_of_completed": 0.25, "share_of_compiled": 0.5}
    return {
        "level": "O1", "language": language, "num_completed": 123_456, "num_compiled": num_compiled,
        "groups": [{}] * bool(num_compiled), "largest": [share] * bool(num_compiled),
    }  # fmt: skip


def test_a_study_has_its_groups_and_its_overlap() -> None:
    found = {"jaccard": 0.5, "multiple": 31.5}
    one = {
        "relation": "siblings", "grouping": "within", "alignment": "position", "num_pairs": 123_456,
        "same_token": found, "different_token": found | {"jaccard": None}, "jaccard_null_uniform_ratio": 0.0159,
    }  # fmt: skip
    sections = {"equivalence": {"levels": [level(9), level(0), level(9, "python")]}, "decomposition": [one]}
    lines = locality_lines(sections)
    assert lines[1].split() == ["-O1", "123,456", "9", "1", "50.0%"]
    assert lines[2].split() == ["-O1", "123,456", "0", "0"]
    assert lines[3].split()[0] == "1"
    assert lines[6].startswith("siblings within groups, by position")
    assert lines[6].split()[-3:] == ["123,456", "0.500", "(31.5x)"]
    assert lines[7] == "x: times the 0.0159 of independent uniform sets"
    assert all(len(line) <= 80 for line in lines)


def test_tasks_with_and_without_intervals_and_their_mean() -> None:
    acc = {"metric": "acc", "value": 0.625, "interval": [0.25, 1.0], "value_null": 0.5}
    other = {"metric": "a_metric_of_a_long_name", "value": 12345.678, "interval": None, "value_null": None}
    nothing = other | {"metric": "perplexity", "value": None}
    shots = {"task": "a task of a name that is longer than a column", "num_fewshot": 5, "num_documents": 12_345_678}
    results = [
        shots | {"metrics": [acc, other]},
        {"task": "x", "num_fewshot": None, "num_documents": 7, "metrics": [nothing]},
    ]
    lines = task_lines(results, {"value": 0.5, "interval": [0.4, 0.6], "value_null": None})
    assert lines[0].split() == ["task", "metric", "shots", "value", "95%", "interval", "chance", "documents"]
    assert lines[1].split()[-8:] == ["acc", "5", "0.6250", "0.2500", "to", "1.0000", "0.5000", "12,345,678"]
    assert lines[2].split()[-4:] == ["a_metric_of", "5", "12,346", "12,345,678"]
    assert lines[3].split() == ["x", "perplexity", "7"]
    assert lines[4].split() == ["mean", "of", "the", "tasks", "0.5000", "0.4000", "to", "0.6000"]
    assert max(map(len, lines)) <= 80
    assert len(task_lines(results, None)) == 4
