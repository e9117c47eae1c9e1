"""Shards that ranks save together: read by any number of them, whole after any kill, refused once they are damaged."""

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from pathmoe.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint, saved_step
from pathmoe.training.checkpoint_manifest import MANIFEST_FILE

# Embeddings are tied, and groups of parameters lie across the model.
SHAPE = {
    "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "moe_intermediate_size": 8,
    "num_experts": 4, "num_experts_per_tok": 2, "layers_per_router": None, "router_rank": 2,
    "router_bias_update_rate": 0.1, "tie_word_embeddings": True,
}  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="forks processes that talk over gloo"),
]


def ranks(what: str, folder: Path, **options: Any) -> str:
    program = Path(__file__).with_name("sharded_ranks.py")
    work = {"what": what, "folder": str(folder), **options}
    ended = subprocess.run([sys.executable, program, json.dumps(work)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four ranks saved, and what they had."""
    folder = tmp_path_factory.mktemp("trained")
    ranks("train", folder, shape=SHAPE, num_ranks=4)
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "copy", symlinks=True))


def assert_equal(found: Any, expected: Any) -> None:
    """Bit for bit, through dictionaries and lists."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


def by_name(state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {names[number]: values for number, values in state["state"].items()}


@pytest.mark.parametrize("checkpoint", ["sync.ckpt", "async.ckpt"])
def test_one_process_reads_what_the_ranks_had(checkpoint: str, trained: Path) -> None:
    weights, optimizer = torch.load(trained / "whole.pt", weights_only=True)
    content = read_checkpoint(trained / checkpoint)
    assert_equal(content["state_dict"], weights)
    names = [name for group in optimizer["param_groups"] for name in group["params"]]
    assert_equal(by_name(content["optimizer_states"][0], names), optimizer["state"])
    assert any(value.any() for state in optimizer["state"].values() for value in state.values())
    assert saved_step(trained / checkpoint) == content["global_step"] == 2


def test_its_manifest_says_what_it_is(trained: Path) -> None:
    manifest = json.loads((trained / "sync.ckpt" / MANIFEST_FILE).read_text())
    assert (manifest["step"], manifest["world_size"]) == (2, 4)
    assert manifest["versions"]["torch"] == version("torch")
    files = {".metadata", "meta.pt", *(f"__{rank}_0.distcp" for rank in range(4))}
    assert manifest["files"].keys() == files
    assert {path.name for path in (trained / "sync.ckpt").iterdir()} == files | {MANIFEST_FILE}


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_any_number_of_ranks_loads_it(num_ranks: int, copy: Path) -> None:
    ranks("load", copy, shape=SHAPE, num_ranks=num_ranks, checkpoint="sync.ckpt")
    found, expected = (torch.load(copy / f, weights_only=True) for f in (f"loaded_{num_ranks}.pt", "whole.pt"))
    assert_equal(list(found), list(expected))


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_they_load_a_file_of_one_process(num_ranks: int, copy: Path) -> None:
    # As an optimizer of one process numbers its parameters: group by group.
    AtomicCheckpointIO().save_checkpoint(read_checkpoint(copy / "sync.ckpt"), copy / "file.ckpt")
    ranks("load", copy, shape=SHAPE, num_ranks=num_ranks, checkpoint="file.ckpt")
    found, expected = (torch.load(copy / f, weights_only=True) for f in (f"loaded_{num_ranks}.pt", "whole.pt"))
    assert_equal(list(found), list(expected))


@pytest.mark.parametrize("name", [".metadata", "meta.pt", "__0_0.distcp", "__3_0.distcp", MANIFEST_FILE])
def test_damage_is_refused_by_the_name_of_the_file(name: str, copy: Path) -> None:
    file = copy / "sync.ckpt" / name
    content = file.read_bytes()
    middle = len(content) // 2
    damaged = {
        "was altered": content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :],
        "was cut or altered": content[:-1],
        "is missing": None,
    }
    for problem, left in damaged.items():
        if left is None:
            file.unlink()
        else:
            file.write_bytes(left)
        if name == MANIFEST_FILE:
            problem = problem.replace("cut or ", "")
        message = (
            rf"^--ckpt_path \(.*/sync\.ckpt\) must be a whole checkpoint, but {name} {problem}.*--ckpt_path previous"
        )
        with pytest.raises(ValueError, match=message):
            read_checkpoint(copy / "sync.ckpt")


def test_all_ranks_refuse_what_one_finds(copy: Path) -> None:
    shard = copy / "sync.ckpt" / "__1_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    ranks("load", copy, shape=SHAPE, num_ranks=2, checkpoint="sync.ckpt")
    messages = {(copy / f"error_{rank}").read_text() for rank in range(2)}
    assert len(messages) == 1
    assert "OnAllRanksError: --ckpt_path" in (message := messages.pop())
    assert "must be a whole checkpoint, but __1_0.distcp was altered (SHA-256 " in message


def test_another_architecture_is_refused_before_anything_is_loaded(copy: Path) -> None:
    ranks("load", copy, num_ranks=2, checkpoint="sync.ckpt", shape=SHAPE | {"num_experts": 6})
    for rank in range(2):
        assert (
            (copy / f"error_{rank}")
            .read_text()
            .startswith("OnAllRanksError: model.config.num_experts (6) must be the checkpoint's (4)")
        )


def test_without_room_the_checkpoint_stays_and_all_ranks_say_why(copy: Path) -> None:
    before = (copy / "sync.ckpt").resolve()
    messages = ranks("fill", copy, shape=SHAPE).splitlines()
    problem = f"{copy / 'sync.ckpt'} can't be replaced (File too large) and is as it was"
    assert messages == [f"OnAllRanksError: {problem}; make room, or choose another --run_dir"] * 2
    assert (copy / "sync.ckpt").resolve() == before
    read_checkpoint(copy / "sync.ckpt")
    assert not (copy / ".sync.ckpt.partial").exists(), "the room that it took is given back"


def test_ranks_must_share_a_disk(tmp_path: Path) -> None:
    messages = ranks("apart", tmp_path, shape=SHAPE).splitlines()
    problem = "__1_0.distcp of another node is not there, as it must lie on a disk that all share"
    assert len(messages) == 2
    assert all(f"last.ckpt can't be replaced ({problem}) and is as it was" in message for message in messages)
    assert not (tmp_path / "0" / "last.ckpt").exists()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(victim: int, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in ranks("kill", tmp_path, victim=victim).splitlines()]
    *killed, whole = lines
    assert whole == [[0, 0], [2, 1], [3, 2], 2]
    assert len(killed) > (15 if victim == 0 else 1)
    for statuses, steps, after, hidden in killed:
        assert statuses[victim] == -9
        assert steps in ([1], [2], [2, 1])
        assert after == [3, steps[0]], "the one before is that which had the name"
        assert hidden == 2, "of what was killed nothing is left"
