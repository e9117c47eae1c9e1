"""Token scores: against one forward a token, a model's own loss, and the loss of training's validation."""

# Shapes: B windows of a forward, S sequence, V vocabulary, N scored tokens.

import math
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from transformers import GraniteMoeConfig, GraniteMoeForCausalLM, OlmoeConfig, OlmoeForCausalLM, PreTrainedModel

from pathmoe import PathMoEConfig, PathMoEForCausalLM
from pathmoe.data import IGNORE_INDEX, TokenDataModule
from pathmoe.data.tokenizer import token_byte_lengths
from pathmoe.training.module import PathMoEModule
from pathmoe_eval.evaluation import scoring
from pathmoe_eval.evaluation.perplexity import perplexity
from pathmoe_eval.evaluation.scoring import ScoredBatch, TokenScores, join_scores, scored_batches
from pathmoe_eval.evaluation.windows import score_windows

VOCAB = 50
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_experts_per_tok": 2,
    "initializer_range": 0.3, "max_position_embeddings": 64,
}  # fmt: skip
OWN = {
    "ours": {"moe_intermediate_size": 8, "num_experts": 4},
    "olmoe": {"intermediate_size": 8, "num_experts": 4, "pad_token_id": None, "eos_token_id": None},
    # Its head divides the logits.
    "granite": {"intermediate_size": 8, "num_local_experts": 4, "logits_scaling": 3.0, "num_key_value_heads": 2},
}


@cache
def model(kind: str) -> PreTrainedModel:
    torch.manual_seed(1)
    if kind == "ours":
        return PathMoEForCausalLM(PathMoEConfig(**SHAPE | OWN[kind])).eval()
    if kind == "olmoe":
        return OlmoeForCausalLM(OlmoeConfig(**SHAPE | OWN[kind])).eval()
    return GraniteMoeForCausalLM(GraniteMoeConfig(**SHAPE | OWN[kind])).eval()


@dataclass
class Doc:
    token_ids: NDArray[np.int64]
    token_bytes: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    name: str = ""
    domain: str = ""


def docs(lengths: list[int], seed: int = 0) -> list[Doc]:
    rng = np.random.default_rng(seed)
    return [Doc(rng.integers(0, VOCAB, length)) for length in lengths]


def score(kind: str, documents: list[Doc], max_length: int, stride: int, windows_per_forward: int = 1) -> TokenScores:
    return join_scores(scored_batches(model(kind), score_windows(documents, max_length, stride), windows_per_forward))


@torch.inference_mode()
def one_at_a_time(kind: str, documents: list[Doc], max_length: int, stride: int) -> list[tuple[int, int, int, float]]:
    """Each token from a forward of its own over all the context that it may have."""
    found = []
    for number, document in enumerate(documents):
        ids_N = document.token_ids
        for position in range(1, len(ids_N)):
            begin = 0
            while position > begin + max_length:
                begin += stride
            logits_V = model(kind)(torch.from_numpy(ids_N[None, begin:position])).logits[0, -1].double()
            token_id = int(ids_N[position])
            found.append((number, position, token_id, float(logits_V.log_softmax(-1)[token_id])))
    return found


@pytest.mark.parametrize("kind", list(OWN))
@pytest.mark.parametrize("logits_per_chunk", [1, 3 * VOCAB, 1 << 25])
@settings(max_examples=5)
@given(
    lengths=st.lists(st.integers(0, 14), max_size=3),
    shape=st.sampled_from([(4, 4), (4, 1), (5, 3), (9, 2), (20, 20), (1, 1)]),
    windows_per_forward=st.integers(1, 4),
)
def test_every_token_is_scored_as_alone_with_its_context(
    kind: str, logits_per_chunk: int, lengths: list[int], shape: tuple[int, int], windows_per_forward: int
) -> None:
    documents = docs(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "_LOGITS_PER_CHUNK", logits_per_chunk)
        scores = score(kind, documents, *shape, windows_per_forward)
    expected = one_at_a_time(kind, documents, *shape)
    rows = zip(scores.document_N, scores.position_N, scores.token_id_N, strict=True)
    assert [tuple(map(int, row)) for row in rows] == [row[:3] for row in expected]
    assert scores.log_probability_N.dtype == np.float64
    np.testing.assert_allclose(scores.log_probability_N, [row[3] for row in expected], atol=3e-5)


def test_chunks_leave_a_forward_of_the_decoders_own_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_LOGITS_PER_CHUNK", VOCAB)
    decoder, calls = model("olmoe").base_model, []
    original = decoder.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    score("olmoe", docs([6]), 6, 6)
    assert "forward" not in vars(decoder)
    monkeypatch.setattr(decoder, "forward", counted, raising=False)
    score("olmoe", docs([6]), 6, 6)
    assert vars(decoder)["forward"] is counted and calls == [1]


@pytest.mark.parametrize("kind", ["olmoe", "granite"])
def test_the_mean_is_the_models_own_loss(kind: str) -> None:
    (document,) = documents = docs([40])
    scores = score(kind, documents, 64, 64)
    ids = torch.from_numpy(document.token_ids[None])
    with torch.inference_mode():
        loss = float(model(kind)(ids, labels=ids).loss)
    assert -scores.log_probability_N.mean() == pytest.approx(loss, rel=1e-6)


