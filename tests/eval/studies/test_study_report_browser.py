"""The page of a study in a real browser: its figures drawn, nothing on the console, no overflow, light and dark."""

from pathlib import Path

import pytest

from tests.eval.reports.test_page_browser import check, opened, pytestmark  # noqa: F401  # the marks of this file, too
from tests.eval.studies.conftest import WriteReport

VARIANTS = {name: {"configs": ["indep"]} for name in ("indep", *(f"variant{number}" for number in range(8)))}


@pytest.mark.parametrize(("width", "dark"), [(1200, True), (400, False)])
def test_a_study_is_drawn(write_report: WriteReport, tmp_path: Path, width: int, dark: bool) -> None:
    bits = {name: {seed: 2.0 + 0.1 * place + 0.01 * seed for seed in (0, 1)} for place, name in enumerate(VARIANTS)}
    page = (write_report(bits, variants=VARIANTS) / "index.html").read_text()
    check(*opened(page, tmp_path, width, dark=dark), width, 5)
