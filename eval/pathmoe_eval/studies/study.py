"""A study as its file has it: variants of one configuration, trained over the same seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pathmoe.training.config_files import find_config, read_yaml

Quantity = Literal["parameters", "active_parameters", "flops"]
QUANTITIES: tuple[Quantity, ...] = ("parameters", "active_parameters", "flops")

Settings = TypeVar("Settings", bound=Any)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What a variant adds to the base."""

    configs: list[str] = field(default_factory=list)
    """Configuration files, as `--config` of a fit takes them."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings by dotted keys, which win over all files and over the study's own."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """Which size variants are to have in common."""

    quantity: Quantity
    """All parameters, those that one token passes through, or FLOPs of training per token."""
    to: str
    """The variant whose size it is."""
    by: dict[str, str]
    """Variants that give way, each with the dotted key whose whole number is chosen."""
    tolerance: float = 0.001
    """What may be left of the difference, as a share of the size (our choice)."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How each finished run is evaluated, on the documents that it held out."""

    max_tokens: int | None = None
    """Tokens to read at most; null for all."""
    perturbation_document_tokens: int | None = None
    """Tokens of each document, from its beginning, on which to measure perplexity under permuted and restricted
    routing, too, which reads them some twenty times; null leaves it out."""
    geometry_document_tokens: int | None = None
    """Tokens of each document, from its beginning, on which to measure the geometry of routers; null leaves it out."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study; the fields but the name are the keys of its file."""

    name: str
    """Of its file."""
    base: list[str]
    """Configuration files that all variants begin with."""
    variants: dict[str, Variant]
    seeds: list[int]
    """Each decides initial weights and the order of the data; runs of one seed are compared in pairs."""
    baseline: str
    """The variant that the others are compared with, and ranked against."""
    tokens: int
    """Training tokens of a run, rounded up to whole steps."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Settings of all runs by dotted keys, which win over all files."""
    also_against: list[str] = field(default_factory=list)
    """Variants that the others are compared with, too."""
    match: Match | None = None
    allow_other_data: bool = False
    """Whether variants may differ in their data."""
    evaluation: Evaluation = field(default_factory=Evaluation)

    @property
    def baselines(self) -> list[str]:
        """All variants that others are compared with."""
        return [self.baseline, *self.also_against]


# Set by the study for every run.
_SET_HERE = {
    "seed_everything": "seeds", "data.seed": "seeds", "model.seed": "seeds", "trainer.max_steps": "tokens",
    "run_dir": "runs/studies", "ckpt_path": "runs/studies", "config": "base",
}  # fmt: skip


def read_study(name: str, baseline: str | None = None) -> Study:
    """The study of a file, or the shipped one of that name.

    Args:
        name: of the file.
        baseline: the only variant to compare with, in the place of the file's; None for those.

    Raises:
        ValueError: the file is not there, a key of it is missing, unknown or wrong, or the baseline is no variant.
    """
    file = Path(find_config(name))
    content = read_yaml(file)
    if "name" in content:
        raise ValueError(
            f"name ({content['name']!r}) in {file} is not a key of a study, which is called as its file is"
        )
    _refuse_unknown(Study, content, "", file)
    study = _settings(Study, {"name": file.stem, **_sections(content, file)}, "", file)
    _check(study, file)
    if baseline is None:
        return study
    if baseline not in study.variants:
        raise ValueError(f"--baseline ({baseline}) must be one of the variants {', '.join(study.variants)}; change it")
    return replace(study, baseline=baseline, also_against=[])


