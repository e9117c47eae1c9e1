"""Picture of how tokens flow through experts: one column a layer, one row an expert, a ribbon for each transition.

`python -m pathmoe_eval.flow --runs runs/tiny-indep runs/tiny-path_b4 --out paths.svg`
"""

# Shapes: N tokens, L layers, E experts.

from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pathmoe.config import PathMoEConfig
from pathmoe.training.errors import OneLineParser, fail, with_one_line_errors
from pathmoe.training.open_run import open_run, run_name
from pathmoe.training.run_folder import write_text_atomically
from pathmoe_eval.layers.agreement import adjacent_agreement
from pathmoe_eval.paths.paths import path_entropy

_WIDTH, _TOP, _ROW, _MARGIN = 560, 64, 15, 34
_LEAST_SHARE = 0.002
_COLOURS = ("#4477aa", "#cc6677", "#228833", "#aa7733")


@dataclass(frozen=True)
class Flow:
    """What one panel shows."""

    title: str
    path_ids_NL: NDArray[np.integer]
    num_experts: int
    router_of_layer: tuple[int, ...]


def record_paths(run: str, num_blocks: int) -> Flow:
    """Top-1 paths of the first validation blocks of a run, of all blocks where it has fewer.

    Args:
        run: as for `open_run`.
        num_blocks: at least 1.

    Raises:
        ValueError: see `open_run`.
    """
    model, data = open_run(run)
    num_blocks = min(num_blocks, len(data.validation_blocks))
    path_ids = []
    for start in range(0, num_blocks, data.micro_batch_size):
        batch = data.validation_blocks.batch(np.arange(start, min(start + data.micro_batch_size, num_blocks)))
        with torch.inference_mode():
            output = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        path_ids.append(torch.stack([routing.expert_ids_TK[:, 0] for routing in output.routings], dim=-1))
    config: PathMoEConfig = model.config
    return Flow(run_name(run), torch.cat(path_ids).numpy(), config.num_experts, config.sharing.router_of_layer)


def flow_svg(flows: list[Flow]) -> str:
    """The panels side by side, as an SVG document."""
    height = _TOP + _ROW * max(flow.num_experts for flow in flows) + _MARGIN
    panels = "".join(
        f'<g transform="translate({position * (_WIDTH + 20)},0)">{_panel(flow)}</g>'
        for position, flow in enumerate(flows)
    )
    width = len(flows) * (_WIDTH + 20) - 20
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
    return f'{head} font-size="12"><rect width="100%" height="100%" fill="white"/>{panels}</svg>\n'


def _panel(flow: Flow) -> str:
    num_tokens, num_layers = flow.path_ids_NL.shape
    x_L = np.linspace(_MARGIN, _WIDTH - _MARGIN, num_layers)
    return "".join(
        [
            _heading(flow, num_tokens),
            *(_router_band(flow, x_L, router) for router in sorted(set(flow.router_of_layer))),
            *(_ribbons(flow, x_L, layer) for layer in range(num_layers - 1)),
            *(_nodes(flow, x_L, layer) for layer in range(num_layers)),
        ]
    )


def _heading(flow: Flow, num_tokens: int) -> str:
    entropy = path_entropy(flow.path_ids_NL)
    agreement = adjacent_agreement(flow.path_ids_NL)
    facts = (
        f"{num_tokens:,} tokens, path entropy {entropy.entropy_bits:.1f} of {entropy.ceiling_bits:.1f} bits, "
        f"adjacent layers share {agreement.mean_mutual_information_corrected_bits:z.2f} bits"
    )
    return (
        f'<text x="{_MARGIN}" y="20" font-size="16" font-weight="bold">{escape(flow.title)}</text>'
        f'<text x="{_MARGIN}" y="38" fill="#555">{escape(facts)}</text>'
    )


def _router_band(flow: Flow, x_L: NDArray[np.floating], router: int) -> str:
    """Shade the layers that one router serves."""
    columns = x_L[[layer for layer, served_by in enumerate(flow.router_of_layer) if served_by == router]]
    colour = _COLOURS[router % len(_COLOURS)]
    height = _ROW * flow.num_experts + 8
    left, width = columns.min() - 14, np.ptp(columns) + 28
    place = f'x="{left:.1f}" y="{_TOP - 12}" width="{width:.1f}" height="{height}"'
    return f'<rect {place} rx="6" fill="{colour}" opacity="0.10"/>'


def _y(expert: int) -> float:
    return _TOP + _ROW * expert


def _ribbons(flow: Flow, x_L: NDArray[np.floating], layer: int) -> str:
    pairs, counts = np.unique(flow.path_ids_NL[:, layer : layer + 2], axis=0, return_counts=True)
    colour = _COLOURS[flow.router_of_layer[layer] % len(_COLOURS)]
    left, right = x_L[layer], x_L[layer + 1]
    middle = (left + right) / 2
    ribbons = []
    for (source, target), share in zip(pairs, counts / counts.sum(), strict=True):
        if share >= _LEAST_SHARE:
            start, end = f"{left:.1f} {_y(source):.1f}", f"{right:.1f} {_y(target):.1f}"
            curve = f"M{start}C{middle:.1f} {_y(source):.1f} {middle:.1f} {_y(target):.1f} {end}"
            ribbons.append(f'<path d="{curve}" stroke-width="{60 * share:.2f}"/>')
    return f'<g fill="none" stroke="{colour}" stroke-opacity="0.55">{"".join(ribbons)}</g>'


def _nodes(flow: Flow, x_L: NDArray[np.floating], layer: int) -> str:
    share_E = np.bincount(flow.path_ids_NL[:, layer], minlength=flow.num_experts) / len(flow.path_ids_NL)
    circles = [
        f'<circle cx="{x_L[layer]:.1f}" cy="{_y(expert):.1f}" r="{1.2 + 9 * share**0.5:.2f}"/>'
        for expert, share in enumerate(share_E)
    ]
    bottom = _y(flow.num_experts) + 8
    label = f'<text x="{x_L[layer]:.1f}" y="{bottom:.1f}" text-anchor="middle" fill="#555">{layer}</text>'
    return f'<g fill="#333">{"".join(circles)}</g>{label}'


def main() -> None:
    """Record the runs' paths and write the picture."""
    parser = OneLineParser(prog="python -m pathmoe_eval.flow", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=str, nargs="+", required=True, help="Run folders or checkpoints.")
    parser.add_argument("--out", type=Path, required=True, help="SVG file to write.")
    parser.add_argument("--blocks", type=int, default=128, help="Validation blocks to record.")
    options = parser.parse_args()
    if options.blocks < 1:
        fail(f"--blocks ({options.blocks}) must be at least 1; raise it")
    if options.out.is_dir():
        fail(f"--out ({options.out}) must be a file, not a folder; name the SVG file to write")
    write_text_atomically(options.out, flow_svg([record_paths(run, options.blocks) for run in options.runs]))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    with_one_line_errors(main)
