# SPDX-License-Identifier: Apache-2.0
"""What nodes tell of a cluster's networks, put together."""

from __future__ import annotations

from pvc.model.netview import Counters, Member, NetworkReport, NetworkShare
from pvc.ops.network import merge
from tests.unit.ops.worlds import make_record

COUNTERS = Counters(3, 300, 0, 2, 200, 1)


def share(network: str, *ranks: int) -> NetworkShare:
    members = tuple(Member(rank, f"52:54:00:00:00:{rank:02x}", (), {}, COUNTERS) for rank in ranks)
    return NetworkShare(network, "kernel", 5001, 1500, members, COUNTERS)


def test_shares_of_the_nodes_become_networks_with_members_in_order() -> None:
    two = NetworkReport("n2", "10.99.0.2", (share("nat", 2), share("lan", 2)))
    one = NetworkReport("n1", "10.99.0.1", (share("nat", 1, 0),))
    nat, lan = merge(make_record(), [two, one])
    assert [(each.vm, each.node) for each in nat.members] == [("vm0", "n1"), ("vm1", "n1"), ("vm2", "n2")]
    assert {each.node for each in nat.tunnels} == {"n1", "n2"}
    assert (lan.network, lan.vni, len(lan.members)) == ("lan", 5001, 1)


def test_a_tap_receives_what_its_vm_sends() -> None:
    assert COUNTERS.mirrored() == Counters(2, 200, 1, 3, 300, 0)
