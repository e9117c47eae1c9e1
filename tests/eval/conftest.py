"""What several tests need: small models of random weights, tiny runs, counts in parts, reports of all sections."""

# Shapes: N tokens, M documents, L MoE layers, K experts per token, E experts.

import functools
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from pathmoe.data import train_bpe

ROUTERS = {path.stem: path for path in (Path(__file__).resolve().parents[2] / "configs" / "routers").glob("*.yaml")}
OURS = ("indep", "path_b4", "mono_b8", "omni", "x_moe", "recurrent", "low_rank")
SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
LATENT_ATTENTION = {
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 6,
}
LINEAR_ATTENTION = {
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "head_dim": 16,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "num_experts": 6,
}
THEIRS: dict[str, dict[str, Any]] = {
    "olmoe": {"intermediate_size": 8, "num_experts": 6},
    "mixtral": {"intermediate_size": 8, "num_local_experts": 6},
    "deepseek_v3": {
        **LATENT_ATTENTION,
        "moe_intermediate_size": 8,
        "intermediate_size": 8,
        "first_k_dense_replace": 1,
        "n_group": 2,
        "topk_group": 1,
    },
    "gpt_oss": {"intermediate_size": 8, "num_local_experts": 6, "head_dim": 16, "sliding_window": 4},
    "qwen3_moe": {
        "moe_intermediate_size": 8,
        "intermediate_size": 8,
        "num_experts": 6,
        "head_dim": 16,
        "mlp_only_layers": [0],
    },
    "granitemoe": {"intermediate_size": 8, "num_local_experts": 6},
    "dbrx": {
        "d_model": 32,
        "n_heads": 2,
        "n_layers": 3,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 8, "moe_num_experts": 6, "moe_top_k": 2},
    },
}
RECORDED: dict[str, dict[str, Any]] = THEIRS | {
    "qwen2_moe": {
        "moe_intermediate_size": 8,
        "intermediate_size": 8,
        "shared_expert_intermediate_size": 8,
        "num_experts": 6,
        "mlp_only_layers": [1],
    },
    "qwen3_next": LINEAR_ATTENTION,
    "qwen3_5_moe_text": LINEAR_ATTENTION,
    "granitemoehybrid": {
        "intermediate_size": 8,
        "shared_intermediate_size": 8,
        "num_local_experts": 6,
        "layer_types": ["mamba", "attention", "mamba"],
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
    },
    "longcat_flash": LATENT_ATTENTION
    | {
        "num_hidden_layers": 6,
        "ffn_hidden_size": 8,
        "expert_ffn_hidden_size": 8,
        "zero_expert_num": 2,
        "moe_topk": 2,
        "head_dim": 8,
    },
}

BuildMoE = Callable[..., Any]
"""From a name and fields of the configuration to a model in evaluation mode; the same seed gives the same weights."""


def _build(name: str, **fields: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    import pathmoe  # noqa: F401  # makes our models known to transformers

    torch.manual_seed(0)
    if name in ROUTERS:
        own = yaml.safe_load(ROUTERS[name].read_text())["model"]["config"]
        own |= {"moe_intermediate_size": 8, "num_experts": 6, "num_hidden_layers": 9}
        config = AutoConfig.for_model("pathmoe", **SHAPE | own | fields)
    else:
        config = AutoConfig.for_model(name, **SHAPE | RECORDED[name] | fields)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        # Biases of the choice move it away from the order of the weights; norms stay what they are.
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    for buffer_name, buffer in model.named_buffers():
        if "correction_bias" in buffer_name:
            nn.init.normal_(buffer, std=0.3)
    return model


@pytest.fixture(scope="session")
def build_moe() -> BuildMoE:
    """Build a model by its name."""
    return _build


@pytest.fixture(params=[*OURS, *THEIRS])
def moe_name(request: pytest.FixtureRequest) -> str:
    """Each name that interventions are tested with."""
    return str(request.param)


@pytest.fixture(params=RECORDED)
def family(request: pytest.FixtureRequest) -> str:
    """Each name of another family's model."""
    return str(request.param)


@pytest.fixture(params=sorted(ROUTERS))
def router(request: pytest.FixtureRequest) -> str:
    """Each name of ours."""
    return str(request.param)


FitTiny = Callable[..., Path]
"""From a folder that is to be the run's and fields of the configuration to that folder, after two steps."""


def _fit_tiny(folder: Path, **fields: Any) -> Path:
    from pathmoe.training.cli import main

    fields = {"vocab_size": 300, "hidden_size": 16, "moe_intermediate_size": 8, "num_experts": 4} | fields
    settings = {
        **{f"model.config.{name}": value for name, value in fields.items()},
        "model.schedule.warmup_steps": 0, "data.source": "c-functions", "data.num_documents": 60,
        "data.sequence_length": 32, "data.micro_batch_size": 2, "trainer.max_steps": 2, "run_dir": folder,
    }  # fmt: skip
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py"])
        main(["fit", "--config", "tiny", *flags])
    return folder


@pytest.fixture(scope="session")
def fit_tiny() -> FitTiny:
    """Train a tiny run by the command line."""
    return _fit_tiny


CountInParts = Callable[..., Any]
"""From a function that makes an empty accumulator, hypothesis' data and the columns of its `update` to one that has
counted them."""


@pytest.fixture(scope="session")
def count_in_parts() -> CountInParts:
    """Count tokens in any order and in chunks of any size, in two accumulators by turns, one merged into the other."""

    def count(make: Callable[[], Any], data: st.DataObject, *columns: NDArray[Any]) -> Any:
        order_N = np.array(data.draw(st.permutations(range(len(columns[0])))), dtype=np.int64)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(order_N)), max_size=4)))
        halves = [make(), make()]
        for index, rows in enumerate(np.split(order_N, cuts)):
            halves[index % 2].update(*(column[rows] for column in columns))
        halves[0].merge(halves[1])
        return halves[0]

    return count


