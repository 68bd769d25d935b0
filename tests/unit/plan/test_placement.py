# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.errors import UsageError
from pvc.model.request import Request, SetRequest, Size
from pvc.plan.placement import place
from tests.unit.plan.worlds import request_of

ALLOCATIONS = st.lists(st.integers(min_value=0, max_value=64), min_size=1, max_size=20)


def _nodes(count: int) -> tuple[str, ...]:
    return tuple(f"n{number}" for number in range(count))


def test_slurm_gives_every_node_a_task_and_so_does_the_placement() -> None:
    placement = place(("n1", "n2", "n3"), (4, 2, 2), request_of(("nat", 4), cpus=2))
    assert [(share.first_rank, share.count) for share in placement.shares] == [(0, 2), (2, 1), (3, 1)]


@pytest.mark.parametrize(
    ("cpus", "count", "each", "dealt", "packed"),
    [
        ((16, 16, 16), 4, 2, [2, 1, 1], [2, 1, 1]),
        ((16, 16), 4, 1, [2, 2], [3, 1]),
        ((16, 16), 4, 4, [2, 2], [3, 1]),
        ((16, 16, 16), 7, 3, [3, 2, 2], [5, 1, 1]),
        ((8, 2), 5, 2, [4, 1], [4, 1]),
        ((2, 16, 64), 20, 1, [2, 9, 9], [2, 16, 2]),
        ((1, 0, 4), 4, 1, [1, 0, 3], [1, 0, 3]),
        ((16,), 5, 3, [5], [5]),
    ],
)
def test_whole_nodes_are_dealt_to_as_slurm_deals_tasks(
    cpus: tuple[int, ...], count: int, each: int, dealt: list[int], packed: list[int]
) -> None:
    request = request_of(("nat", count), cpus=each)
    nodes = _nodes(len(cpus))
    for pack, found in ((False, dealt), (True, packed)):
        wish = replace(request, pack=pack, whole=True)
        assert [share.count for share in place(nodes, cpus, wish).shares] == found


@pytest.mark.parametrize(("pack", "each", "counts"), [(False, 2, [3, 2, 2]), (True, 1, [5, 1, 1])])
def test_vms_without_a_size_are_where_tasks_of_a_core_are(pack: bool, each: int, counts: list[int]) -> None:
    request = replace(request_of(("nat", 7)), pack=pack, whole=True)
    placement = place(_nodes(3), (6, 6, 6), request)
    assert ([share.count for share in placement.shares], placement.sizes[0].cpus) == (counts, each)


@pytest.mark.parametrize(
    ("cpus", "count", "each", "found"),
    [
        ((6, 2), 4, 1, [3, 1]),  # two for each, as with MaxMemPerCPU
        ((6, 2), 4, 2, [3, 1]),
        ((8, 24), 4, 1, [1, 3]),
        ((2, 2), 3, 1, [2, 1]),  # the last core has a second thread
        ((4, 2), 4, 1, [2, 2]),
        ((16, 4), 20, 1, [16, 4]),
    ],
)
def test_cores_that_slurm_has_counted_say_how_many_vms_it_means(
    cpus: tuple[int, ...], count: int, each: int, found: list[int]
) -> None:
    placement = place(_nodes(len(cpus)), cpus, request_of(("nat", count), cpus=each))
    assert [share.count for share in placement.shares] == found
    assert placement.cpus_of(0) == each


def test_a_crowd_on_one_large_node_is_no_work() -> None:
    placement = place(_nodes(1000), (*([1] * 999), 20000), replace(request_of(("nat", 10000), cpus=1), whole=True))
    assert placement.shares[-1].count == 9001


def test_without_cores_each_vm_gets_the_most_that_fit() -> None:
    assert place(("n1", "n2"), (16, 16), request_of(("nat", 4))).cpus_of(0) == 8
    assert place(("n1", "n2"), (16, 16), request_of(("nat", 3))).cpus_of(0) == 8
    assert place(("n1",), (7,), request_of(("nat", 2))).cpus_of(0) == 3


def test_too_many_vms_are_refused_with_the_numbers() -> None:
    with pytest.raises(UsageError, match="5 VMs of 2 cores do not fit in the allocation of 8 cores on 2 nodes"):
        place(("n1", "n2"), (4, 4), request_of(("nat", 5), cpus=2))
    with pytest.raises(UsageError, match="9 VMs of 1 core do not fit"):
        place(("n1", "n2"), (4, 4), request_of(("nat", 9)))


def test_an_allocation_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(UsageError):
        place(("n1",), (4, 4), request_of(("nat", 1)))
    with pytest.raises(UsageError):
        place((), (), request_of(("nat", 1)))


