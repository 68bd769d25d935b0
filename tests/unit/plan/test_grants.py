from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.errors import UsageError
from pvc.plan.grants import PortWant, take_meters, take_ports, take_slot


@given(st.sets(st.integers(0, 40)), st.integers(0, 30))
def test_a_slot_is_never_handed_out_twice(taken: set[int], size: int) -> None:
    try:
        slot = take_slot(taken, size, "nat")
    except UsageError:
        assert set(range(size)) <= taken
        return
    assert slot < size
    assert slot not in taken


@given(st.sets(st.integers(90, 130)), st.integers(0, 20))
def test_a_port_is_never_handed_out_twice(taken: set[int], count: int) -> None:
    try:
        ports = take_ports(taken, [PortWant("nat", count, 100, 119)])
    except UsageError:
        assert len(set(range(100, 120)) - taken) < count
        return
    assert len(set(ports)) == count
    assert not set(ports) & taken
    assert all(100 <= port <= 119 for port in ports)


def test_exhaustion_says_what_is_full_and_what_to_do() -> None:
    with pytest.raises(UsageError, match="3 host ports wanted, 1 of 100-101 are free") as error:
        take_ports({100}, [PortWant("nat", 3, 100, 101)])
    assert "reverse-nat" in str(error.value.hint)


@given(st.sets(st.integers(90, 130)), st.lists(st.tuples(st.integers(0, 5), st.integers(95, 110)), max_size=5))
def test_wants_with_overlapping_ranges_share_no_port(taken: set[int], sizes: list[tuple[int, int]]) -> None:
    wants = [PortWant("nat", count, first, first + 15) for count, first in sizes]
    try:
        ports = take_ports(taken, wants)
    except UsageError:
        return
    assert len(set(ports)) == len(ports) == sum(count for count, _ in sizes)
    assert not set(ports) & taken
    left = iter(ports)
    for want in wants:
        mine = [next(left) for _ in range(want.count)]
        assert all(want.first <= port <= want.last for port in mine)


def test_meters_are_the_lowest_free_numbers() -> None:
    assert take_meters({1, 2, 5}, 4) == (3, 4, 6, 7)
    assert take_meters(set(), 0) == ()
