"""Data to evaluate on: what is read, how it is named, tokenised, limited and refused."""

import hashlib
import json
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pathmoe import PathMoEConfig, PathMoEForCausalLM
from pathmoe.data import Source, TokenDataModule, read_documents, train_bpe
from pathmoe.data.splitting import text_hash
from pathmoe_eval.evaluation.evaluated_data import EvaluatedData, EvaluatedDocument, read_evaluated
from pathmoe_eval.evaluation.evaluated_model import EvaluatedModel

TEXTS = ["first: größer", "second <|endoftext|> text", "third"]


@cache
def bpe() -> PreTrainedTokenizerBase:
    return train_bpe(TEXTS, 280)


def words() -> PreTrainedTokenizerBase:
    """A tokenizer of words that puts [CLS] before a text, and knows few of them."""
    vocab = {"[UNK]": 0, "[CLS]": 1, "first": 2, "second": 3, "text": 4}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]")


def model(
    tokenizer: PreTrainedTokenizerBase | None = None,
    ends_documents: bool = True,
    run_data: dict[str, Any] | None = None,
    vocab_size: int = 300,
) -> EvaluatedModel:
    config = PathMoEConfig(vocab_size=vocab_size, hidden_size=16, num_hidden_layers=1, moe_intermediate_size=8)
    return EvaluatedModel(
        model=PathMoEForCausalLM(config).eval(),
        tokenizer=bpe() if tokenizer is None else tokenizer,
        name="a model",
        ends_documents=ends_documents,
        run_data=run_data,
    )


def read(data: Any, of_model: EvaluatedModel | None = None, **options: Any) -> list[EvaluatedDocument]:
    return list(read_evaluated(EvaluatedData(data=data, **options), of_model or model()))


