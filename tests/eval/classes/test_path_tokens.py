"""What paths carry against a walk over the tokens, and how it is shown."""

# Shapes: N tokens, L layers of the path, S sequences.

import json
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pathmoe.data.tokenizer import train_bpe
from pathmoe_eval.classes.path_class_counts import PathClassCounts
from pathmoe_eval.classes.path_tokens import Context, PathTokenCounts, visible

NAMES = ("zero", "one", "two")


@st.composite
def cases(draw):
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 3)))
    path_ids_NL = draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 2)))
    token_ids_N, class_ids_N = (draw(hnp.arrays(np.uint16, shape[0], elements=st.integers(0, top))) for top in (5, 2))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, shape[0] - 1)), max_size=4)))
    starts_S1 = np.array([0, *(cut for cut in cuts if cut < shape[0]), shape[0]])
    return path_ids_NL, token_ids_N, class_ids_N, starts_S1


def frequent_of(path_ids_NL, num_paths, class_ids_N=None):
    counts = PathClassCounts(num_layers=path_ids_NL.shape[1], num_experts=3)
    counts.update(path_ids_NL, np.zeros(len(path_ids_NL), dtype=np.int64) if class_ids_N is None else class_ids_N)
    return counts.most_frequent(num_paths)


def without_classes(case):
    """Arguments of `update`."""
    path_ids_NL, token_ids_N, _, starts_S1 = case
    return path_ids_NL, token_ids_N, starts_S1


def of_sequences(case, rows):
    """The tokens of some sequences, as arguments of `update`."""
    *columns, starts_S1 = without_classes(case)
    pieces = [slice(starts_S1[row], starts_S1[row + 1]) for row in rows]
    joined = [np.concatenate([column[:0], *(column[piece] for piece in pieces)]) for column in columns]
    return (*joined, np.cumsum([0, *(piece.stop - piece.start for piece in pieces)]))


def text_of(token_id):
    return f"t{token_id}"


@given(cases(), st.integers(1, 5))
def test_equals_a_walk_over_the_tokens(case, num_paths):
    path_ids_NL, token_ids_N, class_ids_N, starts_S1 = case
    counts = PathTokenCounts(frequent_of(path_ids_NL, num_paths, class_ids_N), num_contexts=1000)
    counts.update(*without_classes(case))
    found = counts.result(text_of, NAMES, num_tokens=3)

    paths = list(map(tuple, path_ids_NL.tolist()))
    expected = sorted(Counter(paths).items(), key=lambda item: (-item[1], item[0]))[:num_paths]
    assert [(result.path, result.num_tokens) for result in found] == expected
    for result in found:
        rows = [row for row, path in enumerate(paths) if path == result.path]
        tokens = Counter(int(token_ids_N[row]) for row in rows)
        assert result.share == pytest.approx(len(rows) / len(paths))
        assert result.num_distinct_tokens == len(tokens)
        listed = [(count.token_id, count.text, count.num_tokens) for count in result.tokens]
        by_count = sorted(tokens.items(), key=lambda item: (-item[1], item[0]))[:3]
        assert listed == [(token, f"t{token}", count) for token, count in by_count]
        classes = Counter(NAMES[class_ids_N[row]] for row in rows)
        assert {count.name: count.num_tokens for count in result.classes} == classes
        assert [count.num_tokens for count in result.classes] == sorted(classes.values(), reverse=True)
        contexts = {
            Context(
                before="" if row in starts_S1 else text_of(token_ids_N[row - 1]),
                token=text_of(token_ids_N[row]),
                after="" if row + 1 in starts_S1 else text_of(token_ids_N[row + 1]),
            )
            for row in rows
        }
        assert len(result.contexts) == len(contexts)
        assert set(result.contexts) == contexts


@given(cases(), st.data())
def test_batching_order_of_sequences_and_merging_change_nothing(case, data):
    num_sequences = len(case[-1]) - 1
    frequent = frequent_of(case[0], 3, case[2])
    order = data.draw(st.permutations(range(num_sequences)))
    cut = data.draw(st.integers(0, num_sequences))
    halves = [PathTokenCounts(frequent, num_contexts=2) for _ in range(2)]
    halves[0].update(*of_sequences(case, order[:cut]))
    for row in order[cut:]:
        halves[1].update(*of_sequences(case, [row]))
    halves[0].merge(halves[1])
    whole = PathTokenCounts(frequent, num_contexts=2)
    whole.update(*without_classes(case))
    assert halves[0].result(text_of, NAMES) == whole.result(text_of, NAMES)


