"""Groups of programs: planted ones, with both denominators, whatever the number of workers."""

import json
import random
from dataclasses import asdict

import pytest

from pathmoe_eval.programs.compilation import Compilation
from pathmoe_eval.programs.equivalence import compile_programs, equivalence
from pathmoe_eval.programs.sandbox import Limits, confinement

LIMITS = Limits()
HEAD = "int sum(const int *a, int n) {"
PLANTED = {
    "loop": [
        HEAD + "\n  int s = 0;\n  for (int i = 0; i < n; i++) s += a[i];\n  return s;\n}\n",
        HEAD + "\n  // so far\n  int s = 0;\n\n  for (int i = 0; i < n; i++)\n    s += a[i];\n  return s;\n}\n",
        HEAD + " int total = 0; for (int k = 0; k < n; k++) { total += a[k]; } return total; }",
    ],
    "while": [
        HEAD + "\n  int s = 0;\n  while (n > 0) s += a[--n];\n  return s;\n}\n",
        HEAD + "\n  int s = 0; /* so far */\n  while (n > 0) s += a[--n];\n  return s;\n}\n",
    ],
    "recursion": [HEAD + " return n ? a[0] + sum(a + 1, n - 1) : 0; }\n"],
    None: [HEAD + " return", '#include "/dev/zero"\n', HEAD + " return 0; }\0", HEAD + " return b; }\n"],
}


def test_planted_groups(c_compiler):
    labelled = [(name, source) for name, sources in PLANTED.items() for source in sources]
    random.Random(1).shuffle(labelled)
    sources = [source for _, source in labelled]
    found = equivalence(compile_programs(sources, c_compiler, LIMITS, 2), c_compiler, LIMITS)
    expected = [tuple(i for i, (of, _) in enumerate(labelled) if of == name) for name in ("loop", "while", "recursion")]
    assert [group.members for group in found.groups] == expected
    assert (found.num_completed, found.num_compiled) == (10, 6)
    assert [group.share_of_completed for group in found.groups] == pytest.approx([3 / 10, 2 / 10, 1 / 10])
    assert [group.share_of_compiled for group in found.groups] == pytest.approx([3 / 6, 2 / 6, 1 / 6])
    assert [(one.num_groups, one.num_programs) for one in found.largest] == [(1, 3), (3, 6)]
    assert [one.share_of_completed for one in found.largest] == pytest.approx([0.3, 0.6])
    assert [one.share_of_compiled for one in found.largest] == pytest.approx([0.5, 1.0])
    assert dict(found.failures) == {"encoding": 1, "forbidden_include": 1, "error": 2}
    assert (found.compiler, found.compiler_version, found.level) == ("gcc", c_compiler.version, "O0")


def test_results_do_not_depend_on_the_workers(c_compiler):
    sources = [source for sources in PLANTED.values() for source in sources] * 2
    assert compile_programs(sources, c_compiler, LIMITS, 1) == compile_programs(sources, c_compiler, LIMITS, 5)


def test_python_groups(python_compiler):
    sources = [
        "def f(n):\n    return n * 2\n",
        "def f(n):  # doubles\n\n    return n * 2\n",
        "def f(n):\n    return n + n\n",
    ]
    found = equivalence(compile_programs(sources, python_compiler, LIMITS, 2), python_compiler, LIMITS)
    assert [group.members for group in found.groups] == [(0, 1), (2,)]


def test_a_result_is_json(c_compiler):
    compilations = [Compilation(lines=("ret",)), Compilation(failure="error"), Compilation(lines=("ret",))]
    found = equivalence(compilations, c_compiler, LIMITS)
    written = json.loads(json.dumps(asdict(found), allow_nan=False))
    assert written["groups"][0]["members"] == [0, 2]
    assert written["confinement"]["files"] == confinement().files
    assert written["limits"]["cpu_seconds"] == LIMITS.cpu_seconds


def test_groups_of_equal_size_are_in_the_order_of_their_first_programs(c_compiler):
    lines = ["b", "a", "c", "a", "b", "d"]
    found = equivalence([Compilation(lines=(line,)) for line in lines], c_compiler, LIMITS)
    assert [group.members for group in found.groups] == [(0, 4), (1, 3), (2,), (5,)]


@pytest.mark.parametrize("compilations", [[], [Compilation(failure="error")]])
def test_where_nothing_has_compiled_there_are_no_groups(compilations, c_compiler):
    found = equivalence(compilations, c_compiler, LIMITS)
    assert (found.num_completed, found.num_compiled) == (len(compilations), 0)
    assert found.groups == found.largest == ()


def test_there_must_be_a_worker(c_compiler):
    with pytest.raises(ValueError, match=r"^num_workers \(0\) must be at least 1; raise it$"):
        compile_programs(["int x;"], c_compiler, LIMITS, 0)
