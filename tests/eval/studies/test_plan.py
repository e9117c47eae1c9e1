"""Studies as runs: the shipped ones through the real parser, and what keeps variants on equal terms."""

from typing import Any

import pytest

from pathmoe.config import PathMoEConfig
from pathmoe.counts import parameter_counts
from pathmoe.training.config_files import config_folder
from pathmoe.training.resolution import resolved_fit
from pathmoe_eval.studies.plan import plan_lines, plan_variants
from pathmoe_eval.studies.study import read_study
from tests.eval.studies.conftest import WriteStudy

SHIPPED = sorted(path.stem for path in (config_folder() / "studies").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_study_is_planned(name: str) -> None:
    study = read_study(name)
    variants = plan_variants(study)
    assert [variant.name for variant in variants] == list(study.variants)
    for variant in variants:
        assert (variant.steps - 1) * variant.tokens_per_step < study.tokens <= variant.steps * variant.tokens_per_step
        assert variant.sizes.parameters == parameter_counts(PathMoEConfig(**variant.resolved["model"]["config"])).total
        # Learning curves have ten points or so, the last at the end.
        data = variant.resolved["data"]
        micro_batches = variant.steps * variant.tokens_per_step / (data["micro_batch_size"] * data["sequence_length"])
        assert 8 <= micro_batches / variant.resolved["trainer"]["val_check_interval"] <= 20
    assert len({repr(variant.resolved) for variant in variants}) == len(variants), "no variant is there twice"


def test_the_studies_of_the_issue_are_there() -> None:
    names = {"routers", "headline", "block_size", "experts_per_token", "balance", "optimizers", "iso_parameters"}
    assert {f"{name}_tiny" for name in names} <= set(SHIPPED)


def test_a_plan_is_what_its_arguments_give(write_study: WriteStudy) -> None:
    match = {"quantity": "parameters", "to": "indep", "by": {"x_moe": "model.config.router_dim"}, "tolerance": 0.05}
    variants = {
        "indep": {"configs": ["indep"]},
        "x_moe": {"configs": ["x_moe"], "overrides": {"trainer.precision": 64}},
    }
    study = read_study(str(write_study(match=match, variants=variants, overrides={"trainer.precision": "32-true"})))
    for variant in plan_variants(study):
        assert variant.resolved == resolved_fit(variant.arguments)
        assert variant.steps == 10 and variant.tokens_per_step == 64
    _, x_moe = plan_variants(study)
    assert str(x_moe.resolved["trainer"]["precision"]) == "64", "a variant's own wins over the study's"
    assert x_moe.matched == f"model.config.router_dim {x_moe.resolved['model']['config']['router_dim']}"
    lines = plan_lines(study, plan_variants(study))
    assert lines[0] == "mine: 2 variants x 2 seeds, 10 steps of 64 tokens each"
    assert lines[-1].endswith(f"with {x_moe.matched}")


DATA = r"must be that of indep \({}\), since runs are compared on the same data in the same order; take it out, or set"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"data.sequence_length": 16}, rf"variants.b: data.sequence_length \(16\) {DATA.format(32)}"),
        ({"data.source": "other"}, rf"variants.b: data.source \(other\) {DATA.format('short.jsonl')}"),
        ({"model.config.vocab_size": 400}, rf"variants.b: model.config.vocab_size \(400\) {DATA.format(300)}"),
        ({"trainer.accumulate_grad_batches": 2, "trainer.val_check_interval": 4},
         rf"variants.b: tokens of a step \(128\) {DATA.format(64)}"),
        ({"trainer.limit_train_batches": 3}, rf"variants.b: trainer.limit_train_batches \(3\) {DATA.format('None')}"),
        ({"trainer.overfit_batches": 2}, rf"variants.b: trainer.overfit_batches \(2\) {DATA.format('0.0')}"),
        ({"model.config.num_experts_per_tok": 9}, r"variants.b: model.config.num_experts_per_tok \(9\) must be at"),
        ({"model.config.nothing": 9}, r"variants.b: --model.config.nothing \(9\) is not a known"),
        ({"model.schedule.warmup_steps": 11}, r"variants.b: model.schedule.warmup_steps \(11\)"),
        ({"trainer.callbacks": None}, r"variants.b: trainer.callbacks must have pathmoe_eval.closing.ClosingReport"),
    ],
)  # fmt: skip
def test_variants_that_would_not_compare_are_refused(
    overrides: dict[str, Any], line: str, write_study: WriteStudy
) -> None:
    variants = {"indep": {"configs": ["indep"]}, "b": {"configs": ["indep"], "overrides": overrides}}
    with pytest.raises(ValueError, match=line) as error:
        plan_variants(read_study(str(write_study(variants=variants))))
    assert "\n" not in str(error.value)


def test_other_data_may_be_asked_for(write_study: WriteStudy) -> None:
    variants = {"indep": {"configs": ["indep"]}, "b": {"overrides": {"data.sequence_length": 16}}}
    study = read_study(str(write_study(variants=variants, allow_other_data=True)))
    planned = plan_variants(study)
    assert [variant.steps for variant in planned] == [10, 20], "equal tokens all the same"
    steps = "10 steps of 64 tokens (indep), 20 steps of 32 tokens (b)"
    assert plan_lines(study, planned)[0] == f"mine: 2 variants x 2 seeds, {steps}"


def test_places_of_data_may_differ(write_study: WriteStudy) -> None:
    variants = {"indep": {"configs": ["indep"]}, "b": {"overrides": {"data.num_workers": 1}}}
    assert len(plan_variants(read_study(str(write_study(variants=variants))))) == 2


def test_sizes_that_do_not_match_are_refused(write_study: WriteStudy) -> None:
    variants = {"indep": {"configs": ["indep"]}, "x_moe": {"configs": ["x_moe"]}}
    match = {"quantity": "parameters", "to": "indep", "by": {}}
    with pytest.raises(
        ValueError, match=r"variants.x_moe: parameters \([\d,]+, which match.by does not name\) must be"
    ):
        plan_variants(read_study(str(write_study(variants=variants, match=match))))
    match["by"] = {"x_moe": "model.config.router_rank"}
    with pytest.raises(ValueError, match=r"variants.x_moe: model.config.router_rank \(1\) must be 0"):
        plan_variants(read_study(str(write_study(variants=variants, match=match))))
