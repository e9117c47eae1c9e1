"""Tables for the terminal: their numbers, and 80 columns whatever is in them."""

from typing import Any

from pathmoe_eval.evaluation.perplexity import DomainPerplexity, PerplexityResult, PerplexityWithInterval
from pathmoe_eval.perturbations.robustness import PerturbedPerplexity, Robustness
from pathmoe_eval.terminal_tables import perplexity_lines, robustness_lines

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


def perturbed(name: str, setting: float | None, value: float | None) -> PerturbedPerplexity:
    return PerturbedPerplexity(
        intervention=name,
        setting=setting,
        num_seeds=1,
        perplexity=value,
        perplexity_of_seed=(value,),
        rise_percent=value,
        rise_percent_interval=None if value is None else (value - 1, value + 1),
        rise_percent_seed_std=None,
        listed_share=None,
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


def test_perturbations() -> None:
    result = Robustness(
        num_documents=3,
        num_tokens=9,
        free_perplexity=10.0,
        perturbed=(
            perturbed("permutation of a long name per layer", None, 123456.7),
            perturbed("logit noise", 0.5, 0.25),
            perturbed("x", 3.0, None),
        ),
        permutations=None,
        confidence=0.95,
        num_resamples=10,
        seed=0,
    )
    lines = robustness_lines(result)
    assert lines[2].split() == ["logit", "noise", "0.5", "0.25", "+0.2", "-0.8", "to", "1.2"]
    assert lines[3].split() == ["x", "3"]
    assert max(map(len, lines)) <= 80
