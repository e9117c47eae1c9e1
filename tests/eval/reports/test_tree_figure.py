"""A drawn tree: every stretch has its line, in the colour of what it leads to."""

import pytest

from pathmoe_eval.reports.tree_figure import tree_figure


@pytest.fixture
def drawn(study_sections) -> dict:
    return study_sections()["tree"]["drawn"]


def stretches(figure) -> dict[str, list[tuple]]:
    """Points of each line, cut where it is interrupted."""
    found: dict[str, list[tuple]] = {}
    for trace in figure.data:
        points = [[]]
        for x, y in zip(trace.x, trace.y, strict=True):
            if x is None:
                points.append([])
            else:
                points[-1].append((x, y))
        found[trace.name] = [tuple(part) for part in points if part]
    return found


def test_each_segment_goes_from_its_fork_to_its_end(drawn: dict) -> None:
    found = stretches(tree_figure(drawn))
    assert sum(map(len, found.values())) == len(drawn["parent_S"])
    for segment, parent in enumerate(drawn["parent_S"]):
        first, last, height = (drawn[name][segment] for name in ("first_depth_S", "last_depth_S", "height_S"))
        begin = () if parent < 0 else ((first, drawn["height_S"][parent]),)
        assert (*begin, (first, height), (last, height)) in [part for parts in found.values() for part in parts]


def test_groups_have_names_and_colours(drawn: dict) -> None:
    figure = tree_figure(drawn)
    names = [trace.name for trace in figure.data]
    assert names == ["several groups", "group 1", "group 2", "group 3", "does not compile"]
    assert len({trace.line.color for trace in figure.data}) == len(names)
    leaves = stretches(figure)["does not compile"]
    assert len(leaves) == 1


def test_groups_beyond_those_with_a_name_are_one(drawn: dict) -> None:
    figure = tree_figure(drawn | {"group_S": [9] * len(drawn["group_S"])})
    assert [trace.name for trace in figure.data] == ["smaller groups"]
