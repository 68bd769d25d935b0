# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.errors import UsageError
from pvc.model.host import Claim
from pvc.model.network import Layer
from pvc.plan.claims import find_conflicts
from pvc.plan.grants import PortWant, take_meters, take_ports, take_slot
from pvc.plan.ownports import plan_reserved
from tests.unit.plan.worlds import NAT


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


@given(st.sets(st.integers(49990, 50100)))
def test_what_the_kernel_must_not_hand_out_holds_what_the_site_keeps(kept: set[int]) -> None:
    text = ",".join(map(str, sorted(kept)))
    found = plan_reserved([NAT], "32768 60500", text)
    assert found is not None
    ports = {port for part in found.split(",") for port in _expand(part)}
    assert ports == kept | set(range(60000, 60501))
    # As the kernel writes it, so that what is read can be compared with what was meant.
    assert plan_reserved([NAT], "32768 60500", found) is None
    assert plan_reserved([NAT], "1024 59999", text) is None


def _expand(part: str) -> range:
    first, _, last = part.partition("-")
    return range(int(first), int(last or first) + 1)


def test_ranges_that_the_node_needs() -> None:
    held = [
        Claim("10.201.4.1/24", "this node's network on eth0", direct=True),
        Claim("10.0.0.0/8", "this node's route by eth0"),
        Claim("10.200.7.0/24", "this node's route by eth1"),
        Claim("fd00::/8", "this node's route by eth0"),
    ]
    one, other = (str(each) for each in find_conflicts([NAT], held))
    assert one == (
        "networks.yaml: nat.settings.ext-network: 10.201.0.0/16 is not free on this node: "
        "10.201.4.0/24 is this node's network on eth0"
    )
    assert "int-network: 10.200.0.0/16 is not free on this node: 10.200.7.0/24 is this node's route by eth1" in other
    assert not find_conflicts([replace(NAT, layer=Layer.L2)], held)
    inside = [Claim("10.200.0.0/15", "this node's network on eth0", direct=True)]
    assert len(find_conflicts([NAT], inside)) == 2
