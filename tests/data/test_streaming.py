import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets.distributed import split_dataset_by_node

from pathmoe.data.order import BatchGeometry
from pathmoe.data.sources import Source, stream_documents
from pathmoe.data.splitting import text_hash
from pathmoe.data.streaming import StreamedBatches, StreamLoader
from pathmoe.data.tokenizer import encode, train_bpe

LENGTH = 16
TEXTS = [f"document {number}: " + "word " * (number * 7 % 40) for number in range(300)]
TOKENIZER = train_bpe(TEXTS, 280)


def jsonl_files(folder: Path) -> str:
    for number in range(4):
        lines = [json.dumps({"text": text}) for text in TEXTS[number::4]]
        (folder / f"{number}.jsonl").write_text("\n".join(lines))
    return str(folder)


def hub_folder(folder: Path) -> str:
    for number in range(4):
        table = pa.table({"text": TEXTS[number::4]})
        pq.write_table(table, folder / f"train-{number:05}-of-00004.parquet", row_group_size=20)
    return str(folder)


@pytest.fixture(params=[jsonl_files, hub_folder])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    folder = tmp_path / "files"
    folder.mkdir()
    made: str = request.param(folder)
    return made


def stream_loader(
    source: str, step: int = 0, rank: int = 0, world_size: int = 1, num_workers: int = 0, held_out: tuple[str, ...] = ()
) -> StreamLoader:
    geometry = BatchGeometry(micro_batch_size=2, accumulate_grad_batches=2, rank=rank, world_size=world_size)
    mine = split_dataset_by_node(stream_documents(Source(source=source)), rank, world_size)
    hashes = frozenset(map(text_hash, held_out))
    return StreamLoader(StreamedBatches(mine, hashes, TOKENIZER, LENGTH, geometry), lambda: step, num_workers)


def flat(batches: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> list[Any]:
    return [[v.tolist() if isinstance(v, torch.Tensor) else v for v in batch.values()] for batch in batches]


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def test_a_stream_packs_the_documents_in_order(source: str) -> None:
    batches = list(islice(stream_loader(source), 30))
    tokens = torch.cat([batch["input_ids"].flatten() for batch in batches]).tolist()
    ids = encode(TOKENIZER, [row["text"] for row in stream_documents(Source(source=source))])
    expected = [token for document in ids for token in [0, *document, 0]]
    assert tokens == expected[: len(tokens)]
    assert [block_id for batch in batches for block_id in batch["block_ids"]] == list(range(60))
    for step in range(15):
        parts = [batch for batch in batches if batch["step"] == step]
        assert [batch["micro_batch"] for batch in parts] == [0, 1]
        assert {batch["num_items"] for batch in parts} == {sum(int((b["shift_labels"] != -100).sum()) for b in parts)}


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("steps", [0, 5, 150])
def test_a_resumed_stream_goes_on_exactly(source: str, steps: int, num_workers: int) -> None:
    # 150 steps go round the source several times.
    whole = flat(islice(stream_loader(source), 2 * steps + 20))
    first = stream_loader(source, num_workers=num_workers)
    batches = iter(first)
    assert flat(islice(batches, 2 * steps + 1)) == whole[: 2 * steps + 1]  # Lightning fetches one batch ahead
    first.current_step = lambda: steps
    resumed = stream_loader(source, step=steps, num_workers=num_workers)
    resumed.load_state_dict(saved_and_loaded(first.state_dict()))
    batches = iter(resumed)
    begun = flat(islice(batches, 1))
    # saved again at the step where it began
    again = stream_loader(source, step=steps)
    again.load_state_dict(saved_and_loaded(resumed.state_dict()))
    assert begun + flat(islice(batches, 19)) == flat(islice(again, 20)) == whole[2 * steps :]


def test_ranks_share_the_documents_out(source: str) -> None:
    numbers = []
    for rank in range(2):
        loader = stream_loader(source, rank=rank, world_size=2)
        decoded = TOKENIZER.decode(torch.cat([b["input_ids"].flatten() for b in islice(loader, 40)]).tolist())
        numbers.append({piece.split(":")[0] for piece in decoded.split("document ")[1:-1]})
    assert min(map(len, numbers)) > 20
    assert not numbers[0] & numbers[1]


def test_held_out_documents_are_not_trained_on(source: str) -> None:
    held_out = tuple(TEXTS[:50])
    loader = stream_loader(source, held_out=held_out)
    decoded = TOKENIZER.decode(torch.cat([b["input_ids"].flatten() for b in islice(loader, 400)]).tolist())
    seen = {int(piece.split(":")[0]) for piece in decoded.split("document ")[1:-1]}
    assert seen == set(range(50, 300))


def test_a_stream_of_held_out_documents_only_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match=r"data\.source holds no document for this rank beside those held out"):
        next(iter(stream_loader(source, held_out=tuple(TEXTS))))


def test_another_number_of_ranks_is_refused(source: str) -> None:
    state = stream_loader(source).state_dict()
    with pytest.raises(ValueError, match=r"must resume on the number of ranks of the checkpoint \(1\), not 2"):
        stream_loader(source, world_size=2).load_state_dict(state)


def test_a_step_without_a_position_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match=r"the position of the source at step 7 is not known"):
        next(iter(stream_loader(source, step=7)))


def test_the_position_holds_few_tokens(source: str) -> None:
    loader = stream_loader(source)
    list(islice(loader, 21))
    loader.current_step = lambda: 10
    (state,) = loader.state_dict()["ranks"]
    assert len(state["tokens"]) < 64 * max(len(ids) + 2 for ids in encode(TOKENIZER, TEXTS)) + 4 * LENGTH