def _sections(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The content with its sections as the classes that they are."""
    sections = dict(content)
    variants = _mapping(content.get("variants"), "variants", file)
    sections["variants"] = {
        str(name): _settings(Variant, _mapping(of_one, f"variants.{name}", file), f"variants.{name}.", file)
        for name, of_one in variants.items()
    }
    for key, kind in (("match", Match), ("evaluation", Evaluation)):
        if content.get(key) is not None:
            sections[key] = _settings(kind, _mapping(content[key], key, file), f"{key}.", file)
        else:
            sections.pop(key, None)
    return sections


def _mapping(value: Any, key: str, file: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{key} ({value!r}) in {file} must hold keys with their values; change it")
    return value


# What YAML gives for each kind of field.
_TYPES: dict[str, tuple[type, str]] = {
    "str": (str, "text"), "int": (int, "a whole number"), "float": (float, "a number"), "bool": (bool, "true or false"),
    "list[str]": (str, "a list of text"), "list[int]": (int, "a list of whole numbers"),
    "int | None": (int, "a whole number or null"), "dict[str, str]": (str, "text by name"),
    "dict[str, Any]": (object, "values by dotted key"),
}  # fmt: skip


def _settings(kind: type[Settings], content: Mapping[str, Any], prefix: str, file: Path) -> Settings:
    """A dataclass from the mapping of a file."""
    _refuse_unknown(kind, content, prefix, file)
    known = {one.name: one for one in fields(kind)}
    for key, value in content.items():
        annotation = str(known[key].type)
        if annotation in _TYPES and not _is_of_type(value, annotation):
            raise ValueError(f"{prefix}{key} ({value!r}) in {file} must be {_TYPES[annotation][1]}; change it")
    for one in known.values():
        if one.name not in content and one.default is MISSING and one.default_factory is MISSING:
            raise ValueError(f"{prefix}{one.name} (missing) in {file} must be given; add it")
    return kind(**content)


def _refuse_unknown(kind: type[Any], content: Mapping[str, Any], prefix: str, file: Path) -> None:
    known = {one.name for one in fields(kind)}
    for key, value in content.items():
        if key not in known:
            allowed = ", ".join(sorted(known - {"name"}))
            raise ValueError(f"{prefix}{key} ({value!r}) in {file} is not a key of a study; it takes {allowed}")


def _is_of_type(value: Any, annotation: str) -> bool:
    expected = _TYPES[annotation][0]
    if annotation.endswith("| None") and value is None:
        return True
    if annotation.startswith("list"):
        return isinstance(value, list) and all(_is_plain(one, expected) for one in value)
    if annotation.startswith("dict"):
        return isinstance(value, dict) and all(isinstance(one, expected) for one in value.values())
    return _is_plain(value, expected)


def _is_plain(value: Any, expected: type) -> bool:
    # To Python, true is a whole number, and a whole number is none of its floats.
    if isinstance(value, bool) and expected is not bool:
        return False
    return isinstance(value, (int, float) if expected is float else expected)


def _check(study: Study, file: Path) -> None:
    """Refuse what no study can be made of."""
    if not study.seeds:
        raise ValueError(f"seeds ([]) in {file} must name at least one seed, such as [0, 1, 2]; add it")
    if len(set(study.seeds)) < len(study.seeds) or min(study.seeds) < 0:
        raise ValueError(f"seeds ({study.seeds}) in {file} must be different and at least 0; change them")
    if not study.variants:
        raise ValueError(f"variants ({{}}) in {file} must name at least one variant; add it")
    if wrong := [name for name in study.variants if not re.fullmatch(r"[\w.+-]+", name)]:
        raise ValueError(
            f"variants ({wrong[0]}) in {file} must have a name of letters, digits and any of _ . + -; rename it"
        )
    if study.tokens < 1:
        raise ValueError(f"tokens ({study.tokens}) in {file} must be at least 1; raise it")
    for key in ("max_tokens", "perturbation_document_tokens", "geometry_document_tokens"):
        number = getattr(study.evaluation, key)
        if number is not None and number < 2:
            raise ValueError(f"evaluation.{key} ({number}) in {file} must be at least 2, or null; change it")
    named = [("baseline", study.baseline), *(("also_against", name) for name in study.also_against)]
    if len({study.baseline, *study.also_against}) <= len(study.also_against):
        raise ValueError(
            f"also_against ({study.also_against}) in {file} must name each variant once, and not baseline "
            f"({study.baseline}); remove what is there twice"
        )
    if study.match is not None:
        named += [("match.to", study.match.to), *((f"match.by.{name}", name) for name in study.match.by)]
        if study.match.quantity not in QUANTITIES:
            raise ValueError(
                f"match.quantity ({study.match.quantity}) in {file} must be one of {', '.join(QUANTITIES)}; change it"
            )
        if study.match.to in study.match.by:
            raise ValueError(
                f"match.by ({study.match.to}) in {file} must not change match.to, whose size the others take; remove it"
            )
        if not 0 <= study.match.tolerance < 1:
            raise ValueError(
                f"match.tolerance ({study.match.tolerance}) in {file} must be from 0 to below 1; change it"
            )
    for key, name in named:
        if name not in study.variants:
            raise ValueError(f"{key} ({name}) in {file} must be one of the variants {', '.join(study.variants)}")
    all_overrides = {"overrides": study.overrides} | {
        f"variants.{name}.overrides": variant.overrides for name, variant in study.variants.items()
    }
    for where, overrides in all_overrides.items():
        for key, value in overrides.items():
            if key in _SET_HERE:
                raise ValueError(
                    f"{where}: {key} ({value}) in {file} must not be set, since it follows {_SET_HERE[key]}; remove it"
                )
