"""Make the mutants of kernel files, test them, and keep the report of it up to date."""

import ast
from collections.abc import Iterator

from equivalents import EQUIVALENT
from mutant_report import LEAST_SHARE, REPORT, Section, document, kept_sections, section, shown
from mutant_runs import Fate, Job, run
from mutation import Mutant, mutants
from short_sets import kernel_files, short_set

SAMPLE_OF_FILE = 2


def mutants_of(file: str) -> list[Mutant]:
    """Of a kernel file, by its name."""
    return mutants(kernel_files()[file].read_text())


def _check_unmutated(files: list[str]) -> None:
    # As mutants are written: without comments, and laid out anew.
    plain = {file: ast.unparse(ast.parse(kernel_files()[file].read_text())) for file in files}
    fates = run([Job(file, source, short_set(file)) for file, source in plain.items()])
    if failing := [file for file, fate in zip(files, fates, strict=True) if fate != Fate.SURVIVED]:
        raise ValueError(f"tests fail on {', '.join(failing)} without a mutation; mend that first")


def _test(file: str) -> dict[Mutant, Fate]:
    """How each mutant of a file ends.

    Raises:
        ValueError: one that is listed as equivalent dies, or does not exist.
    """
    made = mutants_of(file)
    listed = EQUIVALENT.get(file, {})
    if missing := listed.keys() - {mutant.name for mutant in made}:
        raise ValueError(f"listed as equivalent in equivalents.py, but no mutant of {file}: {min(missing)}")
    fates = dict(zip(made, run([Job(file, mutant.source, short_set(file)) for mutant in made]), strict=True))
    for mutant, fate in fates.items():
        if fate != Fate.SURVIVED and mutant.name in listed:
            raise ValueError(f"listed as equivalent in equivalents.py, but it dies ({fate}): {mutant.name}")
    return fates


def write_report(files: list[str]) -> Iterator[str]:
    """Test all mutants of these files, write each file's section of MUTANTS.md, and say how it went.

    Raises:
        ValueError: too few die.
    """
    _check_unmutated(files)
    low: list[Section] = []
    for file in files:
        new = section(file, _test(file), EQUIVALENT.get(file, {}))
        sections = kept_sections() | {file: new}
        REPORT.write_text(document([sections[name] for name in kernel_files() if name in sections]))
        yield f"{file}: {new.share():.1%} of {new.counts['mutants'] - new.counts['equivalent']} mutants die"
        low += [new] if new.share() < LEAST_SHARE else []
    if low:
        raise ValueError(f"fewer than {LEAST_SHARE:.0%} die in {', '.join(one.file for one in low)}; see MUTANTS.md")


def check(files: list[str]) -> Iterator[str]:
    """Test a few mutants of these files, spread over each.

    Raises:
        ValueError: one that MUTANTS.md does not list as alive survives.
    """
    _check_unmutated(files)
    yield f"the tests of {len(files)} files pass"
    jobs: list[tuple[str, Mutant]] = []
    for file in files:
        alive = kept_sections()[file].text if file in kept_sections() else ""
        told = [mutant for mutant in mutants_of(file) if shown(mutant) not in alive]
        jobs += [(file, told[len(told) * (2 * i + 1) // (2 * SAMPLE_OF_FILE)]) for i in range(SAMPLE_OF_FILE)]
    fates = run([Job(file, mutant.source, short_set(file)) for file, mutant in jobs])
    for (file, mutant), fate in zip(jobs, fates, strict=True):
        if fate == Fate.SURVIVED:
            raise ValueError(f"it survives: {file}.{mutant.name}")
    yield f"{len(jobs)} mutants die"
