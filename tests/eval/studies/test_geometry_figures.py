"""The figures of geometry: each stands where `model_means` puts it, and none of what it gives is left out."""

from pathlib import Path

from pathmoe_eval.geometry.model_means import model_means
from pathmoe_eval.studies.figures import figures_of
from pathmoe_eval.studies.geometry_figures import GEOMETRY_FIGURES
from tests.eval.conftest import BuildMoE
from tests.eval.geometry.test_analysis import section_of


def test_every_mean_is_a_figure(build_moe: BuildMoE, tmp_path: Path) -> None:
    _, section = section_of("path_b4", build_moe, tmp_path / "states")
    means = {f"{group}.{name}": value for group, of in model_means(section).items() for name, value in of.items()}
    found = figures_of({}, {"geometry": section})
    assert found == {figure.key: means[figure.place] for figure in GEOMETRY_FIGURES}
    assert means.keys() == {figure.place for figure in GEOMETRY_FIGURES}
