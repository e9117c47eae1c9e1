import pytest

from pathmoe.data.data_requirements import check_numbers, check_one_source, check_recipe, check_streaming
from pathmoe.data.mixture import WeightedSource
from pathmoe.data.recipe import Recipe
from pathmoe.data.sources import Source


def recipe(**changes: object) -> Recipe:
    fields = {
        "source": Source(), "validation_split": None, "validation_fraction": 0.1, "tokenizer": "x", "vocab_size": 9,
        "sequence_length": 4,
    }  # fmt: skip
    return Recipe(**fields | changes)


def test_numbers_at_their_lowest_and_absent_are_taken() -> None:
    check_numbers(vocab_size=None, sequence_length=1, num_workers=0, shard_size=1)
    with pytest.raises(ValueError, match=r"data\.shard_size \(0\) must be at least 1; raise it"):
        check_numbers(shard_size=0)


def test_streaming_takes_one_source_in_its_order_and_a_given_tokenizer() -> None:
    check_streaming("folder", 1, ())
    mixture = [WeightedSource(source="a.txt", weight=1.0)] * 2
    with pytest.raises(ValueError, match=r"data\.mixture \(2 sources\) must not be set with data\.streaming \(true\)"):
        check_streaming("folder", 0, mixture)
    with pytest.raises(ValueError, match=r"data\.tokenizer \(train-bpe\)"):
        check_streaming("train-bpe", 0, ())
    with pytest.raises(ValueError, match=r"data\.num_workers \(2\) must be 0 or 1"):
        check_streaming("folder", 2, ())


def test_a_recipe_holds_something_out() -> None:
    check_recipe(recipe())
    with pytest.raises(ValueError, match=r"data\.validation_fraction \(0\) must lie between 0 and 1"):
        check_recipe(recipe(validation_fraction=0))
    with pytest.raises(
        ValueError, match=r"data\.validation_split \(test\) must not be set where data\.source \(python-"
    ):
        check_recipe(recipe(validation_split="test"))


@pytest.mark.parametrize(
    ("source", "validation_split", "message"),
    [
        (
            Source(source="a.txt"),
            None,
            r"data\.source \(a\.txt\) must not be set beside data\.mixture, whose sources ha",
        ),
        (Source(source="o/n", subset="x"), None, r"data\.source \(o/n\)"),
        (Source(text_key="content"), None, r"data\.text_key \(content\)"),
        (Source(), "test", r"data\.validation_split \(test\)"),
    ],
)
def test_a_source_beside_a_mixture_is_refused(source: Source, validation_split: str | None, message: str) -> None:
    check_one_source(Source(), None)
    with pytest.raises(ValueError, match=message):
        check_one_source(source, validation_split)