MakeReport = Callable[..., dict[str, Any]]
"""From what a report is to differ in to a report with every section, as it is read from its file."""


@pytest.fixture(scope="session")
def make_report(tmp_path_factory: pytest.TempPathFactory) -> MakeReport:
    """Reports of random routing, made by the accumulators."""
    made = functools.cache(lambda **fields: json.dumps(_report(tmp_path_factory.mktemp("trace") / "trace", **fields)))
    return lambda **fields: json.loads(made(**fields))


def _report(
    folder: Path,
    num_tokens: int = 300,
    num_experts: int = 6,
    num_experts_per_tok: int = 2,
    router_of_layer: tuple[int, ...] = (0, 0, 1, 1, 1),
    model: str = "runs/one/last.ckpt",
    seed: int = 0,
    sketch: bool = False,
) -> dict[str, Any]:
    from pathmoe_eval.analysis import Options, analyse
    from pathmoe_eval.classes.text_classes import text_classes
    from pathmoe_eval.experts.saturation import SaturationCounts
    from pathmoe_eval.perturbations.robustness import PER_BLOCK, PER_LAYER, PerturbedSums, robustness
    from pathmoe_eval.reports.report import FORMAT
    from pathmoe_eval.traces.routing_chunk import RoutingChunk
    from pathmoe_eval.traces.trace import open_trace
    from pathmoe_eval.traces.trace_header import TraceHeader
    from pathmoe_eval.traces.trace_writer import TraceWriter

    rng = np.random.default_rng(seed)
    num_layers = len(router_of_layer)
    shape = {"num_layers": num_layers, "num_experts": num_experts, "num_experts_per_tok": num_experts_per_tok}
    bpe = train_bpe(["a few words to learn from, 12 of them or more"], 290)
    header = TraceHeader(
        **shape, layer_names=tuple(f"layers.{layer}" for layer in range(num_layers)), router_of_layer=router_of_layer,
        model=model, tokenizer="", data="data.jsonl", vocab_size=290, has_weights=False, has_logits=True,
        has_predicted_ids=False,
    )  # fmt: skip
    # Layers resemble each other, so that figures differ from what chance gives.
    own_NE = rng.normal(size=(num_tokens, 1, num_experts))
    logits_NLE = (own_NE + rng.normal(size=(num_tokens, num_layers, num_experts))).astype(np.float32)
    expert_ids_NLK = np.argsort(-logits_NLE, axis=-1)[..., :num_experts_per_tok].astype(np.uint8)
    token_ids_N = rng.integers(0, 290, num_tokens)
    bounds = np.linspace(0, num_tokens, 5).astype(int)
    with TraceWriter(folder, header) as writer:
        for document, (first, last) in enumerate(itertools.pairwise(bounds.tolist())):
            chunk = RoutingChunk(
                expert_ids_NLK=expert_ids_NLK[first:last], token_ids_N=token_ids_N[first:last],
                starts_S1=np.array([0, last - first]), logits_NLE=logits_NLE[first:last],
            )  # fmt: skip
            writer.append(chunk, names=[f"document {document}"], domains=[("news", "code")[document % 2]])
    sections = analyse(open_trace(folder), bpe, text_classes, Options(sets=not sketch, sketch=sketch))
    later = SaturationCounts(**shape)
    later.update(expert_ids_NLK, np.roll(expert_ids_NLK, 1, axis=0), token_ids_N, token_ids_N)
    free_M, tokens_M = 4.0 * np.diff(bounds), np.diff(bounds)
    perturbed = [
        PerturbedSums(intervention=name, setting=setting, nats_RM=free_M + rng.uniform(0, 2, (3, 1)) * tokens_M)
        for name, setting in ((PER_LAYER, None), (PER_BLOCK, None), ("logit noise", 0.5))
    ]
    report = {
        "format": FORMAT,
        "run": {
            "command": f"pathmoe-eval paths --model {model}", "model": model, "data": "data.jsonl",
            "num_tokens": num_tokens, "num_sequences": 4, **shape, "router_of_layer": router_of_layer,
            "layer_names": header.layer_names, "seed": 0, "versions": {"torch": "2.13.0", "triton": None},
            "created": "2026-01-01T00:00:00+00:00",
        },
        "sections": sections | {
            "perplexity": asdict(_perplexity(rng, bounds)),
            "saturation": asdict(later.result()),
            "perturbation": asdict(robustness(free_M, tokens_M, perturbed, router_of_layer, num_resamples=50)),
        },
    }  # fmt: skip
    return report


def _perplexity(rng: np.random.Generator, bounds: NDArray[np.int64]) -> Any:
    from pathmoe_eval.evaluation.evaluated_data import EvaluatedDocument
    from pathmoe_eval.evaluation.perplexity import perplexity
    from pathmoe_eval.evaluation.scoring import TokenScores

    lengths_M = np.diff(bounds)
    documents = [
        EvaluatedDocument(
            name=f"document {document}", domain=("news", "code")[document % 2], text="", token_ids=np.arange(length),
            token_bytes=np.full(length, 3.0),
        )
        for document, length in enumerate(lengths_M.tolist())
    ]  # fmt: skip
    position_N = np.concatenate([np.arange(1, length) for length in lengths_M])
    scores = TokenScores(
        document_N=np.repeat(np.arange(len(lengths_M)), lengths_M - 1), position_N=position_N, token_id_N=position_N,
        log_probability_N=-rng.uniform(1, 7, len(position_N)),
    )  # fmt: skip
    return perplexity(scores, documents, num_resamples=50)
