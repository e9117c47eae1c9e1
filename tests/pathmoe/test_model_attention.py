"""Attention in the whole model: inside documents whatever computes it, and at scale without an S x S mask."""

# Shapes: B batch, S sequence, T = B*S tokens, H heads, D head width, E experts, K experts per token.

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import modeling_flash_attention_utils as flash_utils
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pathmoe import PathMoEConfig, PathMoEForCausalLM
from pathmoe.attention_mask import document_block_mask

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
VOCABULARY = 40
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 9,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 16,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "initializer_range": 0.15,
}
# Document lengths, row by row: boundaries in different places, one row with fewer documents.
ROWS = [[5, 1, 7], [4, 9]]
LONG_ROWS = [[100, 61, 140, 3], [304], [128, 128, 48]]


def build(attention: str, router: str = "path_b4", **fields: Any) -> PathMoEForCausalLM:
    torch.manual_seed(0)
    from_yaml = yaml.safe_load((CONFIGS / f"routers/{router}.yaml").read_text())["model"]["config"]
    model = PathMoEForCausalLM(PathMoEConfig(**SHAPE | from_yaml | fields)).eval()
    # Not through transformers' setter, which wants flash attention to be installed.
    model.config._attn_implementation = attention
    return model


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(1))


def positions(rows: list[list[int]]) -> Tensor:
    return torch.tensor([[position for length in row for position in range(length)] for row in rows])


def varlen_reference(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
) -> Tensor:  # fmt: skip
    """flash_attn_varlen_func by its documentation: q [T, H, D] and fewer heads in k, v; one sequence after another."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert causal and dropout_p == 0
    ends = cu_seqlens_q.tolist()
    assert ends == cu_seqlens_k.tolist()
    assert ends[0] == 0 and ends[-1] == len(q)
    assert max(end - start for start, end in pairwise(ends)) == max_seqlen_q == max_seqlen_k
    parts = [
        dense_reference(q[None, start:end], k[None, start:end], v[None, start:end], softmax_scale=softmax_scale)
        for start, end in pairwise(ends)
    ]
    return torch.cat(parts, dim=1)[0]


def dense_reference(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = True
) -> Tensor:
    """flash_attn_func: [B, S, H, D]; causal means that the last query sees every key."""
    assert causal and dropout_p == 0
    num_queries, num_keys = q.shape[1], k.shape[1]
    mask = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, scale=softmax_scale, enable_gqa=True).transpose(1, 2)


@pytest.fixture(autouse=True)
def _flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions of flash-attn, which needs a GPU, in place; transformers' code around them is its own."""
    stand_ins = {
        "_loaded_implementation": "flash_attention_2",
        "_flash_fn": dense_reference,
        "_flash_varlen_fn": varlen_reference,
        "_process_flash_kwargs_fn": flash_utils._lazy_define_process_function(varlen_reference),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(flash_utils, name, stand_in)


def assert_as_if_each_were_alone(model: PathMoEForCausalLM, rows: list[list[int]]) -> None:
    input_ids = tokens(len(rows), sum(rows[0]))
    with torch.compiler.set_stance("force_eager"):  # flex attention compiles itself
        packed = model(input_ids, position_ids=positions(rows))
    model.config._attn_implementation = "eager"
    documents = [document for ids, row in zip(input_ids, rows, strict=True) for document in ids.split(row)]
    alone = [model(document[None]) for document in documents]
    expected = torch.cat([output.logits[0] for output in alone])
    torch.testing.assert_close(packed.logits.flatten(0, 1), expected, atol=1e-5, rtol=1e-4)
    for layer, routing in enumerate(packed.routings):
        expert_ids_TK = torch.cat([output.routings[layer].expert_ids_TK for output in alone])
        assert torch.equal(routing.expert_ids_TK, expert_ids_TK)


# The compiler warns while it is imported, and flex attention that it is slow uncompiled.
flex_warnings = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning",
    "ignore:flex_attention called without torch.compile",
)
every_attention = pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention", "flash_attention_2"])


