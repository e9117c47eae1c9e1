"""The passes that the scale benchmark times: that they read all they are asked to, and that their memory is theirs."""

# Shapes: N tokens, L MoE layers, K experts per token.

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import trace_passes
from generate_trace import TraceShape, generated_chunks, write_generated

from pathmoe_eval.layers.agreement import adjacent_agreement
from pathmoe_eval.paths.paths import path_entropy
from pathmoe_eval.traces.trace import open_trace

SHAPE = TraceShape(num_tokens=3000, num_layers=6, num_experts=5, num_experts_per_tok=2)
NUM_READ = 2500


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace")
    write_generated(str(folder), SHAPE)
    return folder


@pytest.fixture(scope="module")
def first_ids_NLK():
    return np.concatenate([chunk.expert_ids_NLK for chunk in generated_chunks(SHAPE)])[:NUM_READ]


def test_the_exact_pass_finds_what_all_tokens_in_memory_give(folder, first_ids_NLK):
    found = trace_passes.exact(open_trace(folder).first(NUM_READ))
    paths_NL = first_ids_NLK[..., 0]
    paths, agreement = path_entropy(paths_NL), adjacent_agreement(paths_NL)
    assert (found["num_tokens"], found["num_paths"]) == (NUM_READ, paths.num_paths)
    assert found["entropy_bits"] == paths.entropy_bits
    # routers are shared by blocks of four layers
    assert found["block_entropy_bits"] == [
        path_entropy(part).entropy_bits for part in (paths_NL[:, :4], paths_NL[:, 4:])
    ]
    assert found["adjacent_agreement"] == pytest.approx(agreement.mean_agreement)
    assert found["adjacent_information_bits"] == pytest.approx(agreement.mean_mutual_information_corrected_bits)
    jaccard = [len({*a} & {*b}) / len({*a} | {*b}) for token in first_ids_NLK.tolist() for a, b in pairwise(token)]
    assert found["adjacent_jaccard"] == pytest.approx(sum(jaccard) / len(jaccard))


def test_the_sketch_of_few_paths_is_exact(folder, first_ids_NLK):
    found = trace_passes.sketch(open_trace(folder).first(NUM_READ))
    paths = path_entropy(first_ids_NLK[..., 0])
    assert (found["num_paths"], found["num_paths_standard_error"]) == (paths.num_paths, 0)
    assert found["entropy_bits"] == pytest.approx(paths.entropy_bits, rel=1e-12)
    assert found["entropy_standard_error_bits"] == 0
    # one word of 64 bits for each token that waits
    assert found["array_bytes"] == 8 * NUM_READ


def test_the_analysis_has_every_section_that_needs_no_text(folder, first_ids_NLK):
    paths = path_entropy(first_ids_NLK[..., 0])
    for name, own in (("analysis", {"concentration", "separation"}), ("sketched", {"sketch"})):
        found = trace_passes.PASSES[name](open_trace(folder).first(NUM_READ))
        assert set(found["sections"]) == own | {
            "coactivation", "consistency", "domains", "flow", "load", "vocabulary"
        }  # fmt: skip
        assert (found["num_tokens"], found["num_paths"]) == (NUM_READ, paths.num_paths)
        assert found["entropy_bits"] == pytest.approx(paths.entropy_bits, rel=1e-12)


def test_the_script_prints_the_same_and_the_memory_of_its_own_process_alone(folder):
    ballast = np.ones(32 << 20)
    command = [sys.executable, trace_passes.__file__, "exact", str(folder), str(NUM_READ)]
    printed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    peak_bytes = printed.pop("peak_bytes")
    assert printed == trace_passes.exact(open_trace(folder).first(NUM_READ))
    assert 20 << 20 < peak_bytes < ballast.nbytes


def test_the_peak_grows_by_what_is_touched():
    script = (
        "import numpy, trace_passes; before = trace_passes.peak_bytes(); touched = numpy.ones(16 << 20); "
        "print(before, trace_passes.peak_bytes())"
    )
    folder = Path(trace_passes.__file__).parent
    printed = subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, capture_output=True, text=True)
    before, after = map(int, printed.stdout.split())
    # all of it, but for what was free again at the peak before
    assert 0.8 * (128 << 20) < after - before < 1.2 * (128 << 20)
