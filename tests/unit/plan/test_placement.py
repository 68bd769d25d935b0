from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.errors import UsageError
from pvc.plan.placement import place
from tests.unit.plan.worlds import request_of

ALLOCATIONS = st.lists(st.integers(min_value=0, max_value=64), min_size=1, max_size=20)


def _nodes(count: int) -> tuple[str, ...]:
    return tuple(f"n{number}" for number in range(count))


def test_slurm_gives_every_node_a_task_and_so_does_the_placement() -> None:
    placement = place(("n1", "n2", "n3"), (4, 2, 2), request_of(("nat", 4), cpus=2))
    assert [(share.first_rank, share.count) for share in placement.shares] == [(0, 2), (2, 1), (3, 1)]


def test_whole_nodes_are_spread_before_they_are_filled() -> None:
    placement = place(("n1", "n2", "n3"), (16, 16, 16), request_of(("nat", 4), cpus=2))
    assert [share.count for share in placement.shares] == [2, 1, 1]


def test_without_cores_each_vm_gets_the_most_that_fit() -> None:
    assert place(("n1", "n2"), (16, 16), request_of(("nat", 4))).cpus_per_vm == 8
    assert place(("n1", "n2"), (16, 16), request_of(("nat", 3))).cpus_per_vm == 8
    assert place(("n1",), (7,), request_of(("nat", 2))).cpus_per_vm == 3


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
        assert share.count * placement.cpus_per_vm <= cores
        first += share.count
    if each is None:
        more = placement.cpus_per_vm + 1
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
