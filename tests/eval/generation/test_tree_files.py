"""Trees on disk: any tree comes back as it was, and what is no whole tree is refused."""

# Shapes: N nodes, L MoE layers, E experts, K experts per token.

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.generation.tree import GenerationTree
from pathmoe_eval.generation.tree_files import TREE_FILE, read_tree, write_tree

ARRAYS = (
    "parent_N", "token_ids_N", "log_probability_N", "expert_ids_NLK", "has_routing_N", "end_N", "fork_mass_N",
)  # fmt: skip


def tree_of(num_nodes, prompt_length, num_layers, num_experts, num_experts_per_tok, seed):
    rng = np.random.default_rng(seed)
    parent_N = np.array(
        [node - 1 if node < prompt_length else rng.integers(prompt_length - 1, node) for node in range(num_nodes)]
    )
    is_leaf_N = ~np.isin(np.arange(num_nodes), parent_N)
    is_prompt_N = np.arange(num_nodes) < prompt_length
    scores_NLE = rng.random((num_nodes, num_layers, num_experts))
    ids_NLK = np.argsort(scores_NLE, axis=2)[..., :num_experts_per_tok]
    return GenerationTree(
        num_layers=num_layers,
        num_experts=num_experts,
        num_experts_per_tok=num_experts_per_tok,
        vocab_size=50,
        prompt_length=prompt_length,
        parent_N=parent_N.astype(np.int64),
        token_ids_N=rng.integers(0, 50, num_nodes).astype(np.int32),
        log_probability_N=np.where(is_prompt_N, 0, -rng.exponential(size=num_nodes)).astype(np.float32),
        expert_ids_NLK=ids_NLK.astype(np.uint8 if num_experts <= 256 else np.uint16),
        has_routing_N=~is_leaf_N | (rng.random(num_nodes) < 0.5),
        end_N=np.where(is_leaf_N & ~is_prompt_N, rng.integers(0, 4, num_nodes), 0).astype(np.uint8),
        fork_mass_N=np.where(rng.random(num_nodes) < 0.5, rng.random(num_nodes), np.nan).astype(np.float32),
    )


SHAPES = st.tuples(st.integers(1, 4), st.sampled_from([2, 7, 256, 300]), st.integers(1, 2))


@given(st.integers(1, 30), st.integers(1, 4), SHAPES, st.integers(0, 99), st.dictionaries(st.text(), st.integers()))
def test_any_tree_comes_back(num_nodes, prompt_length, shape, seed, made_from):
    tree = tree_of(max(num_nodes, prompt_length), prompt_length, *shape, seed)
    with tempfile.TemporaryDirectory() as folder:
        write_tree(Path(folder) / "new", tree, made_from)
        stored = read_tree(Path(folder) / "new")
        assert [path.name for path in (Path(folder) / "new").iterdir()] == [TREE_FILE]
    assert stored.made_from == made_from
    for name in ARRAYS:
        found, expected = getattr(stored.tree, name), getattr(tree, name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    for name in ("num_layers", "num_experts", "num_experts_per_tok", "vocab_size", "prompt_length"):
        assert getattr(stored.tree, name) == getattr(tree, name)


@pytest.fixture
def written(tmp_path):
    write_tree(tmp_path, tree_of(20, 3, 2, 8, 2, 0), {"model": "small"})
    return tmp_path


def rewritten(folder, change):
    with pa.memory_map(str(folder / TREE_FILE)) as file:
        table = pa.ipc.open_file(file).read_all()
    header = json.loads(table.schema.metadata[b"pathmoe"])
    table, header = change(table, header)
    table = table.replace_schema_metadata({"pathmoe": json.dumps(header)})
    (folder / TREE_FILE).unlink()
    with pa.OSFile(str(folder / TREE_FILE), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return folder


def test_a_tree_takes_the_place_of_another_whole(written):
    with pytest.raises(TypeError):
        write_tree(written, tree_of(5, 1, 1, 4, 1, 0), {"model": object()})
    assert read_tree(written).tree.num_nodes == 20
    write_tree(written, tree_of(5, 1, 1, 4, 1, 0), {})
    assert read_tree(written).tree.num_nodes == 5


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 0.999])
def test_a_tree_that_was_cut_short_is_refused(written, share):
    path = written / TREE_FILE
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(
        ValueError, match=r"^\S+ \(.*\) must be a whole tree; it was cut short or changed, copy it again$"
    ):
        read_tree(written)


def test_a_folder_without_a_tree_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"^\S+ \(no tree.arrow\) must be the folder of a tree; search one.*$"):
            read_tree(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table, header: (table, header | {"format": 9}), r"\(format 9\) must be of format 1; search"),
        (lambda table, header: (table, []), r"\(.*\) must be a whole tree"),
        (lambda table, header: (table, {"format": 1}), "num_layers"),
        (lambda table, header: (table, {k: v for k, v in header.items() if k != "made_from"}), "made_from"),
        (lambda table, header: (table, header | {"num_layers": 3}), "reshape"),
        (lambda table, header: (table, header | {"vocab_size": 2}), r"token_ids \("),
        (lambda table, header: (table.drop_columns(["end"]), header), "end"),
        (lambda table, header: (table.set_column(0, "parent", [["a"] * 20]), header), r"parent \(object"),
        (lambda table, header: (table.set_column(6, "expert_ids", [[1] * 20]), header), "flatten"),
    ],
)
def test_what_contradicts_itself_is_refused_in_one_line(written, change, message):
    with pytest.raises(ValueError, match=message) as error:
        read_tree(rewritten(written, change))
    assert str(error.value).startswith(str(written / TREE_FILE)) and "\n" not in str(error.value)
