"""The files of a report: what is written is read again, the page shows it, and no other report is overwritten."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pathmoe_eval.reports.report import (
    FORMAT,
    PAGE_FILE,
    REPORT_FILE,
    facts_of,
    read_report,
    refuse_another_report,
    report_page,
    write_report,
)

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<b>&amp;&lt;",
    "\x00\x1b[31m\x7f\u2028",
    "\ud800 alone",
    "\u202egnp.exe",
    "שלום مرحبا",
    "'\" onmouseover='x'",
]


class Elements(HTMLParser):
    """Elements and texts of a page, those of scripts and styles apart."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs
        self._open = tag

    def handle_data(self, data: str) -> None:
        if self._open not in ("script", "style"):
            self.text += data


def part(report: dict[str, Any], *names: str, **run: Any) -> dict[str, Any]:
    """A report of some sections, of a run that differs in some fields."""
    return {"run": report["run"] | run, "sections": {name: report["sections"][name] for name in names}}


def test_what_is_written_is_read_again_in_full_precision(make_report, tmp_path: Path) -> None:
    report = make_report()
    report["sections"]["load"]["third"] = 1 / 3
    write_report(tmp_path / "out", report)
    assert read_report(tmp_path / "out" / REPORT_FILE) == report
    assert sorted(os.listdir(tmp_path / "out")) == [PAGE_FILE, REPORT_FILE]


def test_tuples_are_written_as_lists(tmp_path: Path, make_report) -> None:
    report = part(make_report(), "load")
    report["run"]["router_of_layer"] = tuple(report["run"]["router_of_layer"])
    write_report(tmp_path, report)
    assert read_report(tmp_path / REPORT_FILE) == {"format": FORMAT, **json.loads(json.dumps(report))}


@pytest.mark.parametrize("routers", [(0, 0, 1, 1, 1), (0, 1, 2, 3, 4), (0, 0, 0, 0, 0), (0, 1)])
def test_the_page_has_a_place_for_each_figure(make_report, routers: tuple[int, ...]) -> None:
    report = make_report(router_of_layer=routers)
    page = report_page(report)
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])
    places = [
        value for name, value in Elements(page).attributes if name == "id" and (value or "").startswith("figure-")
    ]
    assert places == [f"figure-{number}" for number in range(len(figures))]
    assert len(figures) == 22


def test_every_section_alone_makes_a_page(make_report) -> None:
    report = make_report()
    for name in report["sections"]:
        page = report_page(part(report, name))
        assert Elements(page).text.count("How this was made") == 2, name
    assert "Summary" not in Elements(report_page(part(report))).text


def test_a_study_of_locality_has_its_own_title_and_its_tree_in_the_folder(
    make_report, study_sections, tmp_path: Path
) -> None:
    report = make_report() | {"sections": study_sections()}
    report["run"]["num_generated"] = 62
    (tmp_path / "tree").mkdir()
    write_report(tmp_path, report)
    page = (tmp_path / PAGE_FILE).read_text(encoding="utf-8")
    assert "<title>Routing locality of runs/one/last.ckpt</title>" in page
    assert "62 generated" in Elements(page).text
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Summary", "The tree", "Equivalent programs", "Overlap of routing, by the identity of tokens",
        "Experts that samples touch together", "What locality is worth to a cache", "Prefill and generation",
        "How this was made",
    ]  # fmt: skip


def test_companions_lead_between_independent_routers_and_the_reason_is_shown(make_report) -> None:
    independent = make_report(router_of_layer=(0, 1, 2, 3, 4))
    shared = make_report(router_of_layer=(0, 0, 0, 1, 1))
    headings = [re.findall(r"<h2>(.*?)</h2>|<h3>(.*?)</h3>", report_page(report)) for report in (independent, shared)]
    of_independent, of_shared = ([chapter or panel for chapter, panel in found] for found in headings)
    companion, index = "Information that neighbouring layers share", "Same index in neighbouring layers"
    assert of_independent.index(companion) < of_independent.index("Index figures") < of_independent.index(index)
    assert of_shared.index(index) < of_shared.index(companion)
    for report in (independent, shared):
        assert report["sections"]["consistency"]["why"] in Elements(report_page(report)).text


