"""Tree search against a slow one that keeps no caches, at any batch size, and its limits, orders and memory."""

# Shapes: V vocabulary, N nodes.

import re

import numpy as np
import pytest
import torch

from pathmoe_eval.generation.decoder import Decoder
from pathmoe_eval.generation.draws import draw_tokens, top_mass
from pathmoe_eval.generation.growing_tree import GrowingTree
from pathmoe_eval.generation.journal import Journal
from pathmoe_eval.generation.search import Limits, _Search, tree_search
from pathmoe_eval.generation.segments import Sampling
from pathmoe_eval.generation.tree import CUT, END_OF_SEQUENCE, GOES_ON, NOT_SEARCHED
from pathmoe_eval.traces.recorder import RoutingRecorder

PROMPT = [5, 9, 2]
EOS = frozenset({0, 7, 13})
SAMPLING = Sampling(temperature=1.0, top_tokens=2, max_mass=0.3, num_children=3, max_new_tokens=12)
LIMITS = Limits(max_completions=25, max_forks=15)
ORDERS = ("breadth", "depth", "best")


def search(model, sampling=SAMPLING, limits=LIMITS, batch_size=16, eos_ids=EOS, **options):
    with Decoder(model) as decoder:
        return tree_search(
            decoder, PROMPT, sampling, limits, eos_ids=eos_ids, vocab_size=40, batch_size=batch_size, **options
        )


@pytest.fixture(scope="module")
def model(build_moe):
    return build_moe("path_b4", num_hidden_layers=4)


class SlowSearch:
    """One token at a time, each from a forward of the whole sequence."""

    def __init__(self, model, sampling, limits, num_samples):
        self.model, self.sampling, self.limits = model, sampling, limits
        self.parents, self.tokens, self.log, self.ends, self.masses = [-1, 0, 1], [*PROMPT], [0.0] * 3, [0] * 3, {}
        self.pending, self.num_completions = [], 0
        if num_samples:
            log_V = self.log_after(2)
            drawn = [draw_tokens(log_V, 1, sampling.temperature, sampling.seed, (n,))[0] for n in range(num_samples)]
            self.fork(2, (), log_V, drawn)
        else:
            self.follow(2, (), 0)
        while self.pending and self.num_completions < limits.max_completions:
            node, place = self.pop()
            self.follow(node, place, 1)

    def path(self, node):
        return [] if node < 0 else [*self.path(self.parents[node]), node]

    def log_after(self, node):
        with torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([[self.tokens[n] for n in self.path(node)]])).logits[0, -1]
        return logits.double().log_softmax(-1).numpy()

    def add(self, parent, token, log):
        self.parents.append(parent)
        self.tokens.append(token)
        self.log.append(float(log))
        self.ends.append(NOT_SEARCHED)
        return len(self.parents) - 1

    def fork(self, node, place, log_V, drawn):
        self.pending += [(self.add(node, token, log_V[token]), (*place, n)) for n, token in enumerate(drawn)]

    def pop(self):
        keys = {
            "breadth": lambda one: one[0],
            "depth": lambda one: (-self.parents[one[0]], one[0]),
            "best": lambda one: (-sum(self.log[n] for n in self.path(one[0])), one[0]),
        }
        one = min(self.pending, key=keys[self.limits.order])
        self.pending.remove(one)
        return one

    def follow(self, node, place, count):
        while True:
            length = len(self.path(node)) - len(PROMPT)
            if length and self.tokens[node] in EOS:
                self.ends[node] = END_OF_SEQUENCE
                self.num_completions += 1
                return
            if length >= self.sampling.max_new_tokens:
                self.ends[node] = CUT
                return
            self.ends[node] = GOES_ON
            log_V, key = self.log_after(node), (*place, count)
            options = (self.sampling.temperature, self.sampling.seed, key)
            mass = top_mass(log_V, self.sampling.top_tokens)
            if mass <= self.sampling.max_mass:
                drawn = draw_tokens(log_V, self.sampling.num_children, *options)
                if len(self.masses) < self.limits.max_forks:
                    self.masses[node] = mass
                else:
                    drawn = drawn[:1]
                self.fork(node, place, log_V, drawn)
                return
            (token,) = draw_tokens(log_V, 1, *options)
            node, count = self.add(node, token, log_V[token]), count + 1