@given(ALLOCATIONS, st.integers(1, 200), st.none() | st.integers(1, 16))
def test_ranks_are_contiguous_and_no_node_gets_more_than_it_has(cpus: list[int], count: int, each: int | None) -> None:
    nodes = _nodes(len(cpus))
    request = request_of(("nat", count), cpus=each)
    try:
        placement = place(nodes, cpus, request)
    except UsageError:
        assert sum(cores // (each or 1) for cores in cpus) < count
        return
    assert placement.count == count
    first = 0
    for share, cores in zip(placement.shares, cpus, strict=True):
        assert share.first_rank == first
        assert share.count * placement.cpus_of(0) <= cores
        first += share.count
    if each is None:
        more = placement.cpus_of(0) + 1
        assert sum(cores // more for cores in cpus) < count


@given(ALLOCATIONS, st.integers(1, 20))
def test_no_node_that_has_room_stays_empty_while_another_has_two(cpus: list[int], count: int) -> None:
    try:
        placement = place(_nodes(len(cpus)), cpus, request_of(("nat", count), cpus=1))
    except UsageError:
        return
    counts = [share.count for share in placement.shares]
    if max(counts) > 1:
        assert all(got for got, cores in zip(counts, cpus, strict=True) if cores)


def sized(*sizes: tuple[int, int | None]) -> Request:
    count = sum(each for each, _ in sizes)
    return Request((SetRequest("nat", count),), None, tuple(Size(each, cpus) for each, cpus in sizes))


def test_every_component_runs_the_vms_of_one_size() -> None:
    placement = place(("n1", "n2", "n3"), (2, 8, 4), sized((2, 1), (3, 4)), (1, 2))
    assert [(each.node, each.first_rank, each.count, each.component) for each in placement.shares] == [
        ("n1", 0, 2, 0),
        ("n2", 2, 2, 1),
        ("n3", 4, 1, 1),
    ]
    assert [placement.cpus_of(rank) for rank in range(5)] == [1, 1, 4, 4, 4]
    with pytest.raises(IndexError):
        placement.find_size(5)


def test_sizes_that_leave_the_cores_open_take_what_their_component_has() -> None:
    placement = place(("n1", "n2"), (6, 8), sized((2, None), (1, None)), (1, 1))
    assert [size.cpus for size in placement.sizes] == [3, 8]


def test_by_hand_an_ordinary_job_says_how_large_all_vms_are() -> None:
    placement = place(("n1",), (6,), sized((2, None), (1, None)))
    assert placement.sizes == (Size(3, 2),)


def test_sizes_in_an_ordinary_job_fill_its_nodes_by_rank() -> None:
    placement = place(("n1", "n2"), (4, 4), sized((2, 1), (1, 3), (1, 1)))
    assert [(each.first_rank, each.count) for each in placement.shares] == [(0, 2), (2, 2)]
    with pytest.raises(UsageError, match="9 cores in all do not fit in the allocation of 8 cores on 2 nodes"):
        place(("n1", "n2"), (4, 4), sized((1, 1), (2, 4)))


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(UsageError, match="of 1 size, but the job has 2 components"):
        place(("n1", "n2"), (4, 4), request_of(("nat", 2), cpus=2), (1, 1))
    with pytest.raises(UsageError, match="of 2 sizes, but the job has 3 components"):
        place(("n1", "n2", "n3"), (4, 4, 4), sized((1, 1), (1, 2)), (1, 1, 1))
    with pytest.raises(UsageError, match="node n1 is in two components"):
        place(("n1", "n1"), (4, 4), sized((1, 1), (1, 2)), (1, 1))
    with pytest.raises(UsageError, match="3 VMs of 2 cores do not fit in the allocation of 4 cores on 1 nodes"):
        place(("n1", "n2"), (4, 4), sized((1, 1), (3, 2)), (1, 1))
    with pytest.raises(UsageError, match="no allocation"):
        place(("n1", "n2"), (4, 4), sized((1, 1), (3, 2)), (1, 2))


@given(st.lists(st.tuples(ALLOCATIONS, st.integers(1, 40), st.none() | st.integers(1, 8)), min_size=2, max_size=5))
def test_components_are_placed_each_for_itself(parts: list[tuple[list[int], int, int | None]]) -> None:
    cpus = [count for part, _, _ in parts for count in part]
    request = sized(*((count, each) for _, count, each in parts))
    try:
        placement = place(_nodes(len(cpus)), cpus, request, [len(part) for part, _, _ in parts])
    except UsageError:
        assert any(sum(cores // (each or 1) for cores in part) < count for part, count, each in parts)
        return
    first = 0
    for index, (part, count, each) in enumerate(parts):
        alone = place(_nodes(len(part)), part, request_of(("nat", count), cpus=each))
        shares = [share for share in placement.shares if share.component == index]
        assert [(share.first_rank - first, share.count) for share in shares] == [
            (share.first_rank, share.count) for share in alone.shares
        ]
        assert placement.cpus_of(first) == alone.cpus_of(0)
        first += count


@given(ALLOCATIONS, st.lists(st.tuples(st.integers(1, 20), st.integers(1, 16)), min_size=2, max_size=5))
def test_no_node_is_filled_above_its_cores(cpus: list[int], sizes: list[tuple[int, int]]) -> None:
    try:
        placement = place(_nodes(len(cpus)), cpus, sized(*sizes))
    except UsageError:
        # In the order of the ranks less than the largest VM stays unused on each node.
        wanted = sum(count * each for count, each in sizes)
        assert wanted > sum(cpus) - len(cpus) * (max(each for _, each in sizes) - 1)
        return
    assert placement.count == sum(count for count, _ in sizes)
    for share, cores in zip(placement.shares, cpus, strict=True):
        ranks = range(share.first_rank, share.first_rank + share.count)
        assert sum(placement.cpus_of(rank) for rank in ranks) <= cores
