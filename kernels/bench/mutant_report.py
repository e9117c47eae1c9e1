"""MUTANTS.md: what became of the mutants of each file, a section a file."""

import hashlib
import re
from collections import Counter
from itertools import groupby
from typing import NamedTuple

from mutant_runs import Fate
from mutation import DROPPED, OPERATORS, STATEMENT, Mutant
from short_sets import PACKAGE, kernel_files, short_set

REPORT = PACKAGE.parent / "MUTANTS.md"
LEAST_SHARE = 0.9

HEAD = """# What the kernels' tests catch

A mutant is a kernel file with one small bug planted. `make mutants` makes all of them, runs each through the short set
of its file's tests in Triton's interpreter, and writes this. A mutant dies where the tests end with a wrong result, an
exception, a crash or the time limit. An equivalent one computes the same, or differs in what the interpreter cannot
show; each is listed with the reason. The share is of those that are not equivalent.

| operator | the bug |
| --- | --- |
{operators}

| file | mutants | {fates} | of these equivalent | share that dies |
| --- | {rules} |
{rows}
"""

COUNTS = ("mutants", *Fate, "equivalent")


class Section(NamedTuple):
    """One file's part of the report."""

    file: str
    sources: str
    counts: dict[str, int]
    text: str

    def share(self) -> float:
        """Of the mutants that are not equivalent, those that die."""
        return share(self.counts)


def share(counts: dict[str, int]) -> float:
    """Of the mutants that are not equivalent, those that die."""
    return (counts["mutants"] - counts[Fate.SURVIVED]) / max(1, counts["mutants"] - counts["equivalent"])


def sources_hash(file: str) -> str:
    """Hash of a kernel file."""
    return hashlib.sha256(kernel_files()[file].read_bytes()).hexdigest()[:12]


def section(file: str, fates: dict[Mutant, Fate], equivalent: dict[str, str]) -> Section:
    """What to write of a file's mutants.

    Args:
        file: its name.
        fates: of each mutant, in the order of the source.
        equivalent: reasons by name of the mutants that no test can tell apart.
    """
    ended = Counter(fates.values())
    alike = [mutant for mutant in fates if mutant.name in equivalent]
    alive = [mutant for mutant, fate in fates.items() if fate == Fate.SURVIVED and mutant not in alike]
    counts = {"mutants": len(fates), **{fate: ended[fate] for fate in Fate}, "equivalent": len(alike)}
    head = f"## {file}\n\nSources {sources_hash(file)}: {_sentence(counts)}. Tests: `{' '.join(short_set(file))}`.\n"
    survivors = [f"- {shown(mutant)}, in `{mutant.line}`" for mutant in alive]
    reasons = [f"- {shown(mutant)}: {equivalent[mutant.name]}" for mutant in alike]
    lists = [("Survivors", survivors), ("Equivalent", reasons)]
    texts = [head, _table(fates, alike), *("\n".join([f"{title}:\n", *lines, ""]) for title, lines in lists if lines)]
    return Section(file, sources_hash(file), counts, "\n".join(texts))


def _sentence(counts: dict[str, int]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in COUNTS)


def shown(mutant: Mutant) -> str:
    """How the report names it."""
    return f"`{mutant.function}`, {mutant.operator}: `{mutant.before}` → `{mutant.after}`"


def _table(fates: dict[Mutant, Fate], alike: list[Mutant]) -> str:
    """Mutants that die of those that are not equivalent, by function and operator."""
    operators = [*OPERATORS, STATEMENT]
    lines = [f"| function | {' | '.join(operators)} |", "| --- |" + " --- |" * len(operators)]
    for function, mutants in groupby(fates, key=lambda mutant: mutant.function):
        told = [mutant for mutant in mutants if mutant not in alike]
        all_of = Counter(mutant.operator for mutant in told)
        dead = Counter(mutant.operator for mutant in told if fates[mutant] != Fate.SURVIVED)
        cells = [f"{dead[name]} / {all_of[name]}" if all_of[name] else "" for name in operators]
        lines.append(f"| {function} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def kept_sections() -> dict[str, Section]:
    """Sections of the report as it is, of files that are still there.

    Raises:
        ValueError: it is not as it was written.
    """
    text = REPORT.read_text() if REPORT.exists() else ""
    found = {}
    for part in re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]:
        heading = re.match(r"## (\w+)\n\nSources (\w+): (.*?)\. Tests", part)
        if not heading:
            raise ValueError(
                f"{REPORT} is not as it was written ({part.splitlines()[0]}); delete it, or mend that part"
            )
        counts = {name: int(number) for number, name in re.findall(r"(\d+) ([a-z ]+)", heading[3])}
        found[heading[1]] = Section(heading[1], heading[2], counts, part)
    return {file: one for file, one in found.items() if file in kernel_files()}


def document(sections: list[Section]) -> str:
    """The whole report."""
    total = {name: sum(one.counts[name] for one in sections) for name in COUNTS}
    rows = [_row(one.file, one.counts) for one in sections] + [_row("all", total)]
    operators = {name: " ".join((mutate.__doc__ or "").split()) for name, mutate in OPERATORS.items()}
    operators[STATEMENT] = DROPPED
    head = HEAD.format(
        operators="\n".join(f"| {name} | {bug} |" for name, bug in operators.items()),
        fates=" | ".join(Fate),
        rules=" | ".join(["---"] * (len(Fate) + 3)),
        rows="\n".join(rows),
    )
    return "\n".join([head, *(one.text.rstrip("\n") + "\n" for one in sections)])


def _row(name: str, counts: dict[str, int]) -> str:
    return f"| {name} | {' | '.join(str(counts[column]) for column in COUNTS)} | {share(counts):.1%} |"
