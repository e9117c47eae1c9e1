"""`make bench-geometry`: all of the geometry of two layers at the sizes of the paper, from states made up on disk."""

# Shapes: N tokens, L layers, D hidden, E experts, K experts per token.

from __future__ import annotations

import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from pathmoe.bench.tests_first import run_tests
from pathmoe.training.config_files import config_folder
from pathmoe.training.errors import OneLineParser, fail, with_one_line_errors
from pathmoe.training.provenance import provenance
from pathmoe_eval.geometry.analysis import GeometryOptions, analyse_geometry
from pathmoe_eval.geometry.router_map import RouterMap, linear_map
from pathmoe_eval.geometry.state_files import StateFiles

_DOCUMENTS = 64
_ROWS = 1000
_VOCABULARY = 2000


def made_up_states(
    folder: Path, num_tokens: int, hidden_size: int, num_experts: int, k: int
) -> tuple[StateFiles, list[RouterMap]]:
    """States of two layers with a shared direction, singular values that fall, and a part that the token decides."""
    rng = np.random.default_rng(0)
    weight_ED = rng.normal(size=(num_experts, hidden_size)) / np.sqrt(hidden_size)
    scale_D = np.geomspace(1, 0.02, hidden_size)
    of_token = rng.normal(size=(_VOCABULARY, hidden_size)).astype(np.float32)
    token_ids_N = rng.integers(_VOCABULARY, size=num_tokens)
    states, logits = (
        {
            layer: np.lib.format.open_memmap(
                folder / f"{name}-{layer}.npy", mode="w+", dtype=np.float32, shape=(num_tokens, width)
            )
            for layer in (0, 1)
        }
        for name, width in (("states", hidden_size), ("logits", num_experts))
    )
    ids_NLK = np.empty((num_tokens, 2, k), dtype=np.uint16)
    for start in range(0, num_tokens, _ROWS):
        rows = slice(start, min(start + _ROWS, num_tokens))
        x_ND = of_token[token_ids_N[rows]] * scale_D + 0.5
        for layer in (0, 1):
            x_ND = x_ND + 0.3 * scale_D * rng.normal(size=x_ND.shape)
            states[layer][rows] = x_ND
            logits[layer][rows] = x_ND @ weight_ED.T
            ids_NLK[rows, layer] = np.argsort(-logits[layer][rows], axis=1)[:, :k]
    files = StateFiles(
        states=states,
        logits=logits,
        expert_ids_NLK=ids_NLK,
        token_ids_N=token_ids_N,
        document_N=np.arange(num_tokens) * _DOCUMENTS // num_tokens,
        domains=tuple("ab"[number % 2] for number in range(_DOCUMENTS)),
        problems=(None,) * _DOCUMENTS,
    )
    return files, [linear_map(weight_ED)] * 2


def geometry_lines(num_tokens: int, hidden_size: int, num_experts: int, k: int) -> list[str]:
    """Seconds and memory of the whole analysis."""
    with tempfile.TemporaryDirectory() as folder:
        files, routers = made_up_states(Path(folder), num_tokens, hidden_size, num_experts, k)
        start = time.perf_counter()
        section = analyse_geometry(files, routers, [0, 0], float(np.finfo(np.float32).eps), GeometryOptions())
        seconds = time.perf_counter() - start
    bound = section["layers"][0]["token_pairs"]["bound"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return [
        f"{num_tokens:,} tokens of {hidden_size:,} numbers, top-{k} of {num_experts} experts, two layers",
        f"seconds                      {seconds:,.1f}",
        f"peak memory, MiB             {peak / 2**20:,.0f}, with what is mapped of the states",
        f"states, MiB                  {sum(x.nbytes for x in files.states.values()) / 2**20:,.0f}",
        f"pairs beyond the bound       {bound['violations_row'] + bound['violations_below']}",
    ]


def main() -> None:
    """Run the tests of what is timed, then time it, and print versions, commit and figures."""
    parser = OneLineParser(prog="eval/bench/geometry_scale.py", description=__doc__)
    parser.add_argument("--tokens", type=int, default=50_000, help="Tokens.")
    parser.add_argument("--hidden_size", type=int, default=4096, help="Width of the states.")
    options = parser.parse_args()
    for name, least in (("tokens", _DOCUMENTS), ("hidden_size", 64)):
        if options[name] < least:
            fail(f"--{name} ({options[name]}) must be at least {least}; raise it")
    run_tests(config_folder().parent, ("eval/geometry",), ("-m", "not slow"))
    print(json.dumps(provenance(), indent=2))
    for line in geometry_lines(options.tokens, options.hidden_size, num_experts=64, k=8):
        print(line)


if __name__ == "__main__":
    with_one_line_errors(main)
