"""Includes that are refused before the compiler starts, and files that are refused after it has read them."""

import os
from pathlib import Path

import pytest

from pathmoe_eval.programs.includes import (
    all_allowed,
    assembly_reads_files,
    dependencies,
    has_forbidden_include,
)

FORBIDDEN = [
    '#include "/etc/passwd"',
    "#include </dev/zero>",
    '  #  include\t"/dev/zero"',
    '/* a */ # /* b */ include /* c */ "/dev/zero"',
    '%:include "/dev/zero"',
    '#inc\\\nlude "/dev/\\\nzero"',
    '#include_next "/dev/zero"',
    '#import "/dev/zero"',
    '#embed "/dev/zero"',
    '#include "../secret"',
    "#include <a/../../b>",
    '#define F "/etc/passwd"\n#include F',
    "#include __FILE__",
    "#include",
    '#pragma GCC dependency "/dev/zero"',
    '#if __has_include("/etc/passwd")\n#endif',
    "#if __has_include(FILE)\n#endif",
    "#if 1 && __has_embed(</dev/zero>)\n#endif",
    '// fine\n#include "/dev/zero"',
    'char *s = "\\"";\n#include "/dev/zero"',
]
ALLOWED = [
    "#include <stdio.h>",
    "#include <sys/types.h>",
    '#include "own.h"',
    '#include "not_there.h"',
    '// #include "/etc/passwd"',
    '/*\n#include "/etc/passwd"\n*/',
    'char *s = "#include \\"/etc/passwd\\"";',
    '#define X "/etc/passwd"',
    "#if __has_include(<stdio.h>)\n#endif",
    "#if defined(__has_include) && __has_include(<stdio.h>)\n#endif",
    "#ifdef __has_include\n#endif",
    "#pragma GCC unroll 4",
    "#",
    "int include = 1;",
]


@pytest.mark.parametrize("source", FORBIDDEN)
@pytest.mark.parametrize("language", ["c", "c++"])
def test_forbidden(source, language):
    assert has_forbidden_include(f"int x;\n{source}\nint y;\n", language, None)
    assert has_forbidden_include(source, language, Path("/"))


@pytest.mark.parametrize("source", ALLOWED)
@pytest.mark.parametrize("language", ["c", "c++"])
def test_allowed(source, language):
    assert not has_forbidden_include(f"int x;\n{source}\nint y;\n", language, None)


def test_in_a_raw_string_no_directive_begins():
    assert not has_forbidden_include('auto s = R"x(\n#include "/dev/zero"\n)x";', "c++", None)
    assert has_forbidden_include('auto s = R"x()x";\n#include "/dev/zero"\n', "c++", None)


def test_what_is_in_the_prompts_folder_must_be_a_file_there(tmp_path):
    prompt = tmp_path / "prompt"
    (prompt / "sub").mkdir(parents=True)
    (tmp_path / "outside.h").write_text("")
    (prompt / "own.h").write_text("")
    (prompt / "sub" / "own.h").write_text("")
    (prompt / "inner.h").symlink_to("sub/own.h")
    (prompt / "outer.h").symlink_to("../outside.h")
    (prompt / "folder.h").symlink_to(tmp_path)
    (prompt / "circle.h").symlink_to("circle.h")
    (prompt / "nowhere.h").symlink_to("nowhere")
    os.mkfifo(prompt / "pipe.h")
    names = ["own.h", "inner.h", "sub/own.h", "outer.h", "folder.h/outside.h", "circle.h", "nowhere.h", "pipe.h", "sub"]
    refused = [name for name in names if has_forbidden_include(f'#include "{name}"', "c", prompt)]
    assert refused == names[3:]


def test_files_that_were_read_must_lie_in_allowed_folders(tmp_path):
    own, system, other = (tmp_path / name for name in ("own", "system", "other"))
    for folder in (own, system, other):
        folder.mkdir()
        (folder / "a.h").write_text("")
        (folder / "link.h").symlink_to(other / "a.h")

    def allowed(*files):
        return all_allowed(files, own, [system], [own])

    assert allowed("a.h", str(system / "a.h"), f"{own}/../own/a.h")
    assert allowed(str(system / "link.h"))  # who administers the system may have it so
    assert not allowed("a.h", "link.h")
    assert not allowed(str(other / "a.h"))
    assert not allowed(f"{system}/../other/a.h")
    assert not allowed("../other/a.h")


def test_dependencies_as_compilers_write_them():
    rule = "out: candidate.c /usr/include/stdio.h \\\n /tmp/a\\ b.h /tmp/c\\#d.h \\\n /tmp/$$e.h\n"
    assert dependencies(rule) == ["candidate.c", "/usr/include/stdio.h", "/tmp/a b.h", "/tmp/c#d.h", "/tmp/$e.h"]
    assert dependencies("out:") == []


@pytest.mark.parametrize(
    ("line", "reads"),
    [
        ('\t.incbin "/etc/passwd"', True),
        ('\tnop; .include "a"', True),
        ('label:.incbin "a"', True),
        ("\tnop", False),
        ('\t.string "; .incbin a"', False),
        ("\t.include_me", False),
        ("\tcall\tobj.include", False),
    ],
)
def test_assembly_that_reads_files(line, reads):
    assert assembly_reads_files(f"\tret\n{line}\n\tret\n") == reads
