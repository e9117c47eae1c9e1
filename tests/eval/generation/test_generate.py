"""From a trained run to a tree on disk: what it holds, where it goes on, and what is refused."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pathmoe.data import encode
from pathmoe_eval.evaluation.evaluated_model import open_model
from pathmoe_eval.generation.generate import JOURNAL_FILE, Generation, encode_prompt, end_ids, generate
from pathmoe_eval.generation.search import Limits
from pathmoe_eval.generation.segments import Sampling
from pathmoe_eval.generation.tree_files import TREE_FILE, read_tree

PROMPT = "int sort(int n) {"
GENERATION = Generation(
    sampling=Sampling(temperature=1.0, top_tokens=3, max_mass=0.2, num_children=2, max_new_tokens=6),
    limits=Limits(max_forks=3),
    batch_size=4,
)
ARRAYS = ("parent_N", "token_ids_N", "log_probability_N", "expert_ids_NLK", "has_routing_N", "end_N", "fork_mass_N")


@pytest.fixture(scope="module")
def run(fit_tiny, tmp_path_factory):
    return fit_tiny(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def model(run):
    return open_model(str(run))


def test_a_tree_is_on_disk_with_what_it_was_made_from(model, tmp_path):
    searched = generate(model, PROMPT, GENERATION, tmp_path / "tree")
    stored = read_tree(tmp_path / "tree")
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(stored.tree, name), getattr(searched.tree, name))
    ids = [model.tokenizer.bos_token_id, *encode(model.tokenizer, [PROMPT])[0]]
    assert stored.tree.token_ids_N[: stored.tree.prompt_length].tolist() == ids
    assert len(stored.tree.forks()) == 3
    made_from = stored.made_from
    assert made_from["prompt"] == PROMPT and made_from["prompt_ids"] == ids
    assert made_from["eos_ids"] == [model.tokenizer.eos_token_id]
    assert made_from["method"] == "tree" and made_from["sampling"]["max_mass"] == 0.2
    assert made_from["limits"]["max_forks"] == 3 and made_from["batch_size"] == 4
    assert made_from["num_forwarded"] == searched.num_forwarded >= stored.tree.has_routing_N.sum()
    assert made_from["num_read_again"] == 0
    assert len(made_from["layer_names"]) == len(made_from["router_of_layer"]) == stored.tree.num_layers
    assert made_from["model_hash"] and made_from["versions"]["torch"]
    assert open_model(str(made_from["tokenizer"]).removesuffix("/tokenizer")).tokenizer.get_vocab()


def test_the_same_again_and_more_from_the_journal(model, tmp_path):
    generate(model, PROMPT, GENERATION, tmp_path / "one")
    other = generate(model, PROMPT, replace(GENERATION, batch_size=1), tmp_path / "other").tree
    one = read_tree(tmp_path / "one").tree
    for name in ("parent_N", "token_ids_N", "expert_ids_NLK", "end_N"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    again = generate(model, PROMPT, GENERATION, tmp_path / "one")
    assert again.num_forwarded == again.tree.prompt_length
    more = replace(GENERATION, limits=Limits(max_forks=5, order="best"))
    grown = generate(model, PROMPT, more, tmp_path / "one")
    anew = generate(model, PROMPT, more, tmp_path / "anew")
    np.testing.assert_array_equal(grown.tree.token_ids_N, anew.tree.token_ids_N)
    assert grown.num_forwarded - grown.num_read_again < anew.num_forwarded


@pytest.mark.parametrize(("options", "num_leaves"), [({"num_samples": 5}, {5}), ({"num_beams": 3}, set(range(3, 30)))])
def test_samples_and_beams(model, tmp_path, options, num_leaves):
    generation = Generation(sampling=replace(GENERATION.sampling, max_mass=0), **options)
    generate(model, PROMPT, generation, tmp_path)
    stored = read_tree(tmp_path)
    assert stored.made_from["method"] == next(iter(options)).removeprefix("num_")
    assert len(stored.tree.leaves()) in num_leaves
    assert sorted(path.name for path in tmp_path.iterdir()) == [JOURNAL_FILE, TREE_FILE]


def test_another_search_in_the_folder_is_refused(model, tmp_path):
    generate(model, PROMPT, GENERATION, tmp_path)
    before = (tmp_path / TREE_FILE).read_bytes()
    others = (
        (PROMPT + " ", GENERATION),
        (PROMPT, replace(GENERATION, sampling=replace(GENERATION.sampling, seed=1))),
        (PROMPT, replace(GENERATION, num_beams=2)),
    )
    for prompt, generation in others:
        with pytest.raises(ValueError, match=r"\(of another search\) must be .* choose another --out"):
            generate(model, prompt, generation, tmp_path)
    assert (tmp_path / TREE_FILE).read_bytes() == before


def test_a_model_is_read_no_further_than_it_can(model, tmp_path):
    length = model.model.config.max_position_embeddings
    generation = replace(GENERATION, sampling=replace(GENERATION.sampling, max_new_tokens=length))
    message = (
        rf"^--max_new_tokens \({length}\) must leave room for the prompt's \d+ tokens within the {length} .*; lower"
    )
    with pytest.raises(ValueError, match=message):
        generate(model, PROMPT, generation, tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": -1}, "--num_samples (-1) must be at least 0; raise it"),
        ({"num_beams": -2}, "--num_beams (-2) must be at least 0; raise it"),
        ({"num_beams": 2, "num_samples": 3}, "--num_beams (2) must be 0 with --num_samples (3); leave one out"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Generation(**options)


class OtherTokenizer:
    """Of another family: puts tokens around a text."""

    bos_token_id, eos_token_id, name_or_path = 1, 2, "other"

    def __init__(self, before, after):
        self.before, self.after = before, after

    def __call__(self, text, split_special_tokens, **options):
        assert split_special_tokens
        return {"input_ids": [*self.before, *(10 + ord(letter) for letter in text), *self.after]}


def other(before=(), after=(), eos_of_model=None, eos_of_tokenizer=2):
    tokenizer = OtherTokenizer(before, after)
    tokenizer.eos_token_id = eos_of_tokenizer
    config = SimpleNamespace(eos_token_id=eos_of_model)
    return SimpleNamespace(
        tokenizer=tokenizer, ends_documents=False, name="other", model=SimpleNamespace(generation_config=config)
    )


@pytest.mark.parametrize(
    ("before", "after", "prompt", "expected"),
    [
        ((), (), "a", [107]),
        ((1,), (), "a", [1, 107]),
        ((1,), (2,), "a", [1, 107]),
        ((2,), (), "", [2]),
        ((2,), (2,), "", [2]),
    ],
)
def test_prompts_of_other_models_have_no_end(before, after, prompt, expected):
    assert encode_prompt(other(before, after), prompt) == expected


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match=r"^--prompt \(''\) must have at least one token; give text to go on from$"):
        encode_prompt(other(), "")


@pytest.mark.parametrize(
    ("of_model", "of_tokenizer", "expected"),
    [(None, 2, {2}), (5, 2, {2, 5}), ([5, 6], 5, {5, 6}), ([0], None, {0}), (0, None, {0})],
)
def test_ends_are_those_of_the_model_and_of_the_tokenizer(of_model, of_tokenizer, expected):
    assert end_ids(other(eos_of_model=of_model, eos_of_tokenizer=of_tokenizer)) == expected


def test_a_model_without_an_end_is_refused():
    with pytest.raises(ValueError, match=r"^--model \(other\) must have an end-of-sequence token; name one in .*$"):
        end_ids(other(eos_of_tokenizer=None))
