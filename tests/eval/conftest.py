"""What several tests need: small models of random weights, tiny runs, counts in parts, reports of all sections."""

# Shapes: N tokens, M documents, L MoE layers, K experts per token, E experts.

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from pathmoe.data import encode, train_bpe

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


PlantTree = Callable[..., Any]
"""From the tokens after the prompt of each completion, which share what they begin with, and the experts of a node as a
function of (token id, depth, node), [layers][experts per token], to their tree."""


def _plant(
    completions: list[list[int]],
    experts: Callable[[int, int, int], list[list[int]]],
    num_experts: int,
    prompt: tuple[int, ...] = (0, 0),
    is_cut: tuple[int, ...] = (),
) -> Any:
    from pathmoe_eval.generation.tree import GenerationTree

    parents, tokens, nodes = [*range(-1, len(prompt) - 1)], [*prompt], {}
    ends: dict[int, int] = {}
    for index, completion in enumerate(completions):
        last = len(prompt) - 1
        for length, token in enumerate(completion, start=1):
            # The last token of a completion is its own, even where another has the same.
            key = (*completion[:length], *((-1 - index,) if length == len(completion) else ()))
            if key not in nodes:
                nodes[key] = len(parents)
                parents.append(last)
                tokens.append(token)
            last = nodes[key]
        ends[last] = 2 if index in is_cut else 1
    num_nodes = len(parents)
    depths = [0] * num_nodes
    for node in range(1, num_nodes):
        depths[node] = depths[parents[node]] + 1
    ids_NLK = np.array([experts(tokens[node], depths[node], node) for node in range(num_nodes)], dtype=np.uint8)
    return GenerationTree(
        num_layers=ids_NLK.shape[1],
        num_experts=num_experts,
        num_experts_per_tok=ids_NLK.shape[2],
        vocab_size=1000,
        prompt_length=len(prompt),
        parent_N=np.array(parents, dtype=np.int64),
        token_ids_N=np.array(tokens, dtype=np.int32),
        log_probability_N=np.zeros(num_nodes, dtype=np.float32),
        expert_ids_NLK=ids_NLK,
        has_routing_N=np.array([node not in ends for node in range(num_nodes)]),
        end_N=np.array([ends.get(node, 0) for node in range(num_nodes)], dtype=np.uint8),
        fork_mass_N=np.full(num_nodes, np.nan, dtype=np.float32),
    )


@pytest.fixture(scope="session")
def plant_tree() -> PlantTree:
    """Plant a tree."""
    return _plant


PROMPT = "int f(int a, int b) {\n"
ENDINGS = (
    "    return a + b;\n}\n",
    "    /* the sum */\n    return a + b;\n}\n",
    "\n    return a + b;\n}\n",
    "    return a + b;\n}\n",
    "    return a - b;\n}\n",
    "    return a - b; // less\n}\n",
    "    return a * b;\n}\n",
    "    return a * c;\n}\n",
)
"""Of the first four, one group of equal assembly, the next two another, one alone; the last does not compile."""


class ProgramTree(NamedTuple):
    """Programs of a prompt as a tree, with what a study is told of it."""

    tree: Any
    tokenizer: Any
    made_from: dict[str, Any]


@pytest.fixture(scope="session")
def program_tree() -> ProgramTree:
    """A tree whose completions are `ENDINGS`; in two layers the token alone decides the experts, in one its depth."""
    bpe = train_bpe([PROMPT + ending for ending in ENDINGS], 300)
    prompt_ids = [bpe.bos_token_id, *encode(bpe, [PROMPT])[0]]

    def experts(token: int, depth: int, _: int) -> list[list[int]]:
        return [[token % 3, 3 + token % 5], [token % 4, 4 + token % 3], [depth % 4, 4 + depth % 3]]

    completions = [[*ids, bpe.eos_token_id] for ids in encode(bpe, ENDINGS)]
    made_from = {
        "model": "runs/one/last.ckpt", "model_hash": "0" * 16, "dtype": "float32", "prompt": PROMPT,
        "prompt_ids": prompt_ids, "prompt_file": None, "method": "tree", "num_forwarded": 100, "num_read_again": 0,
        "bytes_per_expert": 1000, "router_of_layer": [0, 0, 1], "layer_names": ["0", "1", "2"],
        "sampling": {"max_new_tokens": 64}, "limits": {"order": "breadth"}, "num_samples": 0, "num_beams": 0,
    }  # fmt: skip
    return ProgramTree(_plant(completions, experts, 8, prompt=tuple(prompt_ids)), bpe, made_from)
