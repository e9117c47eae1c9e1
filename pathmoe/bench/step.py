"""`make bench`: training steps of the tiny configuration and of its OLMoE peer, alternating in one process."""

# Shapes: B batch, S sequence, D hidden, F expert width.

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.olmoe.modeling_olmoe import OlmoeMLP

from pathmoe.bench.paired import paired_seconds, ratio
from pathmoe.bench.peer import build_peer
from pathmoe.bench.saved import saved_bytes
from pathmoe.config import PathMoEConfig
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.config_files import config_folder, read_yaml
from pathmoe.training.provenance import provenance


def tiny_settings(router: str = "path_b4") -> tuple[PathMoEConfig, int, int]:
    """Model configuration, blocks per step and block length of the shipped tiny run."""
    tiny, routed = (read_yaml(config_folder() / name) for name in ("tiny.yaml", f"routers/{router}.yaml"))
    config = PathMoEConfig(**tiny["model"]["config"] | routed["model"]["config"])
    blocks = tiny["data"]["micro_batch_size"] * tiny["trainer"].get("accumulate_grad_batches", 1)
    return config, blocks, tiny["data"]["sequence_length"]


def training_step(model: PreTrainedModel, inputs: Mapping[str, Tensor | bool]) -> Callable[[], None]:
    """One step: forward, backward, clip, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        model(**inputs, use_cache=False).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def layer_pass(layer: Callable[[Tensor], Tensor], x_BSD: Tensor) -> Callable[[], None]:
    """Forward and backward of one layer."""

    def run() -> None:
        layer(x_BSD).sum().backward()

    return run


def moe_layer(model: PathMoEForCausalLM) -> Callable[[Tensor], Tensor]:
    """The first MoE layer of a model, with its router."""
    layer, router = model.model.layers[0].mlp, model.model.router_of(0)
    return lambda x_BSD: layer(x_BSD, router, None, None)[0]


def dense_layer(config: PathMoEConfig) -> OlmoeMLP:
    """A dense SwiGLU of as many FLOPs as the active experts."""
    width = config.num_experts_per_tok * config.moe_intermediate_size
    shape = argparse.Namespace(hidden_size=config.hidden_size, intermediate_size=width, hidden_act=config.hidden_act)
    return OlmoeMLP(shape)


def report(rounds: int) -> dict[str, object]:
    """All figures of the benchmark."""
    torch.manual_seed(0)
    config, blocks, length = tiny_settings()
    ours, peer = PathMoEForCausalLM(config), build_peer(config)
    tokens_BS = torch.randint(0, config.vocab_size, (blocks, length))
    inputs = {"input_ids": tokens_BS, "labels": tokens_BS}
    steps = {"ours": training_step(ours, inputs | {"return_logits": False}), "peer": training_step(peer, inputs)}
    step_seconds = paired_seconds(steps, rounds)

    x_BSD = torch.randn(blocks, length, config.hidden_size, requires_grad=True)
    layers = {"ours": moe_layer(ours), "peer": peer.model.layers[0].mlp, "dense": dense_layer(config)}
    layer_seconds = paired_seconds({name: layer_pass(layer, x_BSD) for name, layer in layers.items()}, 3 * rounds)

    weights = (x_BSD, *ours.parameters(), *peer.parameters(), *layers["dense"].parameters())
    num_tokens = blocks * length
    return {
        "tokens per step": num_tokens,
        "threads": torch.get_num_threads(),
        "ours, tokens/s": num_tokens / statistics.median(step_seconds["ours"]),
        "peer, tokens/s": num_tokens / statistics.median(step_seconds["peer"]),
        "speed of ours over peer (quartiles)": ratio(step_seconds, "peer", "ours"),
        "MoE layer over dense FFN of equal active FLOPs, time": ratio(layer_seconds, "ours", "dense"),
        "peer's MoE layer over the same": ratio(layer_seconds, "peer", "dense"),
        "saved for backward, ours, bytes per MoE layer": saved_bytes(partial(layers["ours"], x_BSD), weights),
        "saved for backward, peer, bytes per MoE layer": saved_bytes(partial(layers["peer"], x_BSD), weights),
    }


def main() -> None:
    """Run the tests of what is timed, then time it, and print versions, commit and figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="Pairs of steps that are timed.")
    rounds = parser.parse_args().rounds
    root = config_folder().parent
    tests = [str(root / "tests" / name) for name in ("kernels", "pathmoe/test_olmoe.py", "pathmoe/test_experts.py")]
    if subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "not slow", *tests], cwd=root).returncode:
        raise SystemExit("the tests of what is timed fail; no figures")
    print(json.dumps(provenance(), indent=2))
    for name, value in report(rounds).items():
        figures = value if isinstance(value, tuple) else (value,)
        print(f"{name:<56}" + "  ".join(f"{x:,.2f}" if isinstance(x, float) else f"{x:,}" for x in figures))


if __name__ == "__main__":
    main()
