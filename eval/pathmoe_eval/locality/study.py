"""The study of a tree: which programs are equivalent, how alike their routing is, and what a cache has of it."""

# Shapes: C completions, M samples, S steps.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from pathmoe_eval.bootstrap import Bootstrap
from pathmoe_eval.generation.tree import GenerationTree
from pathmoe_eval.locality.access_order import AccessOrder, one_after_another, side_by_side
from pathmoe_eval.locality.alignment import Alignment, align_by_diff, align_by_lines, align_by_position
from pathmoe_eval.locality.candidate_programs import CandidateProgram, candidate_programs, equal_lines
from pathmoe_eval.locality.decomposition import TokenIdentity, token_identity
from pathmoe_eval.locality.expert_cache import Start, simulate_caches
from pathmoe_eval.locality.pairs import CompletionPairs, Grouping, Relation, completion_pairs
from pathmoe_eval.locality.phases import phases
from pathmoe_eval.locality.tree_summary import UNGROUPED, drawn_tree, tree_summary
from pathmoe_eval.locality.union_growth import sample_nodes, union_growth
from pathmoe_eval.programs.compilation import Compilation, Compiler
from pathmoe_eval.programs.differences import group_differences
from pathmoe_eval.programs.equivalence import Equivalence, compile_programs, equivalence
from pathmoe_eval.programs.sandbox import Limits

PairChoice = Literal["within", "across", "any", "siblings", "siblings_across", "siblings_any"]
AlignmentChoice = Literal["diff", "position", "lines"]

PAIRS: Mapping[PairChoice, tuple[Relation, Grouping]] = {
    "within": ("any", "within"),
    "across": ("any", "across"),
    "any": ("any", "any"),
    "siblings": ("siblings", "within"),
    "siblings_across": ("siblings", "across"),
    "siblings_any": ("siblings", "any"),
}
"""Which pairs of completions are compared: of one group of equivalent programs, of two, or all; and such of each as
part from each other last."""

