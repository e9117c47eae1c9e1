from dataclasses import replace

import pytest

from pathmoe.data.manifest import Manifest, SplitManifest
from pathmoe.data.mixture import WeightedSource, as_mixture, check_mixture, labels, mix
from pathmoe.data.sources import Source

A, B = WeightedSource(source="files/a.jsonl", weight=3.0), WeightedSource(source="owner/b", subset="x", weight=1)


def test_plain_values_are_taken_as_sources() -> None:
    assert as_mixture([{"source": "files/a.jsonl", "weight": 3.0}, B]) == [A, B]
    assert B.plain == Source(source="owner/b", subset="x")
    with pytest.raises(ValueError, match=r"data\.num_documents \(3\) must be null unless data\.source \(x\.txt\)"):
        as_mixture([{"source": "x.txt", "num_documents": 3, "weight": 1.0}])


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ([], r"data\.mixture \(\[\]\) must hold a source at least; add one"),
        (
            [A, replace(B, weight=0.0)],
            r"data\.mixture: the weight \(0\.0\) of owner/b must be a positive number; change",
        ),
        ([replace(A, weight=-1.0)], r"data\.mixture: the weight \(-1\.0\) of files/a\.jsonl must be a positive number"),
        ([replace(A, weight=float("nan"))], r"data\.mixture: the weight \(nan\)"),
        ([replace(A, weight=float("inf"))], r"data\.mixture: the weight \(inf\)"),
        ([A, B, replace(A, weight=1.0)], r"data\.mixture: files/a\.jsonl must not be there twice; add up its weights"),
    ],
)
def test_what_is_no_mixture_is_refused(mixture: list[WeightedSource], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_mixture(mixture)


def test_two_subsets_of_one_data_set_are_two_sources() -> None:
    check_mixture([A, B, replace(B, subset="y")])


def test_labels_are_short_and_different() -> None:
    assert labels([A, B]) == ["a.jsonl", "b"]
    assert labels([B, A, replace(B, subset="y")]) == ["b-0", "a.jsonl", "b-2"]
    assert labels([WeightedSource(source=["x/1.txt", "x/2.txt"], weight=1)]) == ["1.txt"]


def split(targets: int, bytes_per_target: float) -> SplitManifest:
    return SplitManifest(
        content_sha256=str(targets), documents=2, bytes=10, tokens=9, blocks=3, targets=targets, dropped_tokens=1,
        bytes_per_target=bytes_per_target,
    )  # fmt: skip


def test_the_manifest_of_a_mixture_adds_up() -> None:
    of_a, of_b = (
        Manifest(
            source=entry.source, subset=entry.subset, split=None, interpreter=interpreter, tokenizer="t",
            tokenizer_sha256="ab", vocab_size=9, sequence_length=4, train=split(30, 2.0), validation=validation,
        )
        for entry, interpreter, validation in ((A, None, split(10, 2.0)), (B, "3.11", split(30, 4.0)))
    )  # fmt: skip
    mixed = mix([of_a, of_b], [A, B])
    assert mixed.source == ["a.jsonl", "b"] and mixed.interpreter == "3.11"
    assert (mixed.validation.targets, mixed.validation.blocks, mixed.validation.bytes) == (40, 6, 20)
    # Bytes behind all targets over all targets: (10 x 2 + 30 x 4) / 40.
    assert mixed.validation.bytes_per_target == 3.5
    assert mixed.mixture is not None and [part.share for part in mixed.mixture] == [0.75, 0.25]
    assert mixed.validation.content_sha256 != mix([of_b, of_a], [B, A]).validation.content_sha256
    summary = mixed.summary()
    # 3 blocks of 4 tokens; at 3/4 of the tokens they are read once in 16.
    assert "75.0% a.jsonl: 12 tokens, an epoch in 16 of the run; 3 blocks of validation" in summary
