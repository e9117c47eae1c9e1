"""What `pathmoe-eval geometry` does: from a model and documents to a report of the geometry of its routers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from pathmoe.model import PathMoEForCausalLM
from pathmoe_eval.commands import ModelOptions, run_of_documents
from pathmoe_eval.evaluation.evaluated_data import EvaluatedData, read_evaluated
from pathmoe_eval.geometry.analysis import GeometryOptions, analyse_geometry
from pathmoe_eval.geometry.interventions import InterventionOptions, measure_interventions
from pathmoe_eval.geometry.router_map import router_maps
from pathmoe_eval.geometry.state_files import record_states
from pathmoe_eval.reports.report import PAGE_FILE, REPORT_FILE, refuse_another_report, write_report
from pathmoe_eval.terminal_tables import geometry_lines
from pathmoe_eval.traces.moe_layers import moe_layers

_FEW_LAYERS = 8
_STATES = ".states"


def geometry_command(
    model: ModelOptions,
    data: EvaluatedData,
    layers: Sequence[int] | None,
    options: GeometryOptions,
    interventions: InterventionOptions,
    out: Path,
    command: str,
) -> None:
    """Write a report of the geometry, or add it to the report of the same model and data.

    Router inputs lie in a hidden folder of the report while it is made.

    Args:
        model: as for other commands.
        data: what to read.
        layers: MoE layers; None for `default_layers`.
        options: how much is drawn.
        interventions: whether inputs are changed, too, completions generated and experts pruned, and how much.
        out: folder of the report.
        command: the command line, for the report.

    Raises:
        ValueError: a model whose routers have no geometry, see `router_maps`; what `record_states`, `analyse_geometry`
            and `measure_interventions` refuse; a folder of something else.
    """
    opened = model.open()
    documents = list(read_evaluated(data, opened))
    run = run_of_documents(opened, model, data, documents, command)
    refuse_another_report(out, run)
    routers = router_maps(opened.model)
    index = [layer.router_index for layer in moe_layers(opened.model)]
    chosen = default_layers(index) if layers is None else sorted(set(layers))
    try:
        files = record_states(opened, documents, chosen, out / _STATES, **model.windows(opened))
        # Our routers make their logits in fp32, whatever the model's dtype.
        dtype = torch.float32 if isinstance(opened.model, PathMoEForCausalLM) else opened.model.dtype
        precision = torch.finfo(dtype).eps
        section = analyse_geometry(files, routers, index, precision, options)
    finally:
        shutil.rmtree(out / _STATES, ignore_errors=True)
    write_report(out, {"run": run, "sections": {"geometry": section}})
    if interventions.interventions:
        changed = measure_interventions(
            opened.model, documents, routers, chosen, interventions, context_length=opened.context_length,
            seed=options.seed,
        )  # fmt: skip
        write_report(out, {"run": run, "sections": {"geometry": section, "geometry_interventions": changed}})
    for line in geometry_lines(section):
        print(line)
    print(f"{out / PAGE_FILE}: {section['num_tokens']:,} tokens; every number is in {out / REPORT_FILE}")


def default_layers(router_of_layer: Sequence[int]) -> list[int]:
    """All of a few; of many the first, the middle and the last, each with a neighbour, and all that share its router.

    Args:
        router_of_layer: equal for layers that share a router's parameters.
    """
    number = len(router_of_layer)
    if number <= _FEW_LAYERS:
        return list(range(number))
    middle = number // 2
    pairs = {0, 1, middle, middle + 1, number - 2, number - 1}
    shared = {router_of_layer[layer] for layer in (0, middle, number - 1)}
    return sorted(pairs | {layer for layer, router in enumerate(router_of_layer) if router in shared})
