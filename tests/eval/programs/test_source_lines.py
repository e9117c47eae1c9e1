"""Lines of the source for lines of assembly: constants that say where they stand, and a table by hand."""

import re

from pathmoe_eval.programs.compilation import compile_program
from pathmoe_eval.programs.sandbox import Limits
from pathmoe_eval.programs.source_lines import source_lines


def test_each_constant_is_on_its_line(c_compiler):
    statements = [f"  x += {1000 + line};" + "\n" * (line % 3) for line in range(3, 40)]
    source = "#include <stdlib.h>\nint f(int x) {\n" + "\n".join(statements) + "\n  return x;\n}\n"
    line_of = {
        int(number): line
        for line, text in enumerate(source.split("\n"), start=1)
        for number in re.findall(r"\b1\d\d\d\b", text)
    }
    compilation = compile_program(source, c_compiler, Limits())
    found = {
        int(number): line
        for text, line in zip(compilation.lines, compilation.source_lines, strict=True)
        for number in re.findall(r"\b1\d\d\d\b", text)
    }
    assert found == line_of
    assert len(found) == 37


def test_labels_directives_and_other_files_have_none():
    assembly = """\t.file\t"candidate.c"
\t.file 0 "/tmp/x" "candidate.c"
\t.text
f:
.LFB0:
\t.file 1 "candidate.c"
\t.loc 1 2 5
\tpushq\t%rbp
.L3:
\tret
\t.size\tf, .-f
g:
\tnop
\t.file 2 "/usr/include" "stdlib.h"
\t.loc 2 7 1 is_stmt 0 view .LVU3
\tnop
\t.loc 0 9 1
\tnop
\t.loc 1 0 1
\tnop
"""
    found = dict(enumerate(source_lines(assembly, "candidate.c")))
    assert {place: line for place, line in found.items() if line is not None} == {7: 2, 9: 2, 17: 9}
    assert len(found) == assembly.count("\n") + 1