def assert_same_trees(found, expected):
    for name in ("parent_N", "token_ids_N", "end_N", "has_routing_N"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    fed_N = expected.has_routing_N
    np.testing.assert_array_equal(found.expert_ids_NLK[fed_N], expected.expert_ids_NLK[fed_N])
    for name in ("log_probability_N", "fork_mass_N"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=5e-5, err_msg=name)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("num_samples", [0, 6])
def test_the_tree_is_that_of_a_slow_search(model, order, num_samples):
    limits = Limits(order=order, max_completions=12, max_forks=10)
    expected = SlowSearch(model, SAMPLING, limits, num_samples)
    tree = search(model, limits=limits, num_samples=num_samples).tree
    assert len(expected.masses) > 2 and expected.num_completions > 2
    assert tree.parent_N.tolist() == expected.parents
    assert tree.token_ids_N.tolist() == expected.tokens
    assert tree.end_N.tolist() == expected.ends
    np.testing.assert_allclose(tree.log_probability_N, expected.log, rtol=0, atol=1e-5)
    assert np.flatnonzero(np.isfinite(tree.fork_mass_N)).tolist() == sorted(expected.masses)
    for node, mass in expected.masses.items():
        assert tree.fork_mass_N[node] == pytest.approx(mass, abs=1e-5)
        assert mass <= SAMPLING.max_mass


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_batch_size_changes_nothing(model, order, seed):
    sampling = Sampling(temperature=0.9, top_tokens=2, max_mass=0.3, num_children=3, max_new_tokens=12, seed=seed)
    limits = Limits(order=order, max_completions=25, max_forks=15)
    alone = search(model, sampling, limits, batch_size=1)
    for batch_size in (3, 16):
        together = search(model, sampling, limits, batch_size=batch_size)
        assert_same_trees(together.tree, alone.tree)
        assert together.num_forwarded >= alone.num_forwarded
    # One at a time, nothing is decoded that is dropped: the prompt once, each generated token once.
    assert alone.num_forwarded == alone.tree.has_routing_N.sum()
    assert alone.num_read_again == 0


@pytest.mark.parametrize("name", ["omni", "gpt_oss", "qwen3_next", "mixtral"])
def test_other_models_and_their_caches(build_moe, name):
    other = build_moe(name)
    assert_same_trees(search(other).tree, search(other, batch_size=1).tree)


def test_routing_is_that_of_each_whole_sequence(model):
    tree = search(model).tree
    checked = np.zeros(tree.num_nodes, dtype=bool)
    for leaf in tree.leaves():
        path = tree.path(leaf)
        with RoutingRecorder(model) as recorder, torch.inference_mode():
            model(input_ids=torch.tensor([tree.token_ids_N[path].tolist()]))
        fed = tree.has_routing_N[path]
        np.testing.assert_array_equal(tree.expert_ids_NLK[path[fed]], recorder.take().expert_ids_NLK[fed])
        checked[path[fed]] = True
    assert (checked == tree.has_routing_N).all()


def test_ends_and_forks_are_as_they_are_described(model):
    tree = search(model).tree
    is_eos_N = np.isin(tree.token_ids_N, list(EOS)) & (np.arange(tree.num_nodes) >= len(PROMPT))
    searched_N = tree.end_N != NOT_SEARCHED
    np.testing.assert_array_equal(tree.end_N == END_OF_SEQUENCE, is_eos_N & searched_N)
    assert (tree.depth_N[tree.end_N == CUT] == len(PROMPT) + SAMPLING.max_new_tokens - 1).all()
    assert not tree.has_routing_N[tree.end_N == END_OF_SEQUENCE].any()
    assert np.isfinite(tree.fork_mass_N[tree.forks()]).all()
    for fork in tree.forks():
        tokens = tree.token_ids_N[tree.children(fork)]
        assert len(set(tokens.tolist())) == len(tokens) == SAMPLING.num_children


def test_limits(model):
    full = search(model, limits=Limits(max_completions=10_000, max_forks=6)).tree
    assert len(full.forks()) == 6
    assert not (full.end_N == NOT_SEARCHED).any()
    few = search(model, limits=Limits(max_completions=2, max_forks=6)).tree
    assert len(few.completions()) == 2
    none = search(model, limits=Limits(max_completions=10_000, max_forks=0)).tree
    assert len(none.leaves()) == 1 and np.isnan(none.fork_mass_N).all()
    greedy = search(model, Sampling(temperature=0, max_mass=0, max_new_tokens=5), eos_ids=frozenset()).tree
    assert greedy.end_N.tolist() == [0] * 7 + [CUT]


def test_sequences_share_forwards_once_there_are_no_more_forks(model):
    """All of them go on, whatever would be a fork, and catch up with each other."""
    sampling = Sampling(temperature=1.0, top_tokens=1, max_mass=0.9, num_children=3, max_new_tokens=30)
    limits = Limits(max_completions=10_000, max_forks=5)
    trees, steps = [], []
    for batch_size in (1, 16):
        with Decoder(model) as decoder:
            searched = tree_search(
                decoder, PROMPT, sampling, limits, eos_ids=frozenset({0}), vocab_size=40, batch_size=batch_size
            )
            trees.append(searched.tree)
            steps.append(decoder.num_steps)
        assert searched.num_forwarded == searched.tree.has_routing_N.sum()
    assert_same_trees(*trees)
    assert steps[1] < steps[0] / 4


def test_samples_are_those_of_independent_searches(model):
    """Best-of-N: sequences that fork nowhere, each as a slow search of that sample alone gives it."""
    sampling = Sampling(temperature=1.0, max_mass=0, max_new_tokens=12, seed=4)
    tree = search(model, sampling, Limits(), num_samples=8).tree
    assert len(tree.leaves()) == 8
    slow = SlowSearch(model, sampling, Limits(), 8)
    assert tree.token_ids_N.tolist() == slow.tokens
    fewer = search(model, sampling, Limits(), num_samples=3).tree
    sequences = [[t.token_ids_N[t.path(leaf)].tolist() for leaf in t.leaves()] for t in (tree, fewer)]
    assert sequences[1] == [of for of in sequences[0] if of in sequences[1]]
    # With replacement: the first tokens have the model's own law, in which one likely token comes more than once.
    many = search(model, Sampling(temperature=1.0, max_mass=0, max_new_tokens=1), Limits(), num_samples=2000).tree
    firsts = np.bincount(many.token_ids_N[many.children(2)], minlength=40) / 2000
    np.testing.assert_allclose(firsts, np.exp(slow.log_after(2)), rtol=0, atol=0.04)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("batch_size", [1, 16])
def test_caches_are_kept_only_for_forks_with_children_to_decode(model, order, batch_size):
    with Decoder(model) as decoder:
        decoded = decoder.prefill(PROMPT)
        growing = GrowingTree(PROMPT, decoded.expert_ids)
        limits = Limits(order=order, max_completions=10_000, max_forks=12)
        searching = _Search(decoder, growing, SAMPLING, limits, EOS, batch_size, Journal(None))
        searching.begin(decoded, 0)
        most = 0
        while searching.pending:
            decoded_places = searching.journal.segments.keys()
            waiting = {one.place[:-1] for one in searching.pending if one.place not in decoded_places}
            ahead = {one.place for one in searching.pending if one.place in decoded_places}
            assert waiting <= searching.caches.keys() <= waiting | ahead
            most = max(most, len(searching.caches))
            searching.take_next()
    assert most > 0
    assert not searching.caches


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--batch_size (0) must be at least 1; raise it"),
        ({"num_samples": -1}, "--num_samples (-1) must be at least 0; raise it"),
    ],
)
def test_refused_numbers(model, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        search(model, **options)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("max_completions", 0, "be at least 1; raise it"),
        ("max_forks", -1, "be at least 0; raise it"),
        ("order", "worst", "be breadth, depth or best; choose one"),
    ],
)
def test_refused_limits(name, value, rule):
    with pytest.raises(ValueError, match=rf"^--{name} \({value}\) must {rule}$"):
        Limits(**{name: value})


@pytest.mark.parametrize(
    ("prompt", "message"), [([], r"^--prompt \(no tokens\) must .*; give"), ([3, 40], r"^prompt_ids \(.*40.*\) must")]
)
def test_refused_prompts(model, prompt, message):
    with Decoder(model) as decoder, pytest.raises(ValueError, match=message):
        tree_search(decoder, prompt, SAMPLING, LIMITS, eos_ids=EOS, vocab_size=40, batch_size=2)
