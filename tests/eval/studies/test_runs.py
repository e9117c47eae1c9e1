"""The runs of a study: where they lie, which of them are the same, and what they lack."""

import json
import shutil
from pathlib import Path

from pathmoe_eval.reports.report import FORMAT
from pathmoe_eval.studies.plan import plan_variants
from pathmoe_eval.studies.run_key import Origin, run_key
from pathmoe_eval.studies.runs import StudyRun, study_runs
from pathmoe_eval.studies.study import read_study
from tests.eval.studies.conftest import WriteStudy


def runs_of(file: Path) -> list[StudyRun]:
    study = read_study(str(file))
    return study_runs(study, plan_variants(study))


def test_runs_of_one_content_are_one_run(write_study: WriteStudy, folder: Path) -> None:
    variants = {
        "indep": {"configs": ["indep"]},
        "same": {"configs": ["path_b4", "indep"]},
        "path_b4": {"configs": ["path_b4"]},
    }
    runs = runs_of(write_study(variants=variants))
    assert [(run.variant.name, run.seed) for run in runs] == [
        (name, seed) for seed in (0, 1) for name in variants
    ], "seed by seed"  # fmt: skip
    keys = {(run.variant.name, run.seed): run.key for run in runs}
    assert keys["indep", 0] == keys["same", 0] != keys["path_b4", 0] != keys["path_b4", 1]

    shutil.copy(folder / "short.jsonl", folder / "moved.jsonl")
    moved = runs_of(write_study(variants=variants, overrides={"data.source": "moved.jsonl"}))
    assert [run.key for run in moved] == [run.key for run in runs]
    with (folder / "moved.jsonl").open("a") as stream:
        stream.write("\n" + json.dumps({"text": "more of it"}))
    assert not {run.key for run in runs_of(folder / "mine.yaml")} & set(keys.values())


def test_a_run_lacks_what_is_not_there(write_study: WriteStudy) -> None:
    evaluation = {"max_tokens": 300, "perturbation_document_tokens": 200, "geometry_document_tokens": 100}
    run = runs_of(write_study(evaluation=evaluation))[0]
    assert run.state() == "not begun"
    fit, paths, perturb, geometry = run.commands()
    assert fit[:3] == ["-m", "pathmoe", "fit"]
    assert fit[-3:] == ["--seed_everything=0", f"--run_dir={run.folder}", "--ckpt_path=last"]
    assert paths[:3] == ["-m", "pathmoe_eval", "paths"] and perturb[:3] == ["-m", "pathmoe_eval", "perturb"]
    assert "--max_tokens=300" in paths and "--max_document_tokens=200" in perturb
    assert geometry[:3] == ["-m", "pathmoe_eval", "geometry"] and "--max_document_tokens=100" in geometry
    assert "--data=held-out" in paths, "files would be read whole, with what the run was trained on"

    run.folder.mkdir(parents=True)
    (run.folder / "summary.json").write_text(json.dumps({"steps": 9}))
    assert not run.is_trained, "of its ten steps"
    for wrong in (json.dumps({"steps": 11}), "{"):
        (run.folder / "summary.json").write_text(wrong)
        assert not run.is_trained
    (run.folder / "summary.json").write_text(json.dumps({"steps": 10}))
    assert run.is_trained and not run.is_finished and run.state() == "trained, not evaluated"
    assert run.commands() == [paths, perturb, geometry]

    about = {"command": "", "model": "", "data": "", "num_tokens": 1}
    for place, section, left in (
        (run.evaluation_folder, "perplexity", [paths, perturb, geometry]),
        (run.evaluation_folder, "load", [perturb, geometry]),
        (run.perturbation_folder, "perturbation", [geometry]),
        (run.geometry_folder, "geometry", []),
    ):
        assert place is not None
        place.mkdir(exist_ok=True)
        (place / "report.json").write_text(json.dumps({"format": FORMAT, "run": about, "sections": {section: {}}}))
        assert run.commands() == left
    assert run.is_finished and run.state() == "finished"
    assert run.perturbation_folder is not None
    (run.perturbation_folder / "report.json").write_text('{"sections"')
    assert run.commands() == [perturb], "what is damaged is not there"


def test_a_damaged_checkpoint_is_said_and_ends_nothing(write_study: WriteStudy) -> None:
    run = runs_of(write_study())[0]
    run.folder.mkdir(parents=True)
    (run.folder / "last.ckpt").write_bytes(b"not a checkpoint")
    assert run.state().startswith("damaged: ") and str(run.folder / "last.ckpt") in run.state()


def test_built_in_sources_are_evaluated_by_their_name(write_study: WriteStudy) -> None:
    overrides = {"data.source": "c-functions", "data.num_documents": 60}
    _, paths = runs_of(write_study(overrides=overrides))[0].commands()
    assert "--data=c-functions" in paths


def test_shipped_studies_share_their_runs() -> None:
    keys = {}
    for name in ("routers_tiny", "top_paths_tiny", "block_size_tiny", "learning_rates_tiny"):
        study = read_study(name)
        variants = plan_variants(study)
        keys[name] = {variant.name: run_key(variant.resolved, 0, Origin("a", "b", "c", "1.0")) for variant in variants}
        assert study.evaluation == read_study("routers_tiny").evaluation, "else their results are not the same"
    assert keys["top_paths_tiny"].items() <= keys["routers_tiny"].items(), "it trains nothing of its own"
    assert keys["block_size_tiny"]["b4"] == keys["learning_rates_tiny"]["path_b4"] == keys["routers_tiny"]["path_b4"]
    assert keys["block_size_tiny"]["all"] == keys["routers_tiny"]["omni"]
    assert keys["learning_rates_tiny"]["path_b4_half"] != keys["routers_tiny"]["path_b4"]
