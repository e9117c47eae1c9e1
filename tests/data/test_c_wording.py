import random
import re
import shutil
import subprocess
from pathlib import Path
from string import Template

import pytest

from pathmoe.data.c_sorts import SORTS
from pathmoe.data.c_wording import vary_wording

NAMES = {"f": "f", "a": "a", "n": "n", "i": "i", "j": "j", "k": "k", "x": "x", "T": "int", "I": "int", "gt": ">"}
# Those that need no swap, which `c_functions` renders.
TITLES = [title for title, body in SORTS.items() if "SWAP" not in body and "#include" not in body]


def assembly(body: str, path: Path) -> str:
    path.write_text("#include <stdlib.h>\n#include <string.h>\n" + Template(body).substitute(NAMES))
    command = ["gcc", "-std=c99", "-S", "-O0", "-Wall", "-Werror", "-o", "-", path]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.parametrize("title", TITLES)
def test_other_words_compile_to_the_same_assembly(title: str, tmp_path: Path) -> None:
    path, plain = tmp_path / "program.c", SORTS[title].strip("\n")
    wordings = {vary_wording(plain, random.Random(seed)) for seed in range(16)}
    assert len(wordings) > 3
    wanted = assembly(plain, path)
    for wording in wordings:
        text = re.sub(r"^( *)//~ (.*)$", r"\1// \2", wording, flags=re.MULTILINE)
        assert assembly(text, path) == wanted, text


def test_everything_varies() -> None:
    plain = SORTS["bubble sort that stops early"].strip("\n")
    wordings = [vary_wording(plain, random.Random(seed)) for seed in range(200)]
    for mark in ("$i++)", "++$i)", "$i += 1)", "        $I $i = 1;\n", "for ($I $i = 1", "//~ compare", ";\n\n"):
        share = sum(mark in wording for wording in wordings) / 200
        assert 0.01 < share < 0.99, mark
    assert vary_wording(plain, random.Random(7)) == wordings[7]


def test_what_can_not_be_said_otherwise_stays() -> None:
    twice = "void $f($I $n) {\n    for ($I $i = 0; $i < $n; $i--) {\n    }\n    for ($I $i = 0; ; ) {\n    }\n}"
    used = "    *$a++ = $x;\n    while ($n-- > 0) {\n    }\n    for (;;) {\n    }"
    for seed in range(20):
        assert "while" not in re.sub("//~.*", "", vary_wording(twice, random.Random(seed)))
        assert "*$a++ = $x;" in vary_wording(used, random.Random(seed))
        assert "while ($n-- > 0) {" in vary_wording(used, random.Random(seed))
