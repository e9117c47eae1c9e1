"""The built-in source `c-functions`: small C programs, a function of (seed, index) alone.

Half of them sort, by many algorithms: a study of expert routing compares programs that do the same in other words, so
loops, order, comments, blank lines and layout vary independently of the algorithm. Names and types vary less: most
programs have the usual ones, so that a small model learns to keep to them.
"""

import random
import re
from collections.abc import Iterator, Sequence
from string import Template as Text
from typing import TypeVar

from pathmoe.data.c_other import OTHERS
from pathmoe.data.c_sorts import SORTS
from pathmoe.data.c_wording import vary_wording
from pathmoe.data.document import Document

_Option = TypeVar("_Option")

_FORMATS = {"int": "%d", "long": "%ld", "short": "%d", "unsigned": "%u", "float": "%g", "double": "%g"}
_SORT_NAMES = ("sort", "sort_array", "sort_values", "arrange", "order", "sort_in_place", "do_sort")
_ARRAYS = ("a", "arr", "array", "values", "data", "items", "numbers", "v", "list", "xs")
_LENGTHS = ("n", "len", "length", "size_of_input", "count", "num")
_INDICES = (("i", "j", "k"), ("p", "r", "s"), ("outer", "inner", "place"), ("idx", "jdx", "kdx"))
_SORT_SUMMARIES = (
    "Sorts $a in $order order ($title).",
    "$title, $order order, in place.",
    "In-place $title: puts the $n elements of $a in $order order.",
    "Arrange the array in $order order using $title.",
)


def c_functions(seed: int, num_documents: int) -> Iterator[Document]:
    """The first `num_documents` programs of a seed; a longer corpus begins with a shorter one."""
    for index in range(num_documents):
        yield Document(c_program(seed, index))


def c_program(seed: int, index: int) -> str:
    """One C program that compiles without warnings (C99, `-Wall`)."""
    rng = random.Random(f"{seed}/{index}")
    element_type = _mostly_first(rng, tuple(_FORMATS))
    i, j, k = _mostly_first(rng, _INDICES)
    names = {"a": _mostly_first(rng, _ARRAYS), "n": _mostly_first(rng, _LENGTHS), "i": i, "j": j, "k": k}
    names |= {"x": _mostly_first(rng, ("key", "value", "x", "wanted")), "T": element_type}
    names["I"] = _mostly_first(rng, ("int", "long"))
    if rng.random() < 0.5:
        summary, body, call = _sort(rng, names)
    else:
        other = rng.choice(OTHERS)
        names["f"] = rng.choice(other.names)
        summary, body, call = other.summary, other.body.strip("\n"), other.call
    body = _render_swaps(body, rng.choice(("inline", "function", "macro")))
    if rng.random() < 0.6:
        statements = [f"    {line}" for line in call.split("\n")]
        body = "\n".join([body, "", "int main(void) {", *statements, "    return 0;", "}"])
    body = vary_wording(body, rng)
    body = _render_comments(body, summary, rng)
    return _render_layout(_includes(body) + Text(body).substitute(names) + "\n", rng)


def _mostly_first(rng: random.Random, options: Sequence[_Option]) -> _Option:
    """The first option in two of three draws, else any."""
    return options[0] if rng.random() < 2 / 3 else rng.choice(options)


def _sort(rng: random.Random, names: dict[str, str]) -> tuple[str, str, str]:
    """Summary, body and call of a sort function; sets its name and order in `names`."""
    title = rng.choice(list(SORTS))
    own_name = re.sub(r"[^a-z]+", "_", title).strip("_")
    order = rng.choice(("ascending", "descending"))
    names |= {
        "f": _mostly_first(rng, _SORT_NAMES) if rng.random() < 2 / 3 else own_name,
        "gt": ">" if order == "ascending" else "<",
        "title": title,
        "order": order,
        "format": _FORMATS[names["T"]],
        "values": ", ".join(str(rng.randrange(100)) for _ in range(rng.randint(4, 9))),
    }
    call = """$T $a[] = {$values};
$I $n = sizeof $a / sizeof $a[0];
$f($a, $n);
for ($I $i = 0; $i < $n; $i++) {
    printf("$format ", $a[$i]);
}
printf("\\n");"""
    return rng.choice(_SORT_SUMMARIES), SORTS[title].strip("\n"), call


def _render_swaps(body: str, kind: str) -> str:
    """Replace the SWAP lines by three assignments, or by a helper function or macro put before the body."""
    inline = r"\1$$T held = \2;\n\1\2 = \3;\n\1\3 = held;".replace("$$", "$")
    calls = {"inline": inline, "function": r"\1swap(&\2, &\3);", "macro": r"\1SWAP($T, \2, \3);"}
    rendered, num_swaps = re.subn(r"^( *)SWAP\((.+), (.+)\);$", calls[kind], body, flags=re.MULTILINE)
    if num_swaps and kind == "function":
        helper = (
            "static void swap($T *left, $T *right) {\n    $T held = *left;\n    *left = *right;\n    *right = held;\n}"
        )
        return f"{helper}\n\n{rendered}"
    if num_swaps and kind == "macro":
        return f"#define SWAP(type, x, y) do {{ type held = (x); (x) = (y); (y) = held; }} while (0)\n\n{rendered}"
    return rendered


def _render_comments(body: str, summary: str, rng: random.Random) -> str:
    """Put the summary above the function, or not, and write the `//~` lines, or leave them out, whatever is above."""
    body = re.sub(r"^( *)//~ (.*)\n", rng.choice(("", r"\1// \2\n", r"\1/* \2 */\n")), body, flags=re.MULTILINE)
    head = rng.choice(
        (
            "",
            f"/* {summary} */\n",
            f"// {summary}\n",
            f"/*\n * {summary}\n */\n",
            f"/**\n * @brief {summary}\n */\n",
        )
    )
    return re.sub(r"^(?=[^\n]*\$f\()", lambda _: head, body, count=1, flags=re.MULTILINE)


def _includes(body: str) -> str:
    """The headers that the body needs, as lines."""
    needs = {"stdio.h": r"printf|puts\(", "stdlib.h": r"malloc|free\(|qsort\(", "string.h": r"memcpy|strlen\("}
    lines = [f"#include <{header}>\n" for header, pattern in needs.items() if re.search(pattern, body)]
    if "size_t" in body and not lines:
        lines = ["#include <stddef.h>\n"]
    return "".join(lines) + ("\n" if lines else "")


def _render_layout(code: str, rng: random.Random) -> str:
    """Indentation by two, four or eight spaces or by tabs; braces at the end of a line or on their own."""
    if rng.random() < 0.4:
        code = re.sub(r"^( *)\} else \{$", r"\1}\n\1else {", code, flags=re.MULTILINE)
        code = re.sub(r"^( *)(?!#)(.*\)|else|struct \w+) \{$", r"\1\2\n\1{", code, flags=re.MULTILINE)
    unit = rng.choice(("  ", "    ", "    ", "        ", "\t"))
    return re.sub(r"^(?:    )+", lambda spaces: unit * (len(spaces[0]) // 4), code, flags=re.MULTILINE)
