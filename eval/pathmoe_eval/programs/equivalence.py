"""Which programs a compiler makes the same of: compiled side by side, grouped by what comes out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pathmoe_eval.programs.compilation import FAILURES, Compilation, Compiler, compile_program
from pathmoe_eval.programs.sandbox import Confinement, Limits, confinement

_NUMBERS_OF_LARGEST = (1, 3, 10)


@dataclass(frozen=True, kw_only=True)
class ProgramGroup:
    """Programs of one normalised assembly or bytecode.

    Args:
        members: places in the sequence of programs, ascending.
        digest: SHA-256 of what they have in common.
    """

    members: tuple[int, ...]
    digest: str
    share_of_completed: float
    share_of_compiled: float


@dataclass(frozen=True, kw_only=True)
class LargestGroups:
    """The largest groups together: how many, how many programs, and their shares with both denominators."""

    num_groups: int
    num_programs: int
    share_of_completed: float
    share_of_compiled: float


@dataclass(frozen=True, kw_only=True)
class Equivalence:
    """What has become of programs; shares of the compiled are higher than those of the completed.

    Args:
        num_completed: all programs that were given.
        failures: how many have not compiled, by reason, in the order of FAILURES, those that occur.
        groups: by size, the largest first; of equal ones that with the first program.
        largest: the first 1, 3 and 10 groups, as far as there are so many.
        confinement: what held the compiler here.
    """

    language: str
    compiler: str
    compiler_version: str
    level: str
    num_completed: int
    num_compiled: int
    failures: Mapping[str, int]
    groups: tuple[ProgramGroup, ...]
    largest: tuple[LargestGroups, ...]
    limits: Limits
    confinement: Confinement


def compile_programs(
    sources: Sequence[str | bytes], compiler: Compiler, limits: Limits, num_workers: int
) -> list[Compilation]:
    """A compilation of each program, in their order; equal texts are compiled once.

    Args:
        num_workers: compilers that run beside each other, from 1.

    Raises:
        ValueError: no worker.
        OSError: see `compile_program`.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers ({num_workers}) must be at least 1; raise it")
    different = list(dict.fromkeys(sources))
    with ThreadPoolExecutor(num_workers) as threads:
        compiled = threads.map(lambda source: compile_program(source, compiler, limits), different)
        of_source = dict(zip(different, compiled, strict=True))
    return [of_source[source] for source in sources]


def equivalence(compilations: Sequence[Compilation], compiler: Compiler, limits: Limits) -> Equivalence:
    """Group programs by their compilations.

    Args:
        compilations: of all completed programs; what was cut off is no program and does not belong here.
        compiler: what they are from.
        limits: within which.
    """
    members = defaultdict(list)
    for place, compilation in enumerate(compilations):
        if compilation.failure is None:
            members[compilation.digest].append(place)
    reasons = Counter(compilation.failure for compilation in compilations)
    num_compiled = sum(map(len, members.values()))
    ordered = sorted(members.items(), key=lambda item: (-len(item[1]), item[1]))
    groups = tuple(
        ProgramGroup(
            members=tuple(places),
            digest=of_group,
            share_of_completed=len(places) / len(compilations),
            share_of_compiled=len(places) / num_compiled,
        )
        for of_group, places in ordered
    )
    return Equivalence(
        language=compiler.language,
        compiler=compiler.name,
        compiler_version=compiler.version,
        level=compiler.level,
        num_completed=len(compilations),
        num_compiled=num_compiled,
        failures={reason: reasons[reason] for reason in FAILURES if reasons[reason]},
        groups=groups,
        largest=tuple(_largest(groups[:number]) for number in _NUMBERS_OF_LARGEST if number <= len(groups)),
        limits=limits,
        confinement=confinement(),
    )


def _largest(groups: Sequence[ProgramGroup]) -> LargestGroups:
    return LargestGroups(
        num_groups=len(groups),
        num_programs=sum(len(group.members) for group in groups),
        share_of_completed=sum(group.share_of_completed for group in groups),
        share_of_compiled=sum(group.share_of_compiled for group in groups),
    )
