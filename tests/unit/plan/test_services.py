# SPDX-License-Identifier: Apache-2.0
"""Forwarded ports, IPv6, guards and what VMs may reach: the parts of a node's plan that serve and that forbid."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from pvc.model.host import Grants
from pvc.model.network import Access, EthernetNetwork, Layer, Outbound, Outbound6, Protocol, ReverseNat
from pvc.plan import actions, addresses, members, nftables
from pvc.plan.forwards import plan_forwards, plan_ports, plan_wants
from pvc.plan.grants import take_ports
from pvc.plan.node import NodePlan, find_share, plan_memberships, plan_node
from pvc.plan.placement import place
from tests.unit.plan.golden import check_golden
from tests.unit.plan.worlds import NAT, SITE, facts_of, job_of, request_of

RICH = replace(
    NAT,
    int_network6=IPv6Network("fd00:c8::/64"),
    dns_servers=("192.0.2.1",),
    ntp_server="192.0.2.9",
    allow_networks=(IPv4Network("10.1.5.0/24"), IPv6Network("2001:db8:5::/64")),
    allow_host=True,
    mac_offset=0x100,
    bandwidth_mbit=100,
    reverse_nat=(
        ReverseNat(22, 22, 60000, 60099, access=Access.OWNER),
        ReverseNat(8000, 8001, 60100, 60199),
        ReverseNat(53, 53, 60200, 60299, Protocol.UDP),
    ),
)


def plan_with(network: EthernetNetwork, *, count: int = 4, nodes: int = 2, node: int = 1) -> NodePlan:
    """A node's part of ``count`` VMs of one core each on this network, two on a node."""
    site = replace(SITE, networks={**SITE.networks, network.name: network})
    job, request = job_of(nodes, (count + nodes - 1) // nodes, node=node), request_of((network.name, count), cpus=1)
    placement = place(job.nodes, job.cpus, request)
    wants = plan_wants(plan_memberships(request, site), find_share(placement, job.node))
    own = ("10.99.0.1/24", "192.0.2.77/28", "fd99::1/64")
    facts = replace(facts_of(job), addresses=own, exits=("eth0", "eth1"))
    grants = Grants({"nat": 5001, "back": 5002}, 3, take_ports(frozenset(), wants))
    return plan_node(job, request, placement, site, facts, grants)


def rules_of(plan: NodePlan) -> tuple[str, str]:
    """The rules inside the namespace, and the node's."""
    inner, outer = (step.text for step in plan.actions if isinstance(step, actions.LoadRules))
    return inner, outer


def test_golden_every_setting() -> None:
    check_golden("node-every-setting", plan_with(RICH))


def test_golden_routed_prefix() -> None:
    network = replace(NAT, int_network6=IPv6Network("2001:db8:1::/64"), outbound6=Outbound6.ROUTED)
    check_golden("node-routed", plan_with(network))


def test_golden_switch() -> None:
    check_golden("node-lan", plan_with(replace(NAT, layer=Layer.L2, reverse_nat=(), bandwidth_mbit=50)))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(1, 60000), st.integers(0, 9), st.sampled_from(Protocol)), max_size=4),
)
def test_every_port_of_every_vm_is_forwarded_once(count: int, entries: list[tuple[int, int, Protocol]]) -> None:
    nat = tuple(ReverseNat(first, first + more, 60000, 65000, protocol) for first, more, protocol in entries)
    site = replace(SITE, networks={**SITE.networks, "nat": replace(NAT, reverse_nat=nat)})
    request = request_of(("nat", count), cpus=1)
    job = job_of(2, count)
    memberships = plan_memberships(request, site)
    for share in place(job.nodes, job.cpus, request).shares:
        wants = plan_wants(memberships, share)
        forwards = plan_forwards(memberships, share, take_ports({60001, 60003}, wants), {"nat": 5001})
        assert len({each.host_port for each in forwards}) == len(forwards) == sum(want.count for want in wants)
        assert {each.rank for each in forwards} <= set(range(share.first_rank, share.first_rank + share.count))
        wanted = sum(1 + more for _, more, _ in entries) * share.count
        assert len(forwards) == wanted
        for each in forwards:
            assert each.vm_address == addresses.vm_address(NAT, each.rank)
        ports = plan_ports(forwards)
        assert len(forwards) == 0 or sum(map(len, ports.values())) <= len(forwards)


