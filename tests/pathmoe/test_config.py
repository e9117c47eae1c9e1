"""The configuration: what it refuses and how it says so, and that it survives being saved."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from pathmoe import PathMoEConfig

REFUSED = [
    # What follows the dotted key: value, allowed values, remedy.
    *[
        ({name: value}, rf"{name} \({value}\) must be at least 1; raise it")
        for name, value in [
            ("vocab_size", 0),
            ("hidden_size", -4),
            ("num_hidden_layers", 0),
            ("num_attention_heads", 0),
            ("num_key_value_heads", 0),
            ("intermediate_size", 0),
            ("moe_intermediate_size", 0),
            ("num_experts", 0),
            ("num_experts_per_tok", 0),
            ("router_dim", 0),
            ("max_position_embeddings", 0),
        ]
    ],
    *[
        ({name: value}, rf"{name} \({value}\) must be finite and not negative; use 0 for none")
        for name, value in [
            ("n_shared_experts", -1),
            ("first_k_dense_replace", -1),
            ("router_rank", -1),
            ("router_noise_std", math.nan),
            ("router_aux_loss_coef", -0.1),
            ("router_z_loss_coef", math.inf),
            ("router_bias_update_rate", -0.5),
        ]
    ],
    *[
        ({name: value}, rf"{name} \({value}\) must be finite and above 0; raise it")
        for name, value in [
            ("rms_norm_eps", 0.0),
            ("initializer_range", math.nan),
            ("routed_scaling_factor", 0.0),
            ("clip_qkv", -8.0),
        ]
    ],
    ({"clip_qkv": math.inf}, r"clip_qkv \(inf\) must be finite and above 0; lower it"),
    ({"dtype": "float3"}, r"dtype \(float3\) must be one of float32, bfloat16, float16, float64, null; change it"),
    ({"dtype": "int8"}, r"dtype \(int8\) must be one of float32, "),
    ({"torch_dtype": "nn"}, r"dtype \(nn\) must be one of float32, "),
    (
        {"first_k_dense_replace": 8},
        r"first_k_dense_replace \(8\) must be below model\.config\.num_hidden_layers \(8\); ",
    ),
    (
        {"hidden_size": 254},
        r"hidden_size \(254\) must be a multiple of model\.config\.num_attention_heads \(4\); change",
    ),
    (
        {"num_key_value_heads": 3},
        r"num_attention_heads \(4\) must be a multiple of model\.config\.num_key_value_heads \(3\); change",
    ),
    ({"hidden_size": 12}, r"hidden_size \(12\) must give heads of even width .*, not 3; change it or .*heads \(4\)"),
    (
        {"num_experts_per_tok": 17},
        r"num_experts_per_tok \(17\) must be at most model\.config\.num_experts \(16\); lower",
    ),
    (
        {"router_rank": 2, "router_type": "cosine"},
        r"router_rank \(2\) must be 0 with model\.config\.router_type \(cosine\); only a linear router",
    ),
    (
        {"router_bias": True, "router_type": "recurrent"},
        r"router_bias \(true\) must be false with model\.config\.router_type \(recurrent\); only a linear router",
    ),
    ({"layers_per_router": [3, 4]}, r"layers_per_router \(\[3, 4\]\) must .* sum to 7; change the list"),
    ({"layers_per_router": 5, "first_k_dense_replace": 4}, r"layers_per_router \(5\) must be between 1 and .* \(4\)"),
    (
        {"layers_per_decision": 9},
        r"layers_per_decision \(9\) must be between 1 and the number of MoE layers \(8\); use",
    ),
    ({"layers_per_decision": 4}, r"layers_per_router \(1\) gives router 1 to MoE layers \[1\], none of which decides"),
    (
        {"rope_parameters": {"rope_type": "spiral"}},
        r"rope_parameters\.rope_type \(spiral\) must be one of default, linear, .*; change it",
    ),
    (
        {"rope_parameters": {"rope_type": "linear"}},
        r"rope_parameters \(.*'linear'.*\) must be complete; .*factor",
    ),
    (
        {"rope_parameters": {"rope_type": "linear", "factor": "two"}},
        r"rope_parameters\.factor \('two'\) must be a number; change it",
    ),
    (
        {"rope_parameters": {"rope_type": "default", "rope_thetta": 1e4}},
        r"rope_parameters\.rope_thetta \(10000\.0\) is not a known key; the default rope_type takes rope_theta",
    ),
    (
        {"pad_token_id": 4096},
        r"pad_token_id \(4096\) must be from 0 to below model\.config\.vocab_size \(4096\); change",
    ),
    ({"bos_token_id": -1}, r"bos_token_id \(-1\) must be from 0"),
    ({"eos_token_id": [1, 9999]}, r"eos_token_id \(\[1, 9999\]\) must be from 0"),
]

WRONG_TYPES = [
    ("num_experts", "8", r"\('8'\) must be of type int; "),
    ("num_experts", 8.0, r"\(8\.0\) must be of type int; "),
    ("num_experts", None, r"\(None\) must be of type int; "),
    ("num_experts_per_tok", True, r"\(True\) must be of type int; "),
    ("router_bias", "yes", r"\('yes'\) must be of type bool; "),
    ("router_noise_std", "a lot", r"\('a lot'\) must be of type float; "),
    ("clip_qkv", [], r"\(\[\]\) must be of type float, null; "),
    ("layers_per_router", "4", r"\('4'\) must be of type int, list\[int\], null; "),
    ("layers_per_router", [4, "4"], r"\(\[4, '4'\]\) must be of type int, list\[int\], null; "),
    ("router_type", "linaer", r"\('linaer'\) must be one of linear, cosine, recurrent; "),
    ("scoring_func", 1, r"\(1\) must be one of softmax, sigmoid; "),
]


def refusal(**kwargs: Any) -> str:
    with pytest.raises(ValueError, match=r"^model\.config\.") as error:
        PathMoEConfig(**kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def edited(folder: Path, **changes: Any) -> Path:
    """A saved configuration with some keys of its file changed."""
    PathMoEConfig().save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.mark.parametrize(("kwargs", "message"), REFUSED, ids=[str(kwargs) for kwargs, _ in REFUSED])
def test_refuses_in_one_line_what_no_model_can_be_built_from(kwargs: dict[str, Any], message: str) -> None:
    assert re.match(rf"model\.config\.{message}", refusal(**kwargs))


@pytest.mark.parametrize(("name", "value", "message"), WRONG_TYPES)
def test_refuses_a_wrong_type(name: str, value: Any, message: str, tmp_path: Path) -> None:
    assert refusal(**{name: value})
    config = PathMoEConfig()
    for attempt in (
        lambda: PathMoEConfig(**{name: value}),
        lambda: setattr(config, name, value),
        lambda: PathMoEConfig.from_pretrained(edited(tmp_path, **{name: value})),
        lambda: AutoConfig.from_pretrained(tmp_path),
    ):
        with pytest.raises(ValueError, match=rf"^model\.config\.{name} {message}"):
            attempt()


def test_a_whole_number_is_a_float(tmp_path: Path) -> None:
    config = PathMoEConfig(router_noise_std=1, clip_qkv=8)
    assert (type(config.router_noise_std), type(config.clip_qkv)) == (float, float)
    assert PathMoEConfig.from_pretrained(edited(tmp_path, routed_scaling_factor=2)).routed_scaling_factor == 2.0


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("layers_per_ruoter", "did you mean layers_per_router?"),
        ("num_local_expert", "did you mean num_experts?"),
        ("attention_dropout", "did you mean"),  # a field of transformers' models that ours does not have
        ("xyzzy", "see PathMoEConfig for the known ones"),
    ],
)
def test_refuses_an_unknown_key(name: str, hint: str, tmp_path: Path) -> None:
    assert refusal(**{name: 2}).startswith(f"model.config.{name} (2) is not a known key; {hint}")
    folder = edited(tmp_path, **{name: 2})
    for load in (PathMoEConfig.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(ValueError, match=rf"^model\.config\.{name} \(2\) is not a known key; "):
            load(folder)
    with pytest.raises(ValueError, match=rf"^model\.config\.{name} "):
        PathMoEConfig.from_dict(json.loads((folder / "config.json").read_text()))


def test_keyword_arguments_of_from_pretrained_are_checked_with_the_file(tmp_path: Path) -> None:
    folder = edited(tmp_path)
    for load in (PathMoEConfig.from_pretrained, AutoConfig.from_pretrained):
        assert load(folder, num_experts=32).num_experts == 32
        with pytest.raises(ValueError, match=r"num_experts_per_tok \(4\) must be at most"):
            load(folder, num_experts=2)
        with pytest.raises(ValueError, match=r"num_experts \('2'\) must be of type int"):
            load(folder, num_experts="2")


@st.composite
def valid_fields(draw: st.DrawFn) -> dict[str, Any]:
    num_key_value_heads, groups, head_dim = (draw(st.integers(1, 4)) for _ in range(3))
    num_hidden_layers = draw(st.integers(1, 12))
    num_dense = draw(st.integers(0, num_hidden_layers - 1))
    num_moe_layers = num_hidden_layers - num_dense
    num_experts = draw(st.integers(1, 64))
    router_type = draw(st.sampled_from(["linear", "cosine", "recurrent"]))
    coefficient = st.floats(0, 10)
    positive = st.floats(0.001, 10)
    return {
        "vocab_size": draw(st.integers(3, 100_000)),
        "hidden_size": num_key_value_heads * groups * head_dim * 2,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_key_value_heads * groups,
        "num_key_value_heads": draw(st.sampled_from([num_key_value_heads, None])),
        "intermediate_size": draw(st.sampled_from([None, 48])),
        "num_experts": num_experts,
        "num_experts_per_tok": draw(st.integers(1, num_experts)),
        "n_shared_experts": draw(st.integers(0, 2)),
        "first_k_dense_replace": num_dense,
        "layers_per_router": draw(st.sampled_from([1, num_moe_layers, None, [num_moe_layers]])),
        "router_type": router_type,
        "router_rank": draw(st.integers(0, 4)) if router_type == "linear" else 0,
        "router_bias": draw(st.booleans()) and router_type == "linear",
        "router_frozen": draw(st.booleans()),
        "scoring_func": draw(st.sampled_from(["softmax", "sigmoid"])),
        "norm_topk_prob": draw(st.booleans()),
        "routed_scaling_factor": draw(positive),
        "router_noise_std": draw(coefficient),
        "router_aux_loss_coef": draw(coefficient),
        "router_aux_loss_scope": draw(st.sampled_from(["micro_batch", "global_batch"])),
        "router_bias_update_rate": draw(coefficient),
        "clip_qkv": draw(st.sampled_from([None, 8.0])),
        "rope_parameters": draw(st.sampled_from([None, {"rope_type": "default", "rope_theta": 500.0}])),
        "tie_word_embeddings": draw(st.booleans()),
        "pad_token_id": draw(st.sampled_from([None, 0, 2])),
        "eos_token_id": draw(st.sampled_from([None, 1, [1, 2]])),
    }  # fmt: skip


@given(valid_fields())
def test_survives_being_saved(tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any]) -> None:
    config = PathMoEConfig(**fields)
    for name, value in fields.items():
        if value is not None:
            assert getattr(config, name) == value
    folder = tmp_path_factory.mktemp("config")
    config.save_pretrained(folder)
    again = [
        PathMoEConfig.from_pretrained(folder),
        AutoConfig.from_pretrained(folder),
        PathMoEConfig.from_dict(config.to_dict()),
        PathMoEConfig(**config.to_dict()),
    ]
    for other in again:
        assert isinstance(other, PathMoEConfig)
        assert other.to_dict() | {"_name_or_path": ""} == config.to_dict()
        assert other.sharing == config.sharing


def test_what_follows_from_other_fields() -> None:
    config = PathMoEConfig(hidden_size=96, num_attention_heads=6, num_hidden_layers=7, first_k_dense_replace=2)
    assert config.num_key_value_heads == 6
    assert config.head_dim == 16
    assert config.num_moe_layers == 5
    assert len(config.sharing.router_of_layer) == 5
    wide = PathMoEConfig(moe_intermediate_size=10, num_experts_per_tok=3, n_shared_experts=2)
    assert wide.intermediate_size == 50
