# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.errors import ConfigError, UsageError
from pvc.host.netlink import Links
from pvc.model.host import BridgeKind, Grants, HostBridge, NodeFacts
from pvc.model.network import BridgedNetwork, ResourceSet, Tagging, Vlan
from pvc.plan import actions, names
from pvc.plan.bridged import vlan_columns, vlan_ports, vm_mac
from pvc.plan.node import NodePlan, plan_node
from pvc.plan.placement import place
from tests.unit.plan.golden import check_golden
from tests.unit.plan.worlds import SITE, facts_of, job_of, request_of

STORAGE = BridgedNetwork("storage", "br-data", "st", 9000, (Vlan(20, Tagging.NATIVE), Vlan(21, Tagging.TAGGED)))
CAMPUS = BridgedNetwork("campus", "br-campus", "ca", 1500)
WORLD = replace(
    SITE,
    bridged={"storage": STORAGE, "campus": CAMPUS},
    resource_sets={
        **SITE.resource_sets,
        "all": ResourceSet("all", ("storage", "nat", "campus")),
        "campus": ResourceSet("campus", ("campus",)),
    },
)
BRIDGES = {
    "br-data": HostBridge(BridgeKind.OVS, 9000, True, "netdev"),
    "br-campus": HostBridge(BridgeKind.LINUX, 9000),
}


def plan_of(request: tuple[tuple[str, int], ...], bridges: dict[str, HostBridge], node: int = 1) -> NodePlan:
    job, wanted = job_of(2, 4, node=node), request_of(*request, cpus=2)
    facts: NodeFacts = replace(facts_of(job), bridges=bridges)
    grants = Grants({"nat": 5001}, 0, (60000, 60001))
    return plan_node(job, wanted, place(job.nodes, job.cpus, wanted), WORLD, facts, grants)


def test_golden_both_kinds_of_bridges_beside_a_network_of_ones_own() -> None:
    check_golden("node-bridged", plan_of((("all", 3),), BRIDGES))


def test_interfaces_are_in_the_order_of_the_resource_set() -> None:
    plan = plan_of((("all", 2),), BRIDGES)
    assert [[nic.network for nic in vm.nics] for vm in plan.grant.vms] == [["storage", "nat", "campus"]]
    for vm in plan.grant.vms:
        taps = [plan.taps[nic.tap_index] for nic in vm.nics]
        assert [tap.netns for tap in taps] == ["pvc-12", "pvc-12", "pvc-12"]
        assert len({tap.name for tap in taps}) == 3
        assert [tap.vnet_header for tap in taps] == [False, True, True]


def test_bridged_networks_alone_need_a_namespace_and_no_service() -> None:
    plan = plan_of((("campus", 2),), BRIDGES)
    kinds = [actions.MakeRunDir, actions.AddNetns, actions.AddLeads, actions.JoinBridge, actions.LoadRules]
    assert [type(step) for step in plan.actions] == kinds
    assert plan.actions[-1].netns == plan.netns == "pvc-12"


def test_a_node_without_vms_needs_no_bridge() -> None:
    assert [type(step) for step in plan_of((("campus", 1),), {}, node=2).actions] == [actions.MakeRunDir]


def test_the_bridge_keeps_its_mtu() -> None:
    (join,) = [step for step in plan_of((("campus", 2),), BRIDGES).actions if isinstance(step, actions.JoinBridge)]
    assert join.mtu == 9000  # a Linux bridge takes the smallest of its ports' for its own


@pytest.mark.parametrize(
    ("bridges", "text"),
    [
        ({}, "storage.settings.host-bridge: this node has no bridge br-data"),
        (
            {"br-data": HostBridge(BridgeKind.OVS, 1500, True)},
            "settings.mtu: 9000 is more than br-data carries",
        ),
        ({"br-data": HostBridge(BridgeKind.LINUX, 9000, steady=False)}, "br-data has no MAC of its own on this node"),
        ({"br-data": HostBridge(BridgeKind.LINUX, 9000)}, "storage.settings.vlans: br-data does not tell VLANs"),
    ],
)
def test_what_a_bridge_cannot_do_is_told_by_the_networks_key(bridges: dict[str, HostBridge], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of((("all", 2),), bridges)
    assert text in str(caught.value)


@given(st.integers(1, 0x03FF0000), st.integers(0, 15), st.integers(0, 65535))
def test_macs_are_unicast_locally_administered_and_say_whose_they_are(job_id: int, index: int, rank: int) -> None:
    mac = int(vm_mac(job_id, index, rank).replace(":", ""), 16)
    assert mac >> 40 & 3 == 2
    number = mac >> 42 << 40 | mac & (1 << 40) - 1
    assert (number >> 20, number >> 16 & 15, number & 0xFFFF) == (job_id, index, rank)


def test_more_networks_than_addresses_are_refused() -> None:
    with pytest.raises(UsageError, match="16 bridged networks at most"):
        vm_mac(1, 16, 0)


def test_device_names_fit_the_kernel_for_any_job() -> None:
    for mark in (names.job_mark(0x03FF0000), names.chance_mark(0), names.chance_mark(names.MARKS - 1)):
        assert len(names.port("abcd", mark, 36**3 - 1)) <= names.MAX_DEVICE


VLANS = {
    "untagged": ((20, "untagged"),),
    "native": ((30, "native"), (31, "tagged"), (32, "tagged")),
    "native-alone": ((30, "native"),),
    "trunk": ((31, "tagged"), (32, "tagged")),
    "none": (),
}


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("untagged", ("vlan_mode=access", "tag=20")),
        ("native", ("vlan_mode=native-untagged", "tag=30", "trunks=30,31,32")),
        ("native-alone", ("vlan_mode=access", "tag=30")),
        ("trunk", ("vlan_mode=trunk", "trunks=31,32")),
        ("none", ()),
    ],
)
def test_vlans_as_columns_of_open_vswitch(name: str, columns: tuple[str, ...]) -> None:
    assert vlan_columns(VLANS[name]) == columns


class Kernel:
    """What is asked of the kernel; no kernel here has a bridge that filters VLANs."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def link(self, _verb: str, ifname: str) -> list[Any]:
        class Message(dict[str, Any]):
            def get_attr(self, name: str) -> Any:
                return {"IFLA_IFNAME": ifname, "IFLA_MTU": 1500}.get(name)

        return [Message(index=7, flags=1)]

    def vlan_filter(self, verb: str, **arguments: Any) -> None:
        self.asked.append((verb, arguments))


@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("untagged", [(20, ["pvid", "untagged"])]),
        ("native", [(30, ["pvid", "untagged"]), (31, []), (32, [])]),
        ("trunk", [(31, []), (32, [])]),
    ],
)
def test_vlans_as_messages_to_the_kernel(name: str, added: list[tuple[int, list[str]]]) -> None:
    kernel = Kernel()
    Links(kernel).set_vlans(("st.c.0",), vlan_ports(VLANS[name]))
    wanted = [("add", {"index": 7, "vlan_info": {"vid": vid, "flags": flags}}) for vid, flags in added]
    assert kernel.asked == [*wanted, ("del", {"index": 7, "vlan_info": {"vid": 1}})]