@pytest.mark.parametrize("router", sorted(path.stem for path in (CONFIGS / "routers").glob("*.yaml")))
@every_attention
@flex_warnings
@torch.no_grad()
def test_packed_documents_are_as_if_each_were_alone(attention: str, router: str) -> None:
    assert_as_if_each_were_alone(build(attention, router), ROWS)


@pytest.mark.parametrize("rows", [LONG_ROWS, [[13], [13]]], ids=["long", "without restarts"])
@every_attention
@flex_warnings
@torch.no_grad()
def test_documents_longer_than_a_block_and_rows_of_one(attention: str, rows: list[list[int]]) -> None:
    assert_as_if_each_were_alone(build(attention, num_hidden_layers=4), rows)


def test_flash_attention_trains_as_sdpa_does_with_and_without_checkpointed_activations() -> None:
    gradients = []
    for attention, checkpointing in (("sdpa", False), ("flash_attention_2", False), ("flash_attention_2", True)):
        model = build(attention).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        input_ids = tokens(2, 13)
        model(input_ids, position_ids=positions(ROWS), labels=input_ids, use_cache=False).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(gradients[2], gradients[1], atol=0, rtol=0)


@torch.no_grad()
def test_flash_attention_goes_on_from_a_cache() -> None:
    input_ids = tokens(2, 9)
    expected = build("sdpa")(input_ids).logits
    model = build("flash_attention_2")
    first = model(input_ids[:, :5], use_cache=True)
    second = model(input_ids[:, 5:], past_key_values=first.past_key_values)
    actual = torch.cat([first.logits, second.logits], dim=1)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


class LargestTensor(TorchDispatchMode):
    """Records the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("row", [[4096], [1000, 96, 3000], [1] * 4096], ids=len)
def test_the_mask_of_blocks_is_made_without_the_sequence_squared(row: list[int]) -> None:
    position_ids_BS = positions([row])
    with LargestTensor() as largest:
        document_block_mask(position_ids_BS)
    assert largest.numel == 4096  # the positions themselves; the blocks are 32 x 32


@contextmanager
def attention_that_only_looks(name: str) -> Iterator[list[dict[str, Any]]]:
    """In place of an attention function, one that keeps its arguments and returns the queries."""
    calls: list[dict[str, Any]] = []

    def look(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
        calls.append({"attention_mask": attention_mask, **kwargs})
        return query.transpose(1, 2), None

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ALL_ATTENTION_FUNCTIONS, name, look)
        yield calls


def forward_at_scale(attention: str) -> tuple[list[dict[str, Any]], int]:
    """What attention is given at 2 x 4096 tokens, and elements of the largest tensor that the model made."""
    rows = [[1000, 96, 3000], [4096]]
    model = build(attention, num_hidden_layers=4)
    input_ids, position_ids = tokens(2, 4096), positions(rows)
    with torch.no_grad(), attention_that_only_looks(attention) as calls, LargestTensor() as largest:
        model(input_ids, position_ids=position_ids)
    assert len(calls) == 4
    return calls, largest.numel


def attention_at_paper_scale() -> set[str]:
    files = [yaml.safe_load(file.read_text()) for file in sorted(CONFIGS.glob("pathmoe_*.yaml"))]
    return {file["model"]["attn_implementation"] for file in files}


@pytest.mark.parametrize("attention", sorted(attention_at_paper_scale() | {"flex_attention", "flash_attention_2"}))
def test_at_paper_scale_no_tensor_of_the_sequence_squared_is_made(attention: str) -> None:
    calls, largest = forward_at_scale(attention)
    for given in calls:
        if attention == "flex_attention":
            assert isinstance(given["attention_mask"], BlockMask)
        else:
            assert given["attention_mask"] is None
            assert given["cu_seq_lens_q"].tolist() == [0, 1000, 1096, 4096, 8192]
    assert largest < 4096 * 4096 / 16


def test_the_measure_sees_the_mask_that_sdpa_makes() -> None:
    _, largest = forward_at_scale("sdpa")
    assert largest >= 2 * 4096 * 4096
