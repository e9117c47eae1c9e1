"""Router inputs on disk: those of a forward of each document alone, whatever the windows."""

# Shapes: N tokens, D hidden, L MoE layers, E experts, K experts per token.

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from pathmoe_eval.evaluation.evaluated_data import EvaluatedDocument
from pathmoe_eval.geometry import state_files
from pathmoe_eval.geometry.state_files import StateFiles, record_states
from pathmoe_eval.geometry.state_recorder import StateRecorder
from tests.eval.conftest import BuildMoE


class Recorded(NamedTuple):
    model: Any
    documents: list[EvaluatedDocument]
    files: StateFiles


def documents_of(lengths: list[int]) -> list[EvaluatedDocument]:
    rng = np.random.default_rng(0)
    return [
        EvaluatedDocument(
            name=str(number), domain="ab"[number % 2], text="", token_ids=rng.integers(2, 40, size=length),
            token_bytes=np.ones(length),
        )
        for number, length in enumerate(lengths)
    ]  # fmt: skip


@pytest.fixture
def recorded(build_moe: BuildMoE, tmp_path: Path) -> Recorded:
    model: Any = build_moe("path_b4")
    documents = documents_of([7, 1, 12])
    files = record_states(SimpleNamespace(model=model), documents, [0, 4, 5], tmp_path / "x", max_length=16, stride=8)
    return Recorded(model, documents, files)


def test_states_are_those_of_each_document(recorded: Recorded) -> None:
    files = recorded.files
    assert files.num_tokens == 20 and files.domains == ("a", "b", "a")
    assert sorted(files.states) == sorted(files.logits) == [0, 4, 5]
    for number, document in enumerate(recorded.documents):
        is_of_it = files.document_N == number
        assert (files.token_ids_N[is_of_it] == document.token_ids).all()
        with StateRecorder(recorded.model, [0, 4, 5]) as recorder, torch.no_grad():
            recorded.model(input_ids=torch.tensor(document.token_ids)[None])
        alone = recorder.take()
        assert (files.expert_ids_NLK[is_of_it] == alone.routing.expert_ids_NLK).all()
        for layer in (0, 4, 5):
            assert files.states[layer][is_of_it] == pytest.approx(alone.states[layer], abs=1e-5)
            assert alone.routing.logits_NLE is not None
            expected_NE = alone.routing.logits_NLE[:, layer]
            assert files.logits[layer][is_of_it] == pytest.approx(expected_NE, abs=1e-5)


def test_windows_that_overlap_count_each_token_once(recorded: Recorded, tmp_path: Path) -> None:
    model = SimpleNamespace(model=recorded.model)
    files = record_states(model, recorded.documents, [0], tmp_path / "y", max_length=4, stride=2)
    assert (files.token_ids_N == recorded.files.token_ids_N).all()
    # The input of the first router has no context but attention's, which a window cuts.
    is_first_N = np.concatenate([np.arange(len(one.token_ids)) < 4 for one in recorded.documents])
    assert files.states[0][is_first_N] == pytest.approx(recorded.files.states[0][is_first_N], abs=1e-5)


def test_chunks_cover_all_rows(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_files, "_CELLS_PER_CHUNK", 3 * 32)
    rows = np.concatenate([np.arange(20)[at] for at in recorded.files.chunks(4)])
    assert rows.tolist() == list(range(20)) and len(list(recorded.files.chunks(4))) == 7


def test_a_layer_that_is_not_there_is_refused(recorded: Recorded, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--layers \(9\) must be from 0 to 8, the model's last; change it$"):
        record_states(
            SimpleNamespace(model=recorded.model), recorded.documents, [0, 9], tmp_path / "z", max_length=4, stride=2
        )


def test_a_full_disk_is_told_before_anything_is_written(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_files.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(ValueError, match=r"must have 0.0 GiB free for router inputs, and has 0.0; lower --max_tokens"):
        record_states(
            SimpleNamespace(model=recorded.model), recorded.documents, [0], tmp_path / "z", max_length=4, stride=2
        )
