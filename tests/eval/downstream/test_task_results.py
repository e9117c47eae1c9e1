"""Tasks on files, evaluated by the harness, against choices that are made from whole forwards."""

# Shapes: V vocabulary, S inputs.

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from lm_eval.tasks import TaskManager

from pathmoe.data import encode, train_bpe
from pathmoe_eval.downstream.harness_model import HarnessModel
from pathmoe_eval.downstream.task_list import load_tasks, name_of
from pathmoe_eval.downstream.task_results import TaskResult, evaluate_row, wilson_interval
from pathmoe_eval.evaluation.evaluated_model import EvaluatedModel
from tests.eval.downstream.test_task_list import task

WORDS = ("alpha", "beta", "gamma gamma", "delta")
QUESTIONS = [
    {"context": f"number {n} is", "choices": list(WORDS[: 2 + n % 3]), "answer": n % 2, "word": WORDS[n % 2]}
    for n in range(24)
]
ACC = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
ACC_NORM = ACC | {"metric": "acc_norm"}
PERPLEXITY = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
EXACT_MATCH = ACC | {"metric": "exact_match"}


@pytest.fixture(scope="module")
def opened(build_moe: Callable[..., Any]) -> EvaluatedModel:
    text = " ".join(question["context"] for question in QUESTIONS) + " ".join(WORDS)
    return EvaluatedModel(
        model=build_moe("path_b4", vocab_size=300),
        tokenizer=train_bpe([text], 290),
        name="m",
        ends_documents=True,
        run_data=None,
    )