def documents_of_blocks(data: TokenDataModule) -> list[Doc]:
    """What each validation block holds of each document, with the last token that is predicted from it."""
    batch = {
        name: tensor.numpy()
        for name, tensor in data.validation_blocks.batch(np.arange(len(data.validation_blocks))).items()
    }
    found = []
    for ids_S, labels_S, places_S in zip(batch["input_ids"], batch["shift_labels"], batch["position_ids"], strict=True):
        bounds = [*np.flatnonzero(places_S == 0), len(ids_S)]
        for first, end in pairwise(bounds):
            last = labels_S[end - 1 : end]
            found.append(Doc(np.concatenate([ids_S[first:end], last[last != IGNORE_INDEX]])))
    return found


def test_perplexity_and_bits_per_byte_are_those_of_a_validation_in_training() -> None:
    data = TokenDataModule(source="c-functions", num_documents=60, vocab_size=300, sequence_length=32)
    config = PathMoEConfig(**SHAPE | OWN["ours"] | {"vocab_size": 300, "router_aux_loss_coef": 0.01})
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    module = PathMoEModule(config)
    (figures,) = trainer.validate(module, datamodule=data, verbose=False)
    documents = documents_of_blocks(data)
    windows = score_windows(documents, 32, 32)
    scores = join_scores(scored_batches(module.model.eval(), windows, 16))
    assert len(scores.log_probability_N) == data.manifest.validation.targets
    token_bytes_V = token_byte_lengths(data.tokenizer)
    for document in documents:
        document.token_bytes = token_bytes_V[document.token_ids].astype(np.float64)
    total = perplexity(scores, documents, num_resamples=2).total
    assert total.nats / total.num_tokens == pytest.approx(figures["val/loss"], rel=1e-6)
    assert total.perplexity == pytest.approx(figures["val/perplexity"], rel=1e-6)
    assert total.bits_per_byte == pytest.approx(figures["val/bits_per_byte"], rel=1e-6)


@pytest.mark.parametrize("kind", ["ours", "olmoe"])
@settings(max_examples=10)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    stride=st.integers(1, 12),
    order=st.randoms(use_true_random=False),
)
def test_a_documents_scores_are_the_same_bits_whatever_else_is_scored(
    kind: str, lengths: list[int], stride: int, order: Any
) -> None:
    documents = docs(lengths)
    together = score(kind, documents, 12, stride)
    shuffled = list(range(len(documents)))
    order.shuffle(shuffled)
    in_another_order = score(kind, [documents[number] for number in shuffled], 12, stride)
    for place, number in enumerate(shuffled):
        alone = score(kind, [documents[number]], 12, stride).log_probability_N
        assert np.array_equal(alone, together.log_probability_N[together.document_N == number])
        assert np.array_equal(alone, in_another_order.log_probability_N[in_another_order.document_N == place])
    total = math.fsum(together.log_probability_N)
    assert total == math.fsum(in_another_order.log_probability_N)


@pytest.mark.parametrize("kind", ["ours", "olmoe"])
@settings(max_examples=10)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    stride=st.integers(1, 12),
    windows_per_forward=st.integers(2, 9),
)
def test_the_sum_of_larger_batches_is_that_of_single_windows_but_for_rounding(
    kind: str, lengths: list[int], stride: int, windows_per_forward: int
) -> None:
    documents = docs(lengths)
    alone, batched = (score(kind, documents, 12, stride, size) for size in (1, windows_per_forward))
    assert math.fsum(batched.log_probability_N) == pytest.approx(math.fsum(alone.log_probability_N), rel=1e-5)


def rows(batch: ScoredBatch) -> list[tuple[int, int, int]]:
    counted = batch.is_counted_BS
    columns = (batch.document_BS[counted], batch.position_BS[counted], batch.input_ids_BS[counted])
    return [tuple(map(int, row)) for row in zip(*columns, strict=True)]  # type: ignore[misc]  # of three columns


@pytest.mark.parametrize("windows_per_forward", [1, 3])
def test_rows_of_a_batch_say_which_token_they_are_and_count_it_once(windows_per_forward: int) -> None:
    documents = docs([30, 1, 0, 7])
    batches = list(scored_batches(model("ours"), score_windows(documents, 8, 3), windows_per_forward, predict=True))
    expected = [(n, p, int(i)) for n, document in enumerate(documents) for p, i in enumerate(document.token_ids)]
    assert sorted(row for batch in batches for row in rows(batch)) == expected
    for batch in batches:
        mask_BS = batch.token_mask_BS
        assert np.array_equal(mask_BS, batch.document_BS >= 0) and np.array_equal(mask_BS, batch.position_BS >= 0)
        assert not (batch.is_counted_BS & ~mask_BS).any()
        for row, column in np.argwhere(mask_BS):
            document = documents[batch.document_BS[row, column]]
            assert batch.input_ids_BS[row, column] == document.token_ids[batch.position_BS[row, column]]
        assert batch.predicted_ids_BS is not None
        with torch.inference_mode():
            logits_BSV = model("ours")(torch.from_numpy(batch.input_ids_BS)).logits
        assert np.array_equal(batch.predicted_ids_BS[mask_BS], logits_BSV.argmax(-1).numpy()[mask_BS])


def test_no_windows_give_no_scores() -> None:
    scores = score("ours", [], 8, 8)
    assert len(scores.log_probability_N) == len(scores.document_N) == 0


def test_a_log_probability_that_is_not_finite_is_refused() -> None:
    broken = PathMoEForCausalLM(PathMoEConfig(**SHAPE | OWN["ours"])).eval()
    with torch.no_grad():
        broken.lm_head.weight[:] = math.nan
    with pytest.raises(ValueError, match=r"--model: the log-probability \(nan\) of token 1 of document 0 must be fin"):
        next(scored_batches(broken, score_windows(docs([4]), 8, 8)))