def write_lines(path: Path, records: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


def test_every_kind_of_file_is_read_whole_and_named(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": TEXTS[0]}, {"text": ""}, {"text": None}, {"text": TEXTS[1]}])
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.txt").write_text(TEXTS[2])
    pq.write_table(pa.table({"other": [1], "text": ["in parquet"]}), tmp_path / "deep" / "c.parquet")
    found = read(str(tmp_path))
    assert [(document.name, document.domain, document.text) for document in found] == [
        ("a.jsonl, record 1", "a.jsonl", TEXTS[0]),
        ("a.jsonl, record 4", "a.jsonl", TEXTS[1]),
        ("deep/b.txt", "deep/b.txt", TEXTS[2]),
        ("deep/c.parquet, record 1", "deep/c.parquet", "in parquet"),
    ]
    one = read([str(tmp_path / "deep" / "b.txt")])
    assert [(document.name, document.domain) for document in one] == [("b.txt", "b.txt")]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_domains_from_a_key_of_the_records(form: str, tmp_path: Path) -> None:
    records = [{"body": "x", "topic": "news", "n": 1}, {"body": "y", "topic": "code", "n": 2}]
    file = str(tmp_path / f"a.{form}")
    if form == "jsonl":
        write_lines(Path(file), records)
    else:
        pq.write_table(pa.Table.from_pylist(records), file)
    assert [d.domain for d in read(file, text_key="body", domain_key="topic")] == ["news", "code"]
    assert [d.domain for d in read(file, text_key="body", domain_key="n")] == ["1", "2"]


def test_a_data_set_with_splits_is_read_by_split(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write_lines(tmp_path / f"{split}.jsonl", [{"text": f"of {split}", "topic": "t"}])
    data = str(tmp_path)
    assert [(d.name, d.domain, d.text) for d in read(data)] == [(f"{data}, validation row 0", data, "of validation")]
    assert [(d.domain, d.text) for d in read(data, split="test", domain_key="topic")] == [("t", "of test")]


@pytest.mark.parametrize("settings", [{"num_documents": 40, "validation_fraction": 0.4}, {"num_documents": 30}])
def test_a_built_in_source_gives_what_the_run_held_out(settings: dict[str, Any]) -> None:
    run_data = {"source": "c-functions", "sequence_length": 32, **settings}
    found = read("c-functions", model(run_data=run_data))
    data = TokenDataModule(**run_data | {"vocab_size": 300})
    data.prepare_data()
    data.setup("validate")
    content = hashlib.sha256(b"".join(text_hash(document.text) for document in found)).hexdigest()
    assert content == data.manifest.validation.content_sha256
    assert 0 < len(found) < settings["num_documents"]
    assert {document.domain for document in found} == {"c-functions"}
    assert len({document.name for document in found}) == len(found)


def test_a_streamed_run_held_out_its_first_documents(tmp_path: Path) -> None:
    bpe().save_pretrained(str(tmp_path))
    run_data = {
        "source": "c-functions", "num_documents": 30, "streaming": True, "validation_documents": 4,
        "tokenizer": str(tmp_path), "sequence_length": 32,
    }  # fmt: skip
    found = read("c-functions", model(run_data=run_data))
    first = islice(read_documents(Source(source="c-functions", num_documents=30)), 4)
    assert [document.text for document in found] == [document.text for document in first]


def test_held_out_stands_for_what_a_run_held_out_of_any_source(tmp_path: Path) -> None:
    texts = [f"text number {number} of many" for number in range(60)]
    file = write_lines(tmp_path / "all.jsonl", [{"text": text} for text in texts])
    run_data = {"source": file, "sequence_length": 8, "validation_fraction": 0.3}
    found = read("held-out", model(run_data=run_data))
    data = TokenDataModule(**run_data, vocab_size=300)
    assert [document.text for document in found] == [document.text for document in data.held_out_documents()]
    assert 0 < len(found) < 40 and {document.text for document in found} <= set(texts)
    with pytest.raises(ValueError, match=r"--data \(held-out\) needs the run of --model \(a model\), whose folder"):
        read("held-out", model())


def test_a_model_of_other_data_gets_what_runs_hold_out_by_default() -> None:
    of_none, of_other = (
        [document.text for document in read("python-stdlib", model(run_data=run_data), max_documents=5)]
        for run_data in (None, {"source": "c-functions", "sequence_length": 8, "validation_fraction": 0.5})
    )
    held_out = [document.text for document, _ in zip(TokenDataModule().held_out_documents(), range(5), strict=False)]
    assert of_none == of_other == held_out


def test_ours_get_documents_between_bos_and_eos(tmp_path: Path) -> None:
    (found,) = read(write_lines(tmp_path / "a.jsonl", [{"text": TEXTS[1]}]))
    end = bpe().eos_token_id
    assert found.token_ids[0] == found.token_ids[-1] == end
    # What spells the token in the text is text.
    assert end not in found.token_ids[1:-1]
    assert bpe().decode(found.token_ids[1:-1]) == TEXTS[1]


def test_others_get_their_tokenizers_own_special_tokens(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", [{"text": "first text"}, {"text": "second word"}])
    found = read(file, model(words(), ends_documents=False))
    assert [document.token_ids.tolist() for document in found] == [[1, 2, 4], [1, 3, 0]]
    (plain,) = read(write_lines(tmp_path / "b.jsonl", [{"text": TEXTS[0]}]), model(ends_documents=False))
    assert plain.token_ids.tolist() == bpe().encode(TEXTS[0], add_special_tokens=False)


def test_bytes_of_tokens_add_up_to_the_text(tmp_path: Path) -> None:
    (found,) = read(write_lines(tmp_path / "a.jsonl", [{"text": TEXTS[0]}]))
    pieces = [len(bpe().backend_tokenizer.id_to_token(int(token_id))) for token_id in found.token_ids[1:-1]]
    # The alphabet of a byte-level tokenizer has one character for each byte.
    assert found.token_bytes.tolist() == [0, *pieces, 0]
    assert found.token_bytes.sum() == len(TEXTS[0].encode()) == len(TEXTS[0]) + 2
    # Of other tokenizers, the text's bytes are shared out: the space, which is in no token, falls to both words.
    (shared,) = read(write_lines(tmp_path / "b.jsonl", [{"text": "first text"}]), model(words(), ends_documents=False))
    assert shared.token_bytes == pytest.approx([0, 5 * 10 / 9, 4 * 10 / 9])
    (unknown,) = read(write_lines(tmp_path / "c.jsonl", [{"text": "nothing"}]), model(words(), ends_documents=False))
    assert unknown.token_bytes.tolist() == [0, 0]


def test_limits_cut_exactly(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    every = read(file)
    assert [document.text for document in read(file, max_documents=2)] == TEXTS[:2]
    stream = np.concatenate([document.token_ids for document in every])
    for max_tokens in range(1, len(stream) + 3):
        limited = read(file, max_tokens=max_tokens)
        assert np.array_equal(np.concatenate([document.token_ids for document in limited]), stream[:max_tokens])
        for document, whole in zip(limited, every, strict=False):
            assert document.text == whole.text and len(document.token_ids) > 0
            assert np.array_equal(document.token_bytes, whole.token_bytes[: len(document.token_ids)])
    assert [document.text for document in read(file, max_documents=1, max_tokens=10**6)] == TEXTS[:1]


def test_each_document_is_cut_to_its_beginning(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    for document, whole in zip(read(file, max_document_tokens=4), read(file), strict=True):
        assert document.token_ids.tolist() == whole.token_ids[:4].tolist()
    assert sum(len(document.token_ids) for document in read(file, max_document_tokens=4, max_tokens=6)) == 6


def test_problems_from_a_key_of_the_records(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", [{"text": "x", "of": 7}, {"text": "y", "of": "eight"}])
    assert [document.problem for document in read(file, problem_key="of")] == ["7", "eight"]
    assert [document.problem for document in read(file)] == [None, None]


def test_many_texts_are_the_same_as_each_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_lines(tmp_path / "a.jsonl", [{"text": f"{number} {TEXTS[number % 3]}"} for number in range(40)])
    together = read(file)
    monkeypatch.setattr("pathmoe_eval.evaluation.evaluated_data._CHARACTERS_PER_BATCH", 30)
    alone = read(file)
    assert [d.token_ids.tolist() for d in together] == [d.token_ids.tolist() for d in alone]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"max_documents": 0}, r"--max_documents \(0\) must be at least 1; raise it or leave it out"),
        ({"max_tokens": 0}, r"--max_tokens \(0\) must be at least 1; raise it or leave it out"),
        ({"domain_key": "x"}, r"--domain_key \(x\) must not be set with --data python-stdlib, which has no records; l"),
        ({"problem_key": "x"}, r"--problem_key \(x\) must not be set with --data python-stdlib, which has no records"),
        ({"max_document_tokens": 0}, r"--max_document_tokens \(0\) must be at least 1; raise it or leave it out"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=rf"^{line}"):
        EvaluatedData(**options)


@pytest.mark.parametrize(
    ("content", "options", "line"),
    [
        ("", {}, r"--data: FILE is empty; remove it"),
        ('{"text": ""}\n{"text": null}', {}, r"--data \(FILE\) must hold text, but holds none; give other data"),
        ('{"text": "x"}\n{"text"', {}, r"--data: FILE is not JSON at line 2 "),
        ('["x"]', {}, r"--data: FILE, record 1 must be a JSON object with the key --text_key \(text\); fix it"),
        ('{"body": "x"}', {}, r"--text_key \(text\) must be one of the keys of FILE, record 1 \(body\); set"),
        ('{"text": 3}', {}, r"--text_key \(text\) must name text, but FILE, record 1 holds int; set --text_key"),
        ('{"text": "x"}', {"domain_key": "d"}, r"--domain_key \(d\) must be one of the keys of FILE, record 1 "),
        ('{"text": "x", "d": null}', {"domain_key": "d"}, r"--domain_key \(d\) must name text or whole numbers, "),
        ('{"text": "x"}', {"split": "test"}, r"--split \(test\) must not be set where --data \(FILE\) has"),
    ],
)
def test_files_that_cannot_be_read_are_refused(
    content: str, options: dict[str, Any], line: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(content)
    with pytest.raises(ValueError, match="^" + line.replace("FILE", str(file))) as caught:
        read(str(file), **options)
    assert "\n" not in str(caught.value)


def test_other_places_without_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"^--domain_key \(d\) must be a key of records, but .*a\.txt has none; leave"):
        read(str(tmp_path / "a.txt"), domain_key="d")
    with pytest.raises(ValueError, match=r"^--data \(.*none\.jsonl\) names no file that is there; give"):
        read(str(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match=r"^--data \(no/such\) must be a file or folder .*, which can't be reached"):
        read("no/such")


def test_a_token_beyond_the_models_vocabulary_is_refused(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", [{"text": "first first first"}])
    highest = int(read(file)[0].token_ids.max())
    assert len(read(file, model(vocab_size=highest + 1))) == 1
    line = rf"^--model \(a model\) has a tokenizer that gives a\.jsonl, record 1 the token id {highest}, which must be"
    with pytest.raises(ValueError, match=line):
        read(file, model(vocab_size=highest))