@pytest.fixture
def evaluate(opened: EvaluatedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TaskResult]:
    """Evaluate a task of `QUESTIONS` with changes, or a group of two."""
    monkeypatch.chdir(tmp_path)
    Path("questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))

    def call(limit: int | None = None, seed: int = 0, max_length: int = 64, **changes: Any) -> TaskResult:
        Path("words.yaml").write_text(yaml.safe_dump(task("words", **changes)))
        (named,) = load_tasks("words.yaml")
        return evaluate_row(HarnessModel(opened, max_length), named.rows[0], limit, seed)

    return call


@torch.no_grad()
def log_likelihood(opened: EvaluatedModel, context: str, continuation: str) -> float:
    before, after = encode(opened.tokenizer, [context, continuation])
    ids = torch.tensor([opened.tokenizer.bos_token_id, *before, *after])
    log_probabilities_SV = opened.model(input_ids=ids[None]).logits[0].double().log_softmax(dim=-1)
    return sum(float(log_probabilities_SV[place - 1, ids[place]]) for place in range(1 + len(before), len(ids)))


def right(opened: EvaluatedModel, question: dict[str, Any], by_length: bool = False) -> str:
    scores = [
        log_likelihood(opened, question["context"], f" {choice}") / (len(choice) if by_length else 1)
        for choice in question["choices"]
    ]
    return str(int(scores.index(max(scores)) == question["answer"]))


def test_choices_are_those_of_the_highest_log_likelihood(
    opened: EvaluatedModel, evaluate: Callable[..., TaskResult]
) -> None:
    result = evaluate(metric_list=[ACC, ACC_NORM])
    acc, acc_norm = result.metrics
    expected = ["".join(right(opened, question, by_length) for question in QUESTIONS) for by_length in (False, True)]
    assert [acc.of_document, acc_norm.of_document] == expected
    assert {*expected[0]} == {"0", "1"}
    num_right = expected[0].count("1")
    assert acc.value == pytest.approx(num_right / 24)
    assert acc.interval == wilson_interval(num_right, 24)
    assert acc.value_null == acc_norm.value_null == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert (result.task, result.num_fewshot, result.num_documents, result.parts) == ("words", 0, 24, ())
    assert (result.num_requests, result.num_truncated) == (8 * (2 + 3 + 4), 0)


def test_an_interval_is_wilsons() -> None:
    for num_right, number in ((0, 10), (3, 10), (500, 1000), (10, 10)):
        share, z = num_right / number, 1.959963984540054
        middle = (share + z**2 / (2 * number)) / (1 + z**2 / number)
        half = z / (1 + z**2 / number) * math.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
        assert wilson_interval(num_right, number) == pytest.approx((middle - half, middle + half), abs=1e-12)


def test_several_right_choices_raise_chance(evaluate: Callable[..., TaskResult]) -> None:
    result = evaluate(doc_to_target="{{[0, 1]}}")
    assert result.metrics[0].value_null == pytest.approx((2 / 2 + 2 / 3 + 2 / 4) / 3)


def test_a_limit_takes_the_first_documents(evaluate: Callable[..., TaskResult]) -> None:
    whole, first = evaluate().metrics[0], evaluate(limit=5)
    assert whole.of_document is not None
    assert first.metrics[0].of_document == whole.of_document[:5]
    assert first.num_documents == 5


def test_a_figure_that_is_no_share_of_documents_has_no_interval(
    opened: EvaluatedModel, evaluate: Callable[..., TaskResult]
) -> None:
    result = evaluate(
        output_type="loglikelihood", doc_to_target="{{' ' + word}}", doc_to_choice=None, metric_list=[PERPLEXITY]
    )
    (perplexity,) = result.metrics
    total = sum(log_likelihood(opened, question["context"], " " + question["word"]) for question in QUESTIONS)
    assert perplexity.value == pytest.approx(math.exp(-total / 24), rel=1e-4)
    assert (perplexity.interval, perplexity.value_null, perplexity.of_document) == (None, None, None)


def test_completions_are_compared_with_what_was_asked_for(
    opened: EvaluatedModel, evaluate: Callable[..., TaskResult]
) -> None:
    harness_model = HarnessModel(opened, 64)
    options = {"until": [], "max_gen_toks": 2, "do_sample": False}
    completion = harness_model._complete(QUESTIONS[0]["context"], options)
    result = evaluate(
        output_type="generate_until", doc_to_choice=None, doc_to_target=completion, metric_list=[EXACT_MATCH],
        generation_kwargs=options,
    )  # fmt: skip
    expected = [harness_model._complete(question["context"], options) == completion for question in QUESTIONS]
    assert result.metrics[0].of_document == "".join(str(int(one)) for one in expected)
    assert result.metrics[0].value_null is None
    assert result.num_requests == 24


def test_examples_before_a_question_follow_the_seed(evaluate: Callable[..., TaskResult]) -> None:
    changes = {"num_fewshot": 2, "fewshot_split": "train", "max_length": 12}
    first, same, other = (evaluate(seed=seed, **changes) for seed in (1, 1, 2))
    assert first == same
    assert first.prompts_hash != other.prompts_hash != evaluate(num_fewshot=0).prompts_hash
    assert first.recipe == other.recipe
    assert first.num_fewshot == 2
    assert 0 < first.num_truncated <= first.num_requests


@pytest.mark.parametrize("by_size", [True, False])
def test_a_group_that_counts_as_one_has_the_documents_of_its_tasks(
    by_size: bool, opened: EvaluatedModel, evaluate: Callable[..., TaskResult]
) -> None:
    small = task("small", process_docs=None, dataset_kwargs={"data_files": "small.jsonl"})
    Path("small.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS[1:8:2])))
    group = {
        "group": "both", "task": [task("words"), small],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": by_size}],
    }  # fmt: skip
    Path("both.yaml").write_text(yaml.safe_dump(group))
    ((row,),) = [one.rows for one in load_tasks("both.yaml", TaskManager(include_defaults=False))]
    result = evaluate_row(HarnessModel(opened, 64), row, None, 0)
    words, few = (part.metrics[0] for part in result.parts)
    assert words == evaluate().metrics[0]
    assert words.value is not None and few.value is not None and words.of_document and few.of_document
    (acc,) = result.metrics
    assert (result.task, result.num_documents, result.num_fewshot) == ("both", 28, 0)
    if by_size:
        joined = words.of_document + few.of_document
        assert acc.of_document == joined
        assert acc.interval == wilson_interval(joined.count("1"), 28)
        assert acc.value_null == pytest.approx((24 * 13 / 36 + 1 / 3 + 1 / 2 + 1 / 4 + 1 / 3) / 28)
    else:
        assert acc.value == pytest.approx((words.value + few.value) / 2)
        assert words.value != few.value
        assert acc.interval is None


TEXTS = {"text": ["one", "two", "three", "four", "five"], "label": ["A", "B", "C", "D", "E"]}
FOUR = {key: values[:4] for key, values in TEXTS.items()}
ROW_OF_HUB: dict[str, dict[str, Any]] = {
    "allenai/ai2_arc": {"question": "q", "choices": FOUR, "answerKey": "B"},
    "aps/super_glue": {"passage": "p", "question": "q", "label": 1},
    "Rowan/hellaswag": {"ctx_a": "a", "ctx_b": "b", "activity_label": "l", "endings": TEXTS["text"][:4], "label": "2"},
    "EleutherAI/lambada_openai": {"text": "one two three"},
    "allenai/openbookqa": {"question_stem": "q", "choices": FOUR, "answerKey": "A"},
    "baber/piqa": {"goal": "g", "sol1": "one", "sol2": "two", "label": 0},
    "lighteval/siqa": {
        "context": "c", "question": "q", "answerA": "one", "answerB": "two", "answerC": "three", "label": "3",
    },
    "allenai/winogrande": {"sentence": "so _ is", "option1": "one", "option2": "two", "answer": "1"},
    "cais/mmlu": {"question": "q", "choices": TEXTS["text"][:4], "answer": 3},
    "tau/commonsense_qa": {"question": "q", "choices": TEXTS, "answerKey": "E"},
    "mandarjoshi/trivia_qa": {"question": "q", "answer": {"aliases": ["one", "uno"]}},
}  # fmt: skip


@pytest.mark.slow
def test_the_papers_twelve_tasks_run_on_rows_like_those_of_the_hub(
    opened: EvaluatedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(path: str, name: str | None = None, **_: Any) -> dict[str, Dataset]:
        of_split = Dataset.from_list([ROW_OF_HUB[path] | {"number": number} for number in range(7)])
        return dict.fromkeys(("train", "validation", "test", "dev"), of_split)

    monkeypatch.setattr("datasets.load_dataset", rows)  # the hub is not there
    (group,) = load_tasks("paper_16b")
    harness_model = HarnessModel(opened, 600)
    results = [evaluate_row(harness_model, row, 1, 0) for row in group.rows]
    found = {result.task: result for result in results}
    assert {task: [one.metric for one in result.metrics] for task, result in found.items()} == {
        "arc_easy": ["acc"], "boolq": ["acc"], "hellaswag": ["acc_norm"], "lambada_openai": ["acc"],
        "openbookqa": ["acc_norm"], "piqa": ["acc"], "social_iqa": ["acc"], "winogrande": ["acc"], "mmlu": ["acc"],
        "arc_challenge": ["acc_norm"], "commonsense_qa": ["acc"], "triviaqa": ["exact_match"],
    }  # fmt: skip
    shots = {task: result.num_fewshot for task, result in found.items() if result.num_fewshot}
    assert shots == {"mmlu": 5, "triviaqa": 5}
    chance = {task: result.metrics[0].value_null for task, result in found.items()}
    assert chance == {
        "arc_easy": 1 / 4, "boolq": 1 / 2, "hellaswag": 1 / 4, "lambada_openai": None, "openbookqa": 1 / 4,
        "piqa": 1 / 2, "social_iqa": 1 / 3, "winogrande": 1 / 2, "mmlu": 1 / 4, "arc_challenge": 1 / 4,
        "commonsense_qa": 1 / 5, "triviaqa": None,
    }  # fmt: skip
    assert len(found["mmlu"].parts) == found["mmlu"].num_documents == 57
    assert all(result.metrics[0].interval is not None for result in results)
    (eight,) = load_tasks("paper_0.9b")
    assert [name_of(row) for row in eight.rows] == [*found][:8]