# Our choice: about even on a logarithmic axis, up to the distance for which the paper prints a figure, and beyond.
_STARTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_MOST_SAMPLES = 64
_MOST_DRAWN = 200


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Which completions are compared, and how."""

    pairs: tuple[PairChoice, ...] = ("within", "across", "siblings")
    """Pairs of completions: within a group of equivalent programs, across two, or any; siblings are those within one
    that part from each other last, siblings_across and siblings_any the like. The first that has some leads."""
    alignments: tuple[AlignmentChoice, ...] = ("diff", "position", "lines")
    """How their tokens are aligned: by a diff, by position since the fork, by lines of equal assembly (within groups
    only). The first leads the page."""
    max_pairs: int = 1000
    """Pairs of a kind at most, drawn evenly over forks."""
    num_permutations: int = 499
    """Of the test of same against different tokens."""
    num_resamples: int = 1000
    """Bootstrap samples of forks behind an interval."""
    confidence: float = 0.95
    """Of intervals."""
    max_cached: int = 64
    """Completions, evenly chosen, that the simulation of caches decodes."""

    def __post_init__(self) -> None:
        for name in ("pairs", "alignments"):
            chosen = getattr(self, name)
            if not chosen or len(set(chosen)) < len(chosen):
                raise ValueError(f"--{name} ({list(chosen)}) must name one or more, each once; change it")
        if self.alignments == ("lines",) and not any(PAIRS[choice][1] == "within" for choice in self.pairs):
            raise ValueError(
                f"--alignments (['lines']) must hold diff or position for --pairs {list(self.pairs)}, since lines are "
                "of equal assembly; add one"
            )
        for name in ("max_pairs", "num_permutations", "max_cached"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} ({getattr(self, name)}) must be at least 1; raise it")
        Bootstrap(num_resamples=self.num_resamples, seed=0, confidence=self.confidence)


def study_tree(
    tree: GenerationTree,
    made_from: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    compilers: Sequence[Compiler],
    comparison: Comparison,
    *,
    num_workers: int,
    seed: int,
) -> dict[str, Any]:
    """Every section of a report on one tree.

    Args:
        tree: what was generated.
        made_from: how, as `generate` says it.
        tokenizer: of its tokens.
        compilers: the first one's groups are those within and across which completions are compared.
        comparison: which completions are compared, and how.
        num_workers: compilers that run beside each other.
        seed: of every draw.

    Raises:
        ValueError: no completion with a generated token before its end.
    """
    if not (sample_nodes(tree) >= 0).any():
        longest = made_from["sampling"]["max_new_tokens"]
        raise ValueError(
            f"--max_new_tokens ({longest}) must let a completion end after some tokens, and none of "
            f"{len(tree.leaves())} sequences did; raise it, or search longer"
        )
    programs = candidate_programs(tree, tokenizer)
    sources, limits = [program.text for program in programs], Limits()
    compiled = [compile_programs(sources, compiler, limits, num_workers) for compiler in compilers]
    levels = [equivalence(found, compiler, limits) for found, compiler in zip(compiled, compilers, strict=True)]
    group_C = group_of_completion(levels[0])
    members = [group.members for group in levels[0].groups]
    return {
        "tree": asdict(tree_summary(tree, made_from["num_forwarded"], made_from["num_read_again"]))
        | {"method": made_from["method"], "drawn": asdict(drawn_tree(tree, group_C.tolist(), _MOST_DRAWN))},
        "equivalence": {
            "levels": [_of_level(level) for level in levels],
            "differences": asdict(group_differences(sources, members, levels[0].language)),
        },
        "decomposition": [
            asdict(one) for one in decompositions(tree, group_C, programs, compiled[0], comparison, seed)
        ],
        "union_growth": asdict(
            union_growth(tree, sample_counts=_sample_counts(tree), step_starts=_starts_within(tree))
        ),
        "caches": [asdict(one) for one in _caches(tree, made_from["bytes_per_expert"], comparison.max_cached, seed)],
        "phases": asdict(phases(tree)),
    }


def group_of_completion(found: Equivalence) -> NDArray[np.int64]:
    """The rank of the group of each completion, 0 for the largest, `UNGROUPED` where it did not compile."""
    group_C = np.full(found.num_completed, UNGROUPED, dtype=np.int64)
    for rank, group in enumerate(found.groups):
        group_C[list(group.members)] = rank
    return group_C


def decompositions(
    tree: GenerationTree,
    group_C: NDArray[np.int64],
    programs: Sequence[CandidateProgram],
    compilations: Sequence[Compilation],
    comparison: Comparison,
    seed: int,
) -> list[TokenIdentity]:
    """Overlap by token identity for each choice of pairs and each alignment of them; lines align equivalent ones."""
    settings = Bootstrap(num_resamples=comparison.num_resamples, seed=seed, confidence=comparison.confidence)
    found = []
    for choice in comparison.pairs:
        relation, grouping = PAIRS[choice]
        pairs = completion_pairs(
            tree, relation=relation, grouping=grouping, max_pairs=comparison.max_pairs, seed=seed, group_C=group_C
        )
        for method in comparison.alignments:
            if method == "lines" and grouping != "within":
                continue
            found.append(
                token_identity(
                    tree,
                    pairs,
                    _aligned(method, tree, pairs, programs, compilations),
                    distance_starts=_starts_within(tree),
                    seed=seed,
                    num_permutations=comparison.num_permutations,
                    settings=settings,
                )
            )
    return found


def _aligned(
    method: AlignmentChoice,
    tree: GenerationTree,
    pairs: CompletionPairs,
    programs: Sequence[CandidateProgram],
    compilations: Sequence[Compilation],
) -> Alignment:
    if method == "diff":
        return align_by_diff(tree, pairs)
    if method == "position":
        return align_by_position(tree, pairs)
    completions = tree.completions()
    token_lines = {node: program.line_T for node, program in zip(completions.tolist(), programs, strict=True)}
    return align_by_lines(tree, pairs, token_lines, equal_lines(pairs, completions, compilations))


def _caches(tree: GenerationTree, bytes_per_expert: int, max_cached: int, seed: int) -> list[Any]:
    """One sample after another, from an empty cache each and from a warm one; and all of them side by side."""
    one_by_one, together = one_after_another(tree, max_cached), side_by_side(tree, max_cached)
    starts: list[tuple[AccessOrder, Start]] = [(one_by_one, "warm"), (one_by_one, "empty"), (together, "warm")]
    return [
        simulate_caches(tree, order, start=start, bytes_per_expert=bytes_per_expert, seed=seed)
        for order, start in starts
    ]


def _sample_counts(tree: GenerationTree) -> list[int]:
    """Powers of 2 up to half of the completions, so that most steps have so many."""
    node_MS = sample_nodes(tree)
    alive = int(np.count_nonzero(node_MS >= 0, axis=0).max(initial=0))
    return [count for count in (2**power for power in range(20)) if count <= min(max(alive // 2, 1), _MOST_SAMPLES)]


def _starts_within(tree: GenerationTree) -> list[int]:
    """Beginnings of bins of distances that some completion reaches."""
    longest = int(tree.depth_N[tree.completions()].max()) + 1 - tree.prompt_length
    return [start for start in _STARTS if start <= max(longest, 1)]


def _of_level(found: Equivalence) -> dict[str, Any]:
    """As a dict; members of groups by their number of programs, since completions have no name."""
    return asdict(found) | {
        "groups": [
            {"num_programs": len(group.members), "digest": group.digest,
             "share_of_completed": group.share_of_completed, "share_of_compiled": group.share_of_compiled}
            for group in found.groups
        ]
    }  # fmt: skip