def test_command_data_versions_and_routers_stand_at_the_end(make_report) -> None:
    text = Elements(report_page(make_report())).text.partition("Every number is in")[2]
    for fact in ("pathmoe-eval paths --model runs/one/last.ckpt", "data.jsonl", "torch 2.13.0", "0 0 1 1 1", "300"):
        assert fact in text
    assert "triton" not in text


def test_hostile_texts_are_shown_and_never_markup(make_report, tmp_path: Path) -> None:
    report = make_report()
    plain = Elements(report_page(report))
    paths = report["sections"]["path_tokens"][0]["paths"]
    for path in paths:
        path["tokens"] = [{"token_id": 0, "text": text, "num_tokens": 1} for text in HOSTILE]
        path["contexts"] = [{"before": text, "token": text, "after": text} for text in HOSTILE[:4]]
        path["classes"] = [{"name": text, "num_tokens": 1} for text in HOSTILE[:3]]
    report["run"]["model"] = HOSTILE[0]
    report["run"]["command"] = " ".join(HOSTILE)
    report["sections"]["perplexity"]["by_domain"][0]["domain"] = HOSTILE[0]
    write_report(tmp_path, report)
    assert read_report(tmp_path / REPORT_FILE) == report
    page = (tmp_path / PAGE_FILE).read_text(encoding="utf-8")
    found = Elements(page)
    assert {name: found.names.count(name) for name in ("script", "img", "b")} == {"script": 3, "img": 0, "b": 0}
    assert not {name for name, _ in found.attributes} - {name for name, _ in plain.attributes}
    assert HOSTILE[0] in found.text
    assert "\\x00\\x1b[31m\\x7f\\u2028" in found.text
    assert "\\ud800 alone" in found.text
    assert "\\u202egnp.exe" in found.text
    assert "<bdi>שלום مرحبا (1)</bdi>" in page
    assert not set(page.partition("<script")[0]) & set("\x00\x1b\x7f\u2028\u202e")


def test_a_report_of_the_same_run_is_added_to(make_report, tmp_path: Path) -> None:
    report = make_report()
    write_report(tmp_path, part(report, "load", "flow"))
    write_report(tmp_path, part(report, "perturbation", command="pathmoe-eval perturb"))
    found = read_report(tmp_path / REPORT_FILE)
    assert list(found["sections"]) == ["load", "flow", "perturbation"]
    assert found["run"]["command"] == "pathmoe-eval perturb"
    assert [run["command"] for run in found["earlier_runs"]] == [report["run"]["command"]]
    text = Elements((tmp_path / PAGE_FILE).read_text()).text
    for shown in ("Flow of tokens", "Perturbations", "pathmoe-eval perturb", report["run"]["command"]):
        assert shown in text
    # The same command once more leaves one run of it.
    write_report(tmp_path, part(report, "load"))
    found = read_report(tmp_path / REPORT_FILE)
    assert [run["command"] for run in found["earlier_runs"]] == ["pathmoe-eval perturb"]


def test_layers_of_an_earlier_run_serve_the_page_of_a_later_one(make_report, tmp_path: Path) -> None:
    report = make_report()
    write_report(tmp_path, part(report, "consistency"))
    bare = {key: report["run"][key] for key in ("model", "data", "num_tokens")} | {"command": "pathmoe-eval perturb"}
    write_report(tmp_path, {"run": bare, "sections": {"perturbation": report["sections"]["perturbation"]}})
    assert "5 MoE layers · top-2 of 6 experts · 2 routers" in (tmp_path / PAGE_FILE).read_text()


@pytest.mark.parametrize(("key", "value"), [("model", "another"), ("data", "else.txt"), ("num_tokens", 7)])
def test_another_report_is_refused_and_stays(key: str, value: Any, make_report, tmp_path: Path) -> None:
    report = make_report()
    write_report(tmp_path, part(report, "load"))
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    with pytest.raises(ValueError, match=rf"^--out \(.*\) must hold no other report, but holds one of {key} .*$"):
        write_report(tmp_path, part(report, "flow", **{key: value}))
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


