"""Commands that go into one folder, one after the other: what belongs together, and what is left of one that broke."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pathmoe import PathMoEConfig, PathMoEForCausalLM
from pathmoe.data import train_bpe
from pathmoe.training.export import export_model
from pathmoe_eval.cli import main
from pathmoe_eval.traces.trace import open_trace

ROOT = Path(__file__).resolve().parents[2]
TEXT = "".join(f"def f{n}(a, b):\n    return a + {n} * b  # the sum\n" for n in range(12))
PERTURB = "--num_seeds 1 --noise_sizes [] --path_numbers [] --expert_numbers [1]"


def save_model(folder: Path, seed: int = 0, **changes: Any) -> None:
    shape = {
        "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 8, "max_position_embeddings": 64, "initializer_range": 0.4,
    }  # fmt: skip
    torch.manual_seed(seed)
    export_model(PathMoEForCausalLM(PathMoEConfig(**shape | changes)), train_bpe([TEXT], 290), folder)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a model and data of two documents."""
    monkeypatch.chdir(tmp_path)
    save_model(Path("model"))
    lines = [
        {"text": TEXT[:200], "other": TEXT[:200][::-1], "topic": "one", "kind": "x"},
        {"text": TEXT[200:], "other": TEXT[200:][::-1], "topic": "two", "kind": "x"},
    ]
    Path("data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


@pytest.fixture
def run(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Calls `pathmoe-eval` on the model and data, but for `compare` and traces; what it says on stderr."""

    def call(line: str) -> str:
        reads = "" if line.startswith("compare") or "--trace" in line else " --model model --data data.jsonl"
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["pathmoe-eval", *(line + reads).split()])
        main()
        return capsys.readouterr().err

    return call


@pytest.fixture
def refused(run: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Calls a command that must end in status 2 and one line; the line."""

    def call(line: str) -> str:
        with pytest.raises(SystemExit, match="2"):
            run(line)
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    return call


def report(folder: str = "report") -> dict[str, Any]:
    return json.loads((Path(folder) / "report.json").read_text())


def test_folders_that_are_not_named_have_names(run: Callable[..., str]) -> None:
    run("paths")
    run(f"perturb {PERTURB}")
    assert {"concentration", "perplexity", "perturbation"} <= report()["sections"].keys()
    shutil.copytree("report", "again")
    assert run("compare report again") == ""
    assert sorted(os.listdir("comparison")) == ["comparison.md", "index.html"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("--max_length 16", "holds one of max_length 64, not 16;"),
        ("--stride 8", "holds one of stride 32, not 8;"),
        ("--dtype bfloat16", "holds one of dtype float32, not bfloat16;"),
        ("--domain_key topic", "holds one of domains data.jsonl ("),
        ("--text_key other --max_tokens 30", "holds one of data_hash "),
    ],
)
def test_a_report_of_another_reading_is_refused_before_it_is_measured(
    options: str, names: str, run: Callable[..., str], refused: Callable[..., str]
) -> None:
    run("perplexity --out report" + (" --max_tokens 30" if "max_tokens" in options else ""))
    before = report()
    assert names in refused(f"perturb {options}")
    assert names in refused(f"paths {options}")
    assert report() == before and not Path("report/trace").exists()


def test_a_report_of_a_checkpoint_that_was_overwritten_is_refused(
    run: Callable[..., str], refused: Callable[..., str]
) -> None:
    run("paths")
    of = report()["run"]["model_hash"]
    save_model(Path("model"), seed=1)
    for command in ("perturb", "paths", "perplexity --out report"):
        assert f"holds one of model_hash {of}, not " in refused(command)
    save_model(Path("model"))
    run(f"perturb {PERTURB}")


def test_a_trace_knows_its_run_and_so_do_its_first_tokens(
    run: Callable[..., str], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("record --out trace --stride 16 --domain_key topic")
    run("paths --trace trace --out report")
    run("perplexity --out report --stride 16 --domain_key topic")
    assert {"concentration", "perplexity"} <= report()["sections"].keys()
    assert "holds one of stride 16, not 32;" in refused("perplexity --out report --domain_key topic")
    run("record --out other --domain_key topic")
    with monkeypatch.context() as patched:  # what is refused is not analysed first
        patched.setattr("pathmoe_eval.commands.analyse", None)
        assert "holds one of stride 16, not 32;" in refused("paths --trace other")
    run("paths --trace trace --max_tokens 70 --out first")
    run("perplexity --out first --stride 16 --domain_key topic --max_tokens 70")
    assert report("first")["run"]["data_hash"] != report()["run"]["data_hash"]


def test_of_a_trace_that_others_recorded_windows_are_not_compared(
    run: Callable[..., str], refused: Callable[..., str]
) -> None:
    run("record --out trace --stride 16")
    header = json.loads(Path("trace/trace.json").read_text())
    Path("trace/trace.json").write_text(json.dumps(header | {"provenance": {}}))
    run("paths --trace trace")
    run("perplexity --out report --stride 8")
    assert "holds one of stride 8, not 16;" in refused("perplexity --out report --stride 16")


def test_what_can_be_known_before_recording_is_checked_before(
    run: Callable[..., str], refused: Callable[..., str]
) -> None:
    run("record --out few --max_tokens 50")
    assert "--later (50 tokens) must be a trace of the same" in refused("paths --later few")
    save_model(Path("model"), num_experts=8)
    run("record --out wide")
    save_model(Path("model"))
    assert "--later (num_experts 8) must be a trace of a checkpoint of the same run, with" in refused(
        "paths --later wide"
    )
    assert "--data (0 scored tokens) must hold a document of at least 2 tokens" in refused("paths --max_tokens 1")
    assert "tagger (nothing) must be one of" in refused("paths --tagger nothing")
    assert "trace.json" in refused("paths --later nowhere")
    assert not Path("report").exists()


# As a user's command: `main`, with a part of it replaced by something that ends the process or waits for its end.
KILLED = """
import os, signal, sys, time
import pathmoe_eval.commands as commands
from pathmoe_eval.cli import main
from pathmoe_eval.traces.trace_writer import TraceWriter

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def wait(*chunk, append=TraceWriter.append, **of_chunk):
    append(*chunk, **of_chunk)
    print("recording", flush=True)
    time.sleep(600)

{patch}
sys.argv = ["pathmoe-eval", "paths", "--model", "model", "--data", "data.jsonl"]
main()
"""


def start(patch: str) -> subprocess.Popen[str]:
    path = os.pathsep.join(map(str, [ROOT, ROOT / "kernels", ROOT / "eval"]))
    code = KILLED.format(patch=patch)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )


def check_like_one_that_did_not_break(run: Callable[..., str]) -> None:
    assert sorted(os.listdir("report")) == ["index.html", "report.json", "trace"]
    run("paths --out whole")
    assert report()["sections"] == report("whole")["sections"]
    mine, theirs = ((name / "tokens.arrow").read_bytes() for name in (Path("report/trace"), Path("whole/trace")))
    assert mine == theirs


def test_the_command_of_a_process_that_was_killed_while_it_recorded_works_again(run: Callable[..., str]) -> None:
    with start("TraceWriter.append = wait") as process:
        assert process.stdout is not None and process.stdout.readline() == "recording\n"
        (left,) = os.listdir("report")
        assert left.startswith(".trace-")
        process.send_signal(signal.SIGKILL)
    assert run("paths") == ""
    check_like_one_that_did_not_break(run)


@pytest.mark.parametrize(
    ("patch", "left"),
    [("commands.analyse = die", ["index.html", "report.json", "trace"]), ("commands.write_report = die", ["trace"])],
)
def test_the_command_of_a_process_that_was_killed_after_recording_goes_on(
    patch: str, left: list[str], run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(patch) as process:
        assert process.wait() == -signal.SIGKILL
    assert sorted(os.listdir("report")) == left
    with monkeypatch.context() as patched:
        patched.setattr("pathmoe_eval.commands.record_trace", None)
        if "report.json" in left:
            patched.setattr("pathmoe_eval.commands.scored_batches", None)
        assert run("paths") == f"note: {Path('report/trace')} is the trace of this run, which is not recorded again\n"
    assert "earlier_runs" not in report()
    check_like_one_that_did_not_break(run)


def test_a_trace_of_another_run_is_not_taken_for_that_of_this_one(
    run: Callable[..., str], refused: Callable[..., str]
) -> None:
    run("record --out report/trace --stride 16 --logits true")
    error = refused("paths")
    assert "--out (report) must hold no trace of another run, but report/trace has stride 16, not 32; choose" in error
    assert "remove report/trace, or analyse it with --trace report/trace in the place of --model" in error
    assert "has logits True, not False" in refused("paths --stride 16 --logits false")
    assert open_trace("report/trace").num_tokens and os.listdir("report") == ["trace"]
    run("paths --stride 16")
    assert {"perplexity", "concentration", "router_scores"} <= report()["sections"].keys()
