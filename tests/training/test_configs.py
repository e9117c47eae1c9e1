"""Every shipped configuration, through the real parser, with its model built on the meta device and counted."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pathmoe.config import PathMoEConfig
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.config_files import config_folder

CommandLine = Callable[..., Any]


def shipped(pattern: str) -> list[str]:
    folder = config_folder()
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.glob(pattern))


SIZES, ROUTERS = shipped("*.yaml"), shipped("routers/*.yaml")
# Studies and lists of tasks are no configurations of a run: see tests/eval.
OTHERS = sorted(set(shipped("**/*.yaml")) - {*SIZES, *ROUTERS, *shipped("studies/*.yaml"), *shipped("tasks/*.yaml")})
# Which size a file is meant for, where it is not the smallest.
SIZE_OF = {"data/fineweb": "pathmoe_0.9b", "data/dclm": "pathmoe_16b"}

# Sharing as the table of DESIGN has it, for a depth of 8: scoring, layers per router and per decision, rank, frozen.
TABLE = {
    "routers/indep": ("linear", 1, 1, False, False),
    "routers/rand": ("linear", 1, 1, False, True),
    "routers/x_moe": ("cosine", 1, 1, False, False),
    "routers/recurrent": ("recurrent", 1, 1, False, False),
    "routers/low_rank": ("linear", None, 1, True, False),
    "routers/mono_b8": ("linear", 8, 8, False, False),
    "routers/path_b4": ("linear", 4, 1, False, False),
    "routers/path_b4x": ("cosine", 4, 1, False, False),
    "routers/omni": ("linear", None, 1, False, False),
}


def dry_run(command_line: CommandLine, *names: str) -> tuple[dict[str, Any], str]:
    """Resolved settings and table of a dry run with the shipped configs of these names."""
    ended = command_line("fit", *[word for name in names for word in ("--config", name)], "--dry_run")
    assert (ended.status, ended.err) == (0, "")
    settings, _, table = ended.out.partition("\n\n")
    return yaml.safe_load(settings), table


def on_meta(settings: dict[str, Any]) -> PathMoEForCausalLM:
    with torch.device("meta"):
        return PathMoEForCausalLM(PathMoEConfig(**settings["model"]["config"]))


def count(table: str, name: str) -> int:
    (line,) = [line for line in table.splitlines() if re.match(rf"{name}  ", line)]
    return int(re.findall(r"[\d,]+", line.removeprefix(name))[0].replace(",", ""))


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("size", SIZES)
def test_every_size_with_every_router(size: str, router: str, command_line: CommandLine) -> None:
    settings, table = dry_run(command_line, size, router)
    model = on_meta(settings)
    assert count(table, "parameters") == model.num_parameters()
    trained = sum(count(table, name) for name in re.findall(r"^trained by \w+", table, re.MULTILINE))
    assert trained == model.num_parameters(only_trainable=True)
    own = yaml.safe_load((config_folder() / f"{router}.yaml").read_text())["model"]["config"]
    assert settings["model"]["config"].items() >= own.items(), "a router's file wins over a size's"


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else(name: str, command_line: CommandLine) -> None:
    settings, _ = dry_run(command_line, SIZE_OF.get(name, "tiny"), "path_b4", name)
    own = yaml.safe_load((config_folder() / f"{name}.yaml").read_text())
    for section, keys in own.items():
        for key, value in keys.items():
            resolved = settings[section][key.removesuffix("+")]
            if key.endswith("+"):
                added = [callback["class_path"] for callback in resolved[-len(value) :]]
                assert added == [callback["class_path"] for callback in value]
                assert resolved[0]["class_path"] == "pathmoe_eval.closing.ClosingReport", "what there was stays"
            elif isinstance(value, dict) and "class_path" not in value:
                assert resolved.items() >= value.items()
            elif isinstance(value, dict):
                assert resolved["class_path"] == value["class_path"]
                assert resolved["init_args"].items() >= value["init_args"].items()
            else:
                assert resolved == value


@pytest.mark.parametrize("size", SIZES)
def test_a_size_alone(size: str, command_line: CommandLine) -> None:
    settings, table = dry_run(command_line, size)
    assert count(table, "parameters") == on_meta(settings).num_parameters()


def test_the_routers_are_those_of_the_table() -> None:
    assert TABLE.keys() == set(ROUTERS)
    for name, (router_type, layers_per_router, layers_per_decision, has_rank, is_frozen) in TABLE.items():
        config = PathMoEConfig(**yaml.safe_load((config_folder() / f"{name}.yaml").read_text())["model"]["config"])
        assert config.router_type == router_type
        assert (config.layers_per_router, config.layers_per_decision) == (layers_per_router, layers_per_decision)
        assert (config.router_rank > 0, config.router_frozen) == (has_rank, is_frozen)


@pytest.mark.parametrize("router", ROUTERS)
def test_a_router_after_any_other_is_what_it_is_alone(router: str) -> None:
    own = {name: yaml.safe_load((config_folder() / f"{name}.yaml").read_text())["model"]["config"] for name in ROUTERS}
    alone = PathMoEConfig(**own[router]).to_dict()
    assert {other: PathMoEConfig(**own[other] | own[router]).to_dict() for other in ROUTERS} == dict.fromkeys(
        ROUTERS, alone
    )


@pytest.mark.parametrize("size", SIZES)
def test_steps_bound_a_run_and_epochs_do_not(size: str, command_line: CommandLine) -> None:
    settings, _ = dry_run(command_line, size)
    assert settings["trainer"]["max_epochs"] == -1
    assert settings["trainer"]["max_steps"] > 0


@pytest.mark.parametrize("router", ["indep", "path_b4"])
@pytest.mark.parametrize(
    ("size", "total", "active"), [("pathmoe_0.9b", 0.9e9, 0.37e9), ("pathmoe_16b", 16.2e9, 2.13e9)]
)
def test_paper_scale_has_the_papers_parameters(
    size: str, total: float, active: float, router: str, command_line: CommandLine
) -> None:
    settings, table = dry_run(command_line, size, router)
    assert count(table, "parameters") == pytest.approx(total, rel=0.02)
    assert count(table, "active per token") == pytest.approx(active, rel=0.02)
    depth = settings["model"]["config"]["num_hidden_layers"]
    routers = count(table, "routers")
    width, experts = (settings["model"]["config"][name] for name in ("hidden_size", "num_experts"))
    assert routers == width * experts * (depth if router == "indep" else depth // 4)


def test_names_are_unique() -> None:
    stems = [Path(name).stem for name in shipped("**/*.yaml")]
    assert len(stems) == len(set(stems)), "so that --config NAME finds each"