@given(cases(), st.integers(0, 2**32 - 1))
def test_relabelling_experts_per_layer_changes_only_the_names_of_paths(case, seed):
    path_ids_NL, *others = without_classes(case)
    rng = np.random.default_rng(seed)
    relabelled_NL = np.stack([rng.permutation(3)[column] for column in path_ids_NL.T], axis=1)

    def without_names(paths_NL):
        counts = PathTokenCounts(frequent_of(paths_NL, 100, case[2]))
        counts.update(paths_NL, *others)
        return Counter(json.dumps(asdict(result) | {"path": None}) for result in counts.result(text_of, NAMES))

    assert without_names(relabelled_NL) == without_names(path_ids_NL)


def test_a_path_of_many_layers_and_experts_is_told_from_its_neighbours():
    rng = np.random.default_rng(0)
    path_N40 = np.repeat(rng.integers(0, 60_000, (1, 40)), 41, axis=0).astype(np.uint16)
    path_N40[np.arange(40), np.arange(40)] += 1
    counts = PathClassCounts(num_layers=40, num_experts=65536)
    counts.update(np.concatenate([path_N40, path_N40[-1:]]), np.zeros(42, dtype=np.int64))
    tokens = PathTokenCounts(counts.most_frequent(1))
    tokens.update(np.concatenate([path_N40, path_N40[-1:]]), np.arange(42))
    (result,) = tokens.result(text_of)
    assert [count.token_id for count in result.tokens] == [40, 41]
    assert result.classes == ()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" a  b", "\u2423a\u2423\u2423b"),
        ("\n\t\r", r"\n\t\r"),
        ("\\n", r"\\n"),
        ("\x00\x7f\u00a0\u2028", r"\x00\x7f\xa0\u2028"),
        ("\u00e9\u65e5", "\u00e9\u65e5"),
        ("\U000e0001", r"\U000e0001"),
        ("", ""),
    ],
)
def test_blanks_and_controls_are_visible(text, shown):
    assert visible(text) == shown


@given(st.lists(st.text(st.sampled_from("\\ n\nx\u2423")), max_size=2))
def test_unlike_texts_look_unlike(texts):
    with_boxes_escaped = [text.replace("\u2423", "") for text in texts]
    assert len(set(map(visible, with_boxes_escaped))) == len(set(with_boxes_escaped))


def test_tokens_are_shown_as_a_real_tokenizer_decodes_them():
    tokenizer = train_bpe(["if x:\n    return y\n" * 50], 280)
    ids = tokenizer("if x:\n    return y", add_special_tokens=False)["input_ids"]
    counts = PathTokenCounts(frequent_of(np.zeros((len(ids), 1), dtype=np.uint8), 1))
    counts.update(np.zeros((len(ids), 1), dtype=np.uint8), np.array(ids))
    (result,) = counts.result(tokenizer.decode)
    assert {"if", "\u2423x", "\\n\u2423\u2423\u2423"} <= {count.text for count in result.tokens}


GOOD = np.zeros((2, 1), dtype=np.uint8)
TOKENS = np.zeros(2, dtype=np.int64)


def collecting(path_ids_NL=GOOD):
    return PathTokenCounts(frequent_of(path_ids_NL, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: collecting().update(GOOD[0], TOKENS), r"path_ids \(uint8 \[1\]\) must be integers \[tokens, layers\]"),
        (lambda: collecting().update(np.zeros((2, 3), int), TOKENS), r"path_ids \(3 layers\) must have the 1 layers"),
        (lambda: collecting().update(GOOD, TOKENS[:1]), r"token_ids \(1\) must be 2; pass one for each token"),
        (lambda: collecting().update(GOOD, TOKENS, [0, 1]), r"starts \(0 to 1\) must rise from 0 to 2"),
        (lambda: collecting().result(text_of), r"path_ids \(0 tokens of path 0\) must hold the 2 that were counted"),
        (lambda: collecting().merge(collecting(GOOD + 1)), r"other.frequent \(1 paths\) must be the 1 paths of this"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
