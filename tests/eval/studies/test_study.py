"""Files of studies: the shipped ones are read, and what is wrong in one is said in a line."""

from pathlib import Path
from typing import Any

import pytest

from pathmoe.training.config_files import config_folder
from pathmoe_eval.studies.study import read_study
from tests.eval.studies.conftest import STUDY, WriteStudy


def test_a_study_is_what_its_file_says(write_study: WriteStudy) -> None:
    match = {"quantity": "parameters", "to": "indep", "by": {"path_b4": "model.config.router_rank"}}
    study = read_study(str(write_study(match=match, evaluation={"max_tokens": 300}, overrides={"a.b": [1, 2]})))
    assert (study.name, study.base, study.seeds, study.tokens) == ("mine", STUDY["base"], [0, 1], 640)
    assert list(study.variants) == ["indep", "path_b4"]
    assert study.variants["path_b4"].configs == ["path_b4"] and study.variants["path_b4"].overrides == {}
    assert study.match is not None and (study.match.to, study.match.tolerance) == ("indep", 0.001)
    assert (study.evaluation.max_tokens, study.evaluation.perturbation_document_tokens) == (300, None)
    assert study.overrides == {"a.b": [1, 2]} and not study.allow_other_data
    assert study.baselines == ["indep"]


def test_another_baseline_takes_the_place_of_all(write_study: WriteStudy) -> None:
    file = str(write_study(also_against=["path_b4"]))
    assert read_study(file).baselines == ["indep", "path_b4"]
    assert read_study(file, "path_b4").baselines == ["path_b4"]


def test_shipped_studies_are_found_by_name() -> None:
    names = [path.stem for path in (config_folder() / "studies").glob("*.yaml")]
    assert len(names) >= 7
    for name in names:
        assert read_study(name).name == name


BAD: list[tuple[dict[str, Any], str]] = [
    ({"seeds": []}, r"seeds \(\[\]\) in .*mine.yaml must name at least one seed, such as \[0, 1, 2\]; add it"),
    ({"seeds": None}, r"seeds \(missing\) in .*mine.yaml must be given; add it"),
    ({"seeds": [1, 1]}, r"seeds \(\[1, 1\]\) in .* must be different and at least 0; change them"),
    ({"seeds": [0, "a"]}, r"seeds \(\[0, 'a'\]\) in .* must be a list of whole numbers; change it"),
    ({"seeds": [True]}, r"seeds \(\[True\]\) in .* must be a list of whole numbers"),
    ({"baseline": "omni"}, r"baseline \(omni\) in .* must be one of the variants indep, path_b4"),
    ({"also_against": ["omni"]}, r"also_against \(omni\) in .* must be one of the variants indep, path_b4"),
    ({"also_against": ["indep"]},
     r"also_against \(\['indep'\]\) in .* must name each variant once, and not baseline \(indep\); remove"),
    ({"variants": {}}, r"variants \({}\) in .* must name at least one variant; add it"),
    ({"variants": None}, r"variants \(None\) in .* must hold keys with their values; change it"),
    ({"variants": {"indep": None}}, r"variants.indep \(None\) in .* must hold keys with their values"),
    ({"variants": {"indep": {"config": ["a"]}}},
     r"variants.indep.config \(\['a'\]\) in .* is not a key of a study; it takes configs, overrides"),
    ({"variants": {"indep": {"configs": "a"}}}, r"variants.indep.configs \('a'\) in .* must be a list of text"),
    ({"variants": {"indep": {}, "a/b": {}}},
     r"variants \(a/b\) in .* must have a name of letters, digits and any of _ . \+ -; rename it"),
    ({"tokens": 0}, r"tokens \(0\) in .* must be at least 1; raise it"),
    ({"tokens": 1e6}, r"tokens \(1000000.0\) in .* must be a whole number; change it"),
    ({"token": 5}, r"token \(5\) in .* is not a key of a study; it takes .*tokens"),
    ({"name": "x"}, r"name \('x'\) in .* is not a key of a study"),
    ({"base": "tiny"}, r"base \('tiny'\) in .* must be a list of text; change it"),
    ({"allow_other_data": "yes"}, r"allow_other_data \('yes'\) in .* must be true or false; change it"),
    ({"overrides": {"seed_everything": 3}},
     r"overrides: seed_everything \(3\) in .* must not be set, since it follows seeds; remove it"),
    ({"variants": {"indep": {"overrides": {"trainer.max_steps": 3}}}},
     r"variants.indep.overrides: trainer.max_steps \(3\) in .* must not be set, since it follows tokens"),
    ({"evaluation": {"max_tokens": 1}}, r"evaluation.max_tokens \(1\) in .* must be at least 2, or null; change it"),
    ({"match": {"quantity": "size", "to": "indep", "by": {}}},
     r"match.quantity \(size\) in .* must be one of parameters, active_parameters, flops; change it"),
    ({"match": {"quantity": "flops", "to": "omni", "by": {}}}, r"match.to \(omni\) in .* must be one of the variants"),
    ({"match": {"quantity": "flops", "to": "indep", "by": {"omni": "x"}}}, r"match.by.omni \(omni\) in .* must be one"),
    ({"match": {"quantity": "flops", "to": "indep", "by": {"indep": "x"}}}, r"match.by \(indep\) in .* must not"),
    ({"match": {"quantity": "flops", "to": "indep", "by": {}, "tolerance": 1}},
     r"match.tolerance \(1\) in .* must be from 0 to below 1; change it"),
    ({"match": {"quantity": "flops", "by": {}}}, r"match.to \(missing\) in .* must be given; add it"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "line"), BAD, ids=lambda value: str(value)[:50])
def test_what_is_wrong_is_said(changes: dict[str, Any], line: str, write_study: WriteStudy) -> None:
    with pytest.raises(ValueError, match=line) as error:
        read_study(str(write_study(**changes)))
    assert "\n" not in str(error.value)


def test_another_kind_of_file_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a key of a study; it takes allow_other_data, also_against, base"):
        read_study(str(folder / "mini.yaml"))
    with pytest.raises(ValueError, match=r"--config \(nowhere\) must be a file or one shipped config"):
        read_study("nowhere")
