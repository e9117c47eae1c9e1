"""The sharing plan against the definition of blocks, layer by layer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe.sharing import SharingPlan, block_lengths, sharing_plan

Sharing = int | list[int] | None


def block_starts(sharing: Sharing, depth: int) -> list[int]:
    """First layer of each block, by definition."""
    if sharing is None:
        return [0]
    if isinstance(sharing, int):
        return list(range(0, depth, sharing))
    return [sum(sharing[:i]) for i in range(len(sharing))]


def block_of(layer: int, starts: list[int]) -> int:
    return max(i for i, start in enumerate(starts) if start <= layer)


@st.composite
def partitions(draw: st.DrawFn, depth: int) -> list[int]:
    lengths: list[int] = []
    while sum(lengths) < depth:
        lengths.append(draw(st.integers(1, depth - sum(lengths))))
    return lengths


@st.composite
def sharings(draw: st.DrawFn) -> tuple[int, Sharing, Sharing]:
    depth = draw(st.integers(1, 24))
    kinds = st.one_of(st.none(), st.integers(1, depth), partitions(depth))
    return depth, draw(kinds), draw(kinds)


def plan_or_none(depth: int, per_router: Sharing, per_decision: Sharing) -> SharingPlan | None:
    try:
        return sharing_plan(depth, per_router, per_decision)
    except ValueError:
        return None


@given(sharings())
def test_equals_the_definition(case: tuple[int, Sharing, Sharing]) -> None:
    depth, per_router, per_decision = case
    router_starts, decider_starts = block_starts(per_router, depth), block_starts(per_decision, depth)
    deciders_of_router = [
        [layer for layer in decider_starts if block_of(layer, router_starts) == router]
        for router in range(len(router_starts))
    ]
    plan = plan_or_none(depth, per_router, per_decision)
    # Refused exactly where a router block holds no first layer of a decision block.
    assert (plan is None) == any(not layers for layers in deciders_of_router)
    if plan is None:
        return
    assert [list(layers) for layers in plan.deciders_of_router] == deciders_of_router
    for layer in range(depth):
        decider = decider_starts[block_of(layer, decider_starts)]
        router = block_of(decider, router_starts)
        assert plan.decider_of_layer[layer] == decider
        assert plan.router_of_layer[layer] == router
        assert plan.slot_of_layer[layer] == deciders_of_router[router].index(decider)


@given(sharings())
def test_what_every_accepted_plan_holds(case: tuple[int, Sharing, Sharing]) -> None:
    depth, per_router, per_decision = case
    plan = plan_or_none(depth, per_router, per_decision)
    if plan is None:
        return
    assert len(plan.decider_of_layer) == len(plan.router_of_layer) == len(plan.slot_of_layer) == depth
    assert all(plan.deciders_of_router)  # no router without a layer that decides with it
    assert set(plan.router_of_layer) == set(range(plan.num_routers))
    assert list(plan.router_of_layer) == sorted(plan.router_of_layer)  # consecutive layers
    for layer, decider in enumerate(plan.decider_of_layer):
        assert decider <= layer
        assert decider in plan.deciding_layers
        assert plan.decider_of_layer[decider] == decider
        # A layer takes the decision that was made last, which is all that the decoder loop hands on.
        assert decider == max(d for d in plan.deciding_layers if d <= layer)
    for router, deciders in enumerate(plan.deciders_of_router):
        slots = [(plan.router_of_layer[layer], plan.slot_of_layer[layer]) for layer in deciders]
        assert slots == [(router, slot) for slot in range(len(deciders))]


@given(st.integers(1, 40))
def test_one_router_over_all_layers(depth: int) -> None:
    plans = [sharing_plan(depth, layers_per_router) for layers_per_router in (None, depth, [depth])]
    assert plans[0] == plans[1] == plans[2]
    assert plans[0].num_routers == 1
    assert plans[0].deciding_layers == tuple(range(depth))
    assert plans[0].slot_of_layer == tuple(range(depth))


@given(st.integers(1, 40))
def test_by_default_every_layer_has_a_router_of_its_own(depth: int) -> None:
    layers = tuple(range(depth))
    assert sharing_plan(depth) == SharingPlan(layers, layers, (0,) * depth, tuple((layer,) for layer in layers))


def test_the_variants_of_the_paper() -> None:
    path_b4 = sharing_plan(24, layers_per_router=4)
    assert path_b4.num_routers == 6
    assert path_b4.router_of_layer[3:5] == (0, 1)
    mono_b8 = sharing_plan(24, layers_per_router=8, layers_per_decision=8)
    assert mono_b8.deciding_layers == (0, 8, 16)
    uneven = sharing_plan(24, layers_per_router=[2, 6, 8, 8])
    assert [len(layers) for layers in uneven.deciders_of_router] == [2, 6, 8, 8]
    # A number that does not divide the depth leaves a shorter block at the end.
    assert block_lengths(4, 10, "key") == [4, 4, 2]


def test_a_decision_block_may_cross_a_router_block() -> None:
    plan = sharing_plan(8, layers_per_router=[2, 6], layers_per_decision=[3, 5])
    assert plan.router_of_layer == (0, 0, 0, 1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([2, 6, 8], r"layers_per_router \(\[2, 6, 8\]\) must .* sum to .* \(24\), .* sum to 16; change the list"),
        ([], r"layers_per_router \(\[\]\) must .* \(24\), .* sum to 0; change the list"),
        ([0, 24], r"layers_per_router \(\[0, 24\]\) must be block lengths of at least 1; take the others out"),
        ([25, -1], r"layers_per_router \(\[25, -1\]\) must be block lengths of at least 1; take the others out"),
        (0, r"layers_per_router \(0\) must be between 1 and the number of MoE layers \(24\); use null"),
        (25, r"layers_per_router \(25\) must be between 1 and the number of MoE layers \(24\); use null"),
    ],
)
def test_blocks_that_do_not_fit_the_depth_are_refused(lengths: Sharing, message: str) -> None:
    with pytest.raises(ValueError, match=r"^model\.config\." + message) as error:
        sharing_plan(24, layers_per_router=lengths)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"^model\.config\.layers_per_decision"):
        sharing_plan(24, layers_per_router=None, layers_per_decision=lengths)


def test_a_router_that_no_layer_would_use_is_refused() -> None:
    message = (
        r"model\.config\.layers_per_router \(2\) gives router 1 to MoE layers \[2, 3\], none of which decides under "
        r"model\.config\.layers_per_decision \(4\), so no layer would use it; make every router block hold"
    )
    with pytest.raises(ValueError, match=message):
        sharing_plan(8, layers_per_router=2, layers_per_decision=4)
    with pytest.raises(ValueError, match=r"layers_per_decision \(null\), so no layer would use it"):
        sharing_plan(8, layers_per_router=2, layers_per_decision=None)