@given(st.integers(0, addresses.MAX_RANK), st.integers(1, 0xFFFFFF), st.sampled_from(Outbound6))
def test_ipv6_addresses_are_of_their_prefix_and_their_own(rank: int, vni: int, outbound: Outbound6) -> None:
    network = replace(NAT, int_network6=IPv6Network("2001:db8:1::/64"), outbound6=outbound)
    assert network.int_network6 is not None
    text, gateway = addresses.vm_address6(network, rank, vni), addresses.gateway_address6(network, vni)
    assert text is not None
    assert gateway is not None
    assert IPv6Address(text) in network.int_network6
    assert text != gateway
    first = replace(members.numbering(network, 0, vni), address=None)
    assert list(members.expand(first, ((rank, rank + 1),))) == [(rank, addresses.vm_mac(network, 0, rank), None, text)]
    other = addresses.vm_address6(network, rank, vni ^ 1)
    assert (other != text) is (outbound is Outbound6.ROUTED)


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(8, 32)), max_size=8))
def test_closed_networks_are_all_there_and_do_not_overlap(found: list[tuple[int, int]]) -> None:
    own = [f"{ip_address(number)}/{length}" for number, length in found]
    around = nftables.surroundings(own, ["10.99.0.2"], [IPv4Network("10.201.0.0/16")]).of("ip")
    closed = [ip_network(each) for each in around.closed]
    assert all(any(ip_address(each.partition("/")[0]) in network for network in closed) for each in own)
    assert all(not one.overlaps(other) for at, one in enumerate(closed) for other in closed[:at])


def test_vms_that_may_not_go_out_ask_no_name_server_outside() -> None:
    def upstream(network: EthernetNetwork) -> list[str]:
        step = next(step for step in plan_with(network).actions if isinstance(step, actions.StartDnsmasq))
        return [line for line in step.config.splitlines() if line.startswith("server=")]

    assert upstream(NAT) == ["server=192.0.2.53"]
    assert upstream(replace(NAT, allow_outbound=Outbound.NONE)) == []
    assert upstream(replace(NAT, allow_outbound=Outbound.NONE, dns_servers=("192.0.2.1",))) == ["server=192.0.2.1"]


def test_forwarding_is_the_nodes_own_where_the_site_says_so() -> None:
    keys = [step.key for step in plan_with(RICH).actions if isinstance(step, actions.SetSysctl)]
    assert keys == ["net/ipv4/conf/eth0/forwarding", "net/ipv4/conf/eth1/forwarding"]
    steps = plan_with(replace(RICH, manage_forwarding=False)).actions
    assert not any(isinstance(step, actions.SetSysctl | actions.ForwardIpv6) for step in steps)


def test_only_the_owners_processes_get_to_ports_of_the_owner() -> None:
    _, outer = rules_of(plan_with(RICH))
    for line in outer.splitlines():
        if "60000" in line:
            assert line.strip().startswith("meta skuid 1000 "), line
    grant = plan_with(RICH).grant.vms[0]
    assert grant.owner_ports == ("22",)
    assert grant.ports == {"22": 60000, "8000": 60100, "8001": 60101, "53/udp": 60200}


def test_the_guard_has_as_many_rules_for_one_vm_as_for_many() -> None:
    network = replace(NAT, int_network6=RICH.int_network6)
    few, many = (
        rules_of(plan_with(network, count=count, nodes=1))[0].partition("table bridge")[2] for count in (1, 64)
    )
    assert few.count("\n") == many.count("\n")