READING = {
    "max_length": 64, "stride": 32, "dtype": "float32", "domains": "news, code (01)", "data_hash": "23",
    "model_hash": "45",
}  # fmt: skip


@pytest.mark.parametrize("key", READING)
def test_what_was_read_otherwise_is_refused_in_one_line_that_names_the_key_and_both_values(
    key: str, make_report, tmp_path: Path
) -> None:
    report = make_report()
    write_report(tmp_path, part(report, "load", **READING))
    write_report(tmp_path, part(report, "flow", **READING))
    other = READING | {key: 7}
    with pytest.raises(ValueError, match=rf"^--out \(.*\) must hold no other report, .* one of {key} ") as refusal:
        write_report(tmp_path, part(report, "consistency", **other))
    assert f"holds one of {key} {READING[key]}, not 7; choose another folder" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_one_of_them_does_not_know_is_not_compared_and_what_an_earlier_run_knew_is(
    make_report, tmp_path: Path
) -> None:
    report = make_report()
    write_report(tmp_path, part(report, "perplexity", **READING))
    write_report(tmp_path, part(report, "load", command="pathmoe-eval paths --trace theirs"))
    assert facts_of(read_report(tmp_path / REPORT_FILE)).items() >= READING.items()
    with pytest.raises(ValueError, match="holds one of stride 32, not 16"):
        refuse_another_report(tmp_path, READING | {"stride": 16})


@pytest.mark.parametrize("name", ["notes.txt", "index.html"])
def test_a_folder_of_something_else_is_refused(name: str, make_report, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=rf"^--out \(.*\) must hold nothing but a report, but holds {name}; .*$"):
        write_report(tmp_path, make_report())
    assert os.listdir(tmp_path) == [name]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match=r"^--out \(.*out\) must be a folder, but is a file; choose another$"):
        refuse_another_report(tmp_path / "out", {})


def test_a_trace_may_lie_in_the_folder_and_a_part_of_a_run_may_be_known(make_report, tmp_path: Path) -> None:
    (tmp_path / "trace").mkdir()
    refuse_another_report(tmp_path, {})
    refuse_another_report(tmp_path / "new", {})
    write_report(tmp_path, part(make_report(), "load"))
    refuse_another_report(tmp_path, {"model": "runs/one/last.ckpt"})


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{", r"\(no JSON\) must be the report.json"),
        ("[]", r"\(without format, run and sections\)"),
        ('{"format": 3, "run": {}}', r"\(without format, run and sections\)"),
        ('{"format": 3, "run": [], "sections": {}}', r"\(without format, run and sections\)"),
        ('{"format": 2, "run": {}, "sections": {}}', r"format \(2\) must be 3"),
        ('{"format": 3, "run": {"command": "", "model": ""}, "sections": {}}', r"run \(without data\)"),
    ],
)
def test_what_is_no_report_is_refused(text: str, rule: str, tmp_path: Path) -> None:
    (tmp_path / REPORT_FILE).write_text(text)
    with pytest.raises(ValueError, match=rule) as refusal:
        read_report(tmp_path / REPORT_FILE)
    assert "\n" not in str(refusal.value)


def test_no_file_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(No such file or directory\) must be the report.json"):
        read_report(tmp_path / REPORT_FILE)


def test_a_number_that_is_none_is_refused_before_anything_is_written(make_report, tmp_path: Path) -> None:
    report = part(make_report(), "load")
    report["sections"]["load"]["broken"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(tmp_path / "out", report)
    assert not (tmp_path / "out").exists()


def test_an_analysis_takes_the_place_of_another_and_leaves_what_is_none(make_report, tmp_path: Path) -> None:
    exact, sketch = make_report(), make_report(sketch=True)
    write_report(tmp_path, exact)
    of_analysis = {
        name: of for name, of in sketch["sections"].items() if name not in ("perplexity", "saturation", "perturbation")
    }
    write_report(tmp_path, {"run": sketch["run"], "sections": of_analysis})
    sections = read_report(tmp_path / "report.json")["sections"]
    assert sections.keys() == sketch["sections"].keys()
    assert sections["intervals"] == sketch["sections"]["intervals"]
    assert sections["perplexity"] == exact["sections"]["perplexity"]
