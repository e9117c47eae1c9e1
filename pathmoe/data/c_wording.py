"""The same C program in other words, for `c_functions`: loops, steps, comments and blank lines.

What changes here changes no instruction: a study of routing compares programs that compile to the same assembly. The
text is that of a template, with `$` placeholders and `//~` comment lines, four spaces for each level.
"""

import random
import re

_STEPS = {"++": ("$x++", "++$x", "$x += 1"), "--": ("$x--", "--$x", "$x -= 1")}
_FOR = re.compile(r"^( *)for \((.*); (.*); (.*)\) \{$")
_REMARKS = {
    "for": ("go through the elements", "one element after another", "for each position", "scan the range", "next pass"),
    "while": ("repeat until done", "as long as there is work", "keep going", "not finished yet"),
    "if": ("compare", "check the condition", "only then", "decide"),
    "return": ("done", "the result", "finished"),
}
_KEYWORD = re.compile(rf"^( *)({'|'.join(_REMARKS)})\b")


def vary_wording(body: str, rng: random.Random) -> str:
    """One of the many ways to write the program of a template."""
    body = _vary_steps(body, rng)
    body = _vary_loops(body, rng.choice((0.0, 0.3, 1.0)), rng)
    body = _vary_remarks(body, rng.choice((0.0, 0.1, 0.3)), rng)
    return _vary_blank_lines(body, rng.choice((0.0, 0.1, 0.3)), rng)


def _vary_steps(body: str, rng: random.Random) -> str:
    """Write steps by one, where their value is not used, in one way or another throughout."""
    for sign, ways in _STEPS.items():
        way = rng.choice(ways).replace("$x", r"\2")
        # A statement of its own, or the step of a for.
        body = re.sub(rf"^( *)(\$?\w+){re.escape(sign)};$", rf"\1{way};", body, flags=re.MULTILINE)
        body = re.sub(rf"(; )(\$?\w+){re.escape(sign)}(?=\) \{{$)", rf"\1{way}", body, flags=re.MULTILINE)
    return body


def _vary_loops(body: str, share: float, rng: random.Random) -> str:
    """Write some `for` loops as `while`, where what they declare has a name of its own."""
    lines = body.split("\n")
    for place in range(len(lines) - 1, -1, -1):  # inner loops first, so that the places before stay
        loop = _FOR.match(lines[place])
        if loop is None or rng.random() >= share:
            continue
        indent, first, condition, step = loop.groups()
        declared = first.split(" = ")[0]
        if not first or not condition or not step or "," in step or body.count(f"{declared} =") != 1:
            continue
        end = lines.index(indent + "}", place)
        lines[place : end + 1] = [
            f"{indent}{first};", f"{indent}while ({condition}) {{", *lines[place + 1 : end], f"{indent}    {step};",
            indent + "}",
        ]  # fmt: skip
    return "\n".join(lines)


def _vary_remarks(body: str, share: float, rng: random.Random) -> str:
    """Put remarks above some statements that have none."""
    lines: list[str] = []
    for line in body.split("\n"):
        statement = _KEYWORD.match(line)
        if statement and statement[1] and not lines[-1].lstrip().startswith("//~") and rng.random() < share:
            lines.append(f"{statement[1]}//~ {rng.choice(_REMARKS[statement[2]])}")
        lines.append(line)
    return "\n".join(lines)


def _vary_blank_lines(body: str, share: float, rng: random.Random) -> str:
    """Put blank lines after some statements within blocks."""
    lines: list[str] = []
    for line, after in zip(body.split("\n"), [*body.split("\n")[1:], ""], strict=True):
        lines.append(line)
        is_within = line.startswith("    ") and line.endswith((";", "}")) and after.strip()
        if is_within and not after.lstrip().startswith("}") and rng.random() < share:
            lines.append("")
    return "\n".join(lines)
