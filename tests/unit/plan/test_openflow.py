# SPDX-License-Identifier: Apache-2.0
"""Flows of Open vSwitch, walked through by a small interpreter: who gets which frame."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvc.model.host import Grants, NodeFacts, Underlay
from pvc.model.network import DataPath, EthernetNetwork, Layer
from pvc.plan import actions, addresses, members, names, openflow
from pvc.plan.node import NodePlan, plan_node
from pvc.plan.placement import place
from tests.unit.plan.golden import check_golden
from tests.unit.plan.worlds import NAT, SITE, facts_of, job_of, request_of

L3 = replace(NAT, data_path=DataPath.OVS, host_suffix="-ovs", vxlan_port=4790, int_network6=IPv6Network("fd00:c8::/64"))
L2 = replace(L3, layer=Layer.L2, reverse_nat=(), int_network6=None)
VNI = 5001
TUNNEL = names.tunnel(4790)

Frame = dict[str, object]


def plan_on(
    node: int, nodes: int, cpus: int, vms: int, network: EthernetNetwork, meters: int = 0, datapath: str = "netdev"
) -> NodePlan:
    job, request = job_of(nodes, cpus, node=node), request_of(("nat", vms), cpus=1)
    placement = place(job.nodes, job.cpus, request)
    share = placement.shares[node - 1]
    ports = tuple(range(60000, 60000 + share.count)) if network.reverse_nat else ()
    grants = Grants({"nat": VNI}, 0, ports, tuple(range(7, 7 + meters)))
    site = replace(SITE, networks={**SITE.networks, "nat": network})
    facts = replace(switched(facts_of(job)), ovs_datapath=datapath)
    return plan_node(job, request, placement, site, facts, grants)


def switched(facts: NodeFacts) -> NodeFacts:
    peers = {name: address.replace("10.99", "10.98") for name, address in facts.peers.items()}
    own = facts.address.replace("10.99", "10.98")
    return replace(facts, tunnels={"-ovs": Underlay(own, "br-phy", 9000, peers)})


def flows_of(plan: NodePlan) -> actions.LoadFlows:
    return next(step for step in plan.actions if isinstance(step, actions.LoadFlows))


@dataclass
class Flow:
    table: int
    priority: int
    match: list[str]
    acts: str


@dataclass
class Switch:
    """What is loaded, and where frames went: ("PORT", frame)."""

    flows: list[Flow] = field(default_factory=list)
    groups: dict[int, list[str]] = field(default_factory=dict)
    sent: list[tuple[str, Frame]] = field(default_factory=list)

    @classmethod
    def load(cls, text: str) -> Switch:
        switch = cls()
        for line in text.splitlines():
            if found := re.match(r"group add group_id=(\d+),type=all,(.*)", line):
                switch.groups[int(found[1])] = found[2].removeprefix("bucket=actions=").split(",bucket=actions=")
            elif found := re.match(r"flow add cookie=\w+,table=(\d+),priority=(\d+),(.*?),actions=(.*)", line):
                switch.flows.append(Flow(int(found[1]), int(found[2]), found[3].split(","), found[4]))
            else:
                assert re.match(r"(flow|group) delete ", line), line
        return switch

    def receive(self, port: str, frame: Frame) -> list[tuple[str, Frame]]:
        self.sent = []
        self._table(openflow.CLASSIFY, {"in_port": port, **frame})
        return self.sent

    def _table(self, number: int, frame: Frame) -> None:
        fitting = [each for each in self.flows if each.table == number and all(_fits(m, frame) for m in each.match)]
        if fitting:
            best = max(each.priority for each in fitting)
            assert len({each.acts for each in fitting if each.priority == best}) == 1, fitting
            self._act(next(each.acts for each in fitting if each.priority == best), frame)

    def _act(self, acts: str, frame: Frame) -> None:
        for act in acts.split(","):
            verb, _, rest = act.partition(":")
            if verb == "set_field":
                value, _, name = rest.partition("->")
                frame[_NAMES.get(name, name)] = value
            elif verb == "move":
                source, _, name = rest.partition("->")
                frame[_field(name)] = _moved(source, name, frame)
            elif verb == "goto_table":
                self._table(int(rest), frame)
            elif verb == "group":
                for bucket in self.groups[int(rest)]:
                    self._act(bucket, dict(frame))
            elif verb == "output" and rest.strip('"') != frame["in_port"]:
                self.sent.append((rest.strip('"'), dict(frame)))
            elif verb == "in_port":
                self.sent.append((str(frame["in_port"]), dict(frame)))
            else:
                assert verb in ("meter", "drop", "output"), act


_NAMES = {
    "eth_src": "dl_src",
    "NXM_OF_ETH_SRC": "dl_src",
    "NXM_OF_ETH_DST": "dl_dst",
    "NXM_NX_ARP_SHA": "arp_sha",
    "NXM_NX_ARP_THA": "arp_tha",
    "NXM_OF_ARP_SPA": "arp_spa",
    "NXM_OF_ARP_TPA": "arp_tpa",
    "NXM_NX_IPV6_SRC": "ipv6_src",
    "NXM_NX_IPV6_DST": "ipv6_dst",
    "NXM_NX_ND_TARGET": "nd_target",
    "NXM_NX_ND_TLL": "nd_tll",
    "NXM_NX_REG0": "reg0",
    "icmpv6_type": "icmp_type",
}


def _field(text: str) -> str:
    return _NAMES[text.partition("[")[0]]


def _moved(source: str, target: str, frame: Frame) -> str:
    """The new value of a field: all of another one, or its last bits."""
    value = str(frame[_field(source)])
    assert source[source.index("[") :] == target[target.index("[") :], (source, target)
    if source.endswith("[]"):
        return value
    found = re.search(r"\[0\.\.(\d+)\]$", source)
    assert found is not None, source
    mask = (2 << int(found[1])) - 1
    moved = f"{_number(str(frame[_field(target)])) & ~mask | _number(value) & mask:012x}"
    return ":".join(moved[at : at + 2] for at in range(0, 12, 2))


def _number(text: str) -> int:
    """A MAC or an address as a number."""
    is_mac = re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", text)
    return int(text.replace(":", ""), 16) if is_mac else int(ip_address(text))


_IMPLIED = {"udp": {"ip"}, "icmp6": {"ipv6"}, "udp6": {"ipv6"}}


def _fits(match: str, frame: Frame) -> bool:
    name, equals, wanted = match.partition("=")
    if not equals:
        return name in {frame.get("kind")} | _IMPLIED.get(str(frame.get("kind")), set())
    value, wanted = str(frame.get(name, "none")), wanted.strip('"')
    if value == "none" or "/" not in wanted:
        return value == wanted
    base, _, mask = wanted.partition("/")
    if name == "dl_dst":
        return _number(value) & _number(mask) == _number(base)
    if mask.startswith("0x"):
        return int(value, 16) & int(mask, 16) == int(base, 16)
    if ":" in mask:
        return int(IPv6Address(value)) & int(IPv6Address(mask)) == int(IPv6Address(base))
    return ip_address(value) in ip_network(wanted)


def mac(rank: int) -> str:
    return addresses.vm_mac(L3, 0, rank)


def ip(rank: int) -> str:
    return addresses.vm_address(L3, rank)


def port(plan: NodePlan, rank: int) -> str | None:
    found = [plan.taps[vm.nics[0].tap_index].name for vm in plan.grant.vms if vm.rank == rank]
    return found[0] if found else None


def packet(source: int, target: int) -> Frame:
    return {
        "kind": "ip",
        "dl_src": mac(source),
        "dl_dst": mac(target),
        "nw_src": ip(source),
        "nw_dst": ip(target),
    }


def carry(plans: list[NodePlan], at: int, name: str, frame: Frame) -> list[tuple[int, str]]:
    """(node, port) that a frame comes out of, through tunnels where it has to."""
    found = []
    for out, sent in Switch.load(flows_of(plans[at]).text).receive(name, frame):
        if out != TUNNEL:
            found.append((at, out))
            continue
        assert int(str(sent["tun_id"])) == VNI
        target = next(i for i, _ in enumerate(plans) if f"10.98.0.{i + 1}" == sent["tun_dst"])
        inner = {key: value for key, value in sent.items() if key not in ("in_port", "metadata")}
        for far, _ in Switch.load(flows_of(plans[target]).text).receive(TUNNEL, inner):
            assert far != TUNNEL
            found.append((target, far))
    return sorted(found)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.sampled_from([L3, L2]), st.data())
def test_every_frame_reaches_its_vm_and_nobody_else(
    nodes: int, cpus: int, network: EthernetNetwork, data: st.DataObject
) -> None:
    vms = data.draw(st.integers(1, nodes * cpus))
    plans = [plan_on(node, nodes, cpus, vms, network) for node in range(1, nodes + 1)]
    plans = [plan for plan in plans if plan.grant.vms]
    homes = {vm.rank: at for at, plan in enumerate(plans) for vm in plan.grant.vms}
    everybody = sorted((at, str(port(plans[at], rank))) for rank, at in homes.items())
    for source, at in homes.items():
        own = str(port(plans[at], source))
        for target, there in homes.items():
            if source != target:
                assert carry(plans, at, own, packet(source, target)) == [(there, port(plans[there], target))]
        others = [each for each in everybody if each != (at, own)]
        for group in ("ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:fb"):
            assert carry(plans, at, own, {**packet(source, source), "dl_dst": group}) == others
        unknown = carry(plans, at, own, {**packet(source, source), "dl_dst": "52:54:00:00:77:77"})
        assert unknown == (others if network.layer is Layer.L2 else [])


def test_arp_and_neighbour_solicitations_are_answered_for_all_vms_and_the_gateway() -> None:
    plan = plan_on(1, 3, 2, 6, L3)
    switch, own = Switch.load(flows_of(plan).text), str(port(plan, 0))
    asked = [(mac(rank), ip(rank), addresses.vm_address6(L3, rank, VNI)) for rank in range(1, 6)]
    gateway = addresses.gateway_mac(L3, 0)
    asked.append((gateway, addresses.gateway_address(L3), addresses.gateway_address6(L3, VNI)))
    for hardware, address, address6 in asked:
        arp: Frame = {"kind": "arp", "dl_src": mac(0), "dl_dst": "ff:ff:ff:ff:ff:ff", "arp_op": "1"}
        arp |= {"arp_sha": mac(0), "arp_spa": ip(0), "arp_tpa": address, "arp_tha": "00:00:00:00:00:00"}
        ((out, answer),) = switch.receive(own, arp)
        assert (out, answer["arp_op"], answer["dl_src"], answer["dl_dst"]) == (own, "2", hardware, mac(0))
        assert (answer["arp_sha"], answer["arp_spa"]) == (hardware, address)
        assert (answer["arp_tha"], answer["arp_tpa"]) == (mac(0), ip(0))
        ask: Frame = {
            "kind": "icmp6",
            "dl_src": mac(0),
            "dl_dst": "33:33:ff:00:00:01",
            "icmp_type": "135",
            "nd_sll": mac(0),
        }
        ask |= {"icmp_code": "0", "nd_options_type": "1", "ipv6_src": addresses.vm_address6(L3, 0, VNI)}
        ((out, answer),) = switch.receive(own, {**ask, "nd_target": address6, "ipv6_dst": "ff02::1:ff00:1"})
        assert (out, answer["icmp_type"], answer["nd_options_type"]) == (own, "136", "2")
        assert (answer["nd_tll"], answer["dl_src"], answer["ipv6_src"]) == (hardware, hardware, address6)
        assert (answer["ipv6_dst"], answer["dl_dst"]) == (ask["ipv6_src"], mac(0))


SPOOFED: list[Frame] = [
    {**packet(0, 1), "vlan_tci": "0x1001"},
    {**packet(0, 1), "dl_src": mac(2)},
    {**packet(0, 1), "nw_src": ip(2)},
    {**packet(0, 1), "nw_src": "8.8.8.8"},
    {"kind": "other", "dl_src": mac(0), "dl_dst": mac(1)},
    {"kind": "arp", "dl_src": mac(0), "arp_sha": mac(0), "arp_spa": ip(2), "arp_tpa": ip(1), "arp_op": "1"},
    {"kind": "arp", "dl_src": mac(0), "arp_sha": mac(0), "arp_spa": ip(0), "arp_tpa": ip(1), "arp_op": "2"},
    {"kind": "arp", "dl_src": mac(0), "arp_sha": mac(2), "arp_spa": ip(0), "arp_tpa": ip(1), "arp_op": "1"},
    {"kind": "arp", "dl_src": mac(0), "arp_sha": mac(0), "arp_spa": ip(0), "arp_tpa": ip(0), "arp_op": "1"},
    {**packet(0, 1), "kind": "udp", "tp_src": "67", "tp_dst": "68"},
    {"kind": "ipv6", "dl_src": mac(0), "dl_dst": mac(1), "ipv6_src": addresses.vm_address6(L3, 2, VNI)},
    {"kind": "ipv6", "dl_src": mac(0), "dl_dst": mac(1), "ipv6_src": addresses.link_local(mac(2))},
]
SPOOFED += [
    {"kind": "icmp6", "icmp_type": kind, "dl_src": mac(0), "dl_dst": mac(1), "ipv6_src": source, "nd_target": target}
    for kind in ("134", "136", "137")
    for source in (addresses.vm_address6(L3, 0, VNI), addresses.link_local(mac(0)))
    for target in (addresses.vm_address6(L3, 2, VNI), addresses.link_local(mac(2)))
]


@pytest.mark.parametrize("frame", SPOOFED)
def test_what_no_vm_may_send(frame: Frame) -> None:
    plan = plan_on(1, 2, 3, 6, L3)
    switch = Switch.load(flows_of(plan).text)
    for target in (mac(1), "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01", addresses.gateway_mac(L3, 0)):
        assert switch.receive(str(port(plan, 0)), {**frame, "dl_dst": target}) == []


def test_link_local_addresses_reach_the_gateway_alone() -> None:
    plan = plan_on(1, 2, 3, 6, L3)
    switch = Switch.load(flows_of(plan).text)
    gateway = next(step for step in plan.actions if isinstance(step, actions.AddGateway))
    for source in ("fe80::1234", addresses.link_local(mac(0))):
        frame: Frame = {"kind": "ipv6", "dl_src": mac(0), "ipv6_src": source}
        for target in (mac(1), mac(5), "33:33:00:00:00:01"):
            assert switch.receive(str(port(plan, 0)), {**frame, "dl_dst": target}) == []
        assert [out for out, _ in switch.receive(str(port(plan, 0)), {**frame, "dl_dst": gateway.mac})] == [
            gateway.port
        ]


def test_tunnels_bring_frames_of_peers_only() -> None:
    plan = plan_on(1, 3, 2, 6, L3)
    switch = Switch.load(flows_of(plan).text)
    outer = {"tun_id": str(VNI), "tun_src": "10.98.0.2", "tun_dst": "10.98.0.1"}
    assert [out for out, _ in switch.receive(TUNNEL, {**packet(4, 0), **outer})] == [port(plan, 0)]
    for key, wrong in (("tun_id", "5002"), ("tun_src", "10.98.0.9"), ("tun_dst", "10.98.0.7")):
        assert switch.receive(TUNNEL, {**packet(4, 0), **outer, key: wrong}) == []


def test_a_gateway_serves_its_own_node_alone() -> None:
    plan = plan_on(1, 2, 2, 4, L3)
    flows, switch = flows_of(plan), Switch.load(flows_of(plan).text)
    gateway = next(step for step in plan.actions if isinstance(step, actions.AddGateway))
    lease: Frame = {"kind": "udp", "dl_src": mac(0), "dl_dst": "ff:ff:ff:ff:ff:ff", "tp_src": "68", "tp_dst": "67"}
    lease |= {"nw_src": "0.0.0.0", "nw_dst": "255.255.255.255"}
    assert [out for out, _ in switch.receive(str(port(plan, 0)), lease)] == [gateway.port]
    said: Frame = {"kind": "icmp6", "icmp_type": "134", "dl_src": gateway.mac, "dl_dst": "33:33:00:00:00:01"}
    assert [out for out, _ in switch.receive(gateway.port, said)] == [port(plan, 0), port(plan, 1)]
    assert flows.vnis == (VNI,)
    assert flows.meters == ()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_tables_answer_for_every_vm_as_one_flow_each_would(data: st.DataObject) -> None:
    """Whatever the ranges, networks and offsets: each VM's own addresses, and nothing for a number that is no VM's."""
    length = data.draw(st.integers(16, 27))
    base = data.draw(st.integers(0, 15)) << 32 - length
    network = replace(
        L3,
        int_network=IPv4Network((int(IPv4Address("10.200.0.0")) & ~0xFFFF | base & 0xFFFF, length)),
        mac_offset=data.draw(st.sampled_from([0, 1, 256, 4096, 65535]) | st.integers(0, 65535)),
        reverse_nat=(),
    )
    nodes, cpus = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
    vms = data.draw(st.integers(1, min(nodes * cpus, addresses.capacity(network.int_network))))
    plan = plan_on(1, nodes, cpus, vms, network)
    shares = place((job := job_of(nodes, cpus)).nodes, job.cpus, request_of(("nat", vms), cpus=1)).shares
    switch, own = Switch.load(flows_of(plan).text), str(port(plan, 0))
    hardware, first = addresses.vm_mac(network, 0, 0), addresses.vm_address(network, 0)
    known = {int(IPv4Address(addresses.vm_address(network, rank))): rank for rank in range(vms)}
    begin = int(network.int_network.network_address)
    for number in {*known, *range(begin - 2, begin + vms + 6), begin + network.int_network.num_addresses - 3}:
        rank = known.get(number)
        asked: Frame = {"kind": "arp", "dl_src": hardware, "dl_dst": "ff:ff:ff:ff:ff:ff", "arp_op": "1"}
        asked |= {"arp_sha": hardware, "arp_spa": first, "arp_tpa": str(IPv4Address(number))}
        answers = [frame["arp_sha"] for _, frame in switch.receive(own, asked)]
        if str(IPv4Address(number)) == addresses.gateway_address(network):
            assert answers == [addresses.gateway_mac(network, 0)]
            continue
        assert answers == ([addresses.vm_mac(network, 0, rank)] if rank else [])  # for its own it gets no answer
        target = str(IPv6Address(int(network.int_network6.network_address) + max(0, number - begin)))
        solicit: Frame = {
            "kind": "icmp6",
            "icmp_type": "135",
            "icmp_code": "0",
            "nd_options_type": "1",
            "nd_sll": hardware,
        }
        solicit |= {"dl_src": hardware, "ipv6_src": addresses.vm_address6(network, 0, VNI), "nd_target": target}
        answers = [frame["nd_tll"] for _, frame in switch.receive(own, solicit)]
        assert answers == ([] if rank is None else [addresses.vm_mac(network, 0, rank)])
    for step in range(-3, vms + 3):
        mac_to = members.with_number(hardware, members.mac_number(hardware) + step)
        sent = switch.receive(own, {**packet(0, 1), "dl_src": hardware, "nw_src": first, "dl_dst": mac_to})
        home = next((at for at, each in enumerate(shares, 1) if 0 <= step - each.first_rank < each.count), 1)
        ways = [frame.get("tun_dst") for out, frame in sent if out == TUNNEL]
        assert ways == ([] if home == 1 else [f"10.98.0.{home}"])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 70000), st.integers(0, 3000), st.integers(0, 16))
def test_blocks_are_exactly_the_numbers_and_few(first: int, count: int, most: int) -> None:
    blocks = list(members.split(first, first + count, most))
    assert [each for block in blocks for each in range(block.first, block.first + (1 << block.bits))] == list(
        range(first, first + count)
    )
    assert all(block.first % (1 << block.bits) == 0 and block.bits <= most for block in blocks)
    assert len(blocks) <= 2 * count.bit_length() + (count >> most)


def test_flows_do_not_grow_with_the_vms_of_other_nodes() -> None:
    def count(vms_each: int) -> int:
        # Of this node's own VMs there is one.
        job, request = job_of(20, vms_each), request_of(("nat", 19 * vms_each + 1), cpus=1)
        job = replace(job, cpus=(1, *[vms_each] * 19))
        placement = place(job.nodes, job.cpus, request)
        network = replace(L3, reverse_nat=())
        site = replace(SITE, networks={**SITE.networks, "nat": network})
        plan = plan_node(job, request, placement, site, switched(facts_of(job)), Grants({"nat": VNI}, 0, ()))
        return flows_of(plan).text.count("flow add ")

    few, many = count(1), count(1000)
    # A range of n numbers is at most 2 log2(n) blocks; 19 peers, of whom each is one or more flows anyway.
    assert many - few <= 19 * 2 * 10 + 2 * 2 * 15


def test_a_guarded_vm_leaves_no_sum_to_others() -> None:
    """Where a virtio-net header says that one is written, flows do not see; so frames have none."""
    for network, datapath, header in ((L3, "system", False), (L2, "system", True), (L2, "netdev", False)):
        plan = plan_on(1, 2, 2, 3, network, datapath=datapath)
        assert {tap.vnet_header for tap in plan.taps} == {header}
        made = [step.vnet_header for step in plan.actions if isinstance(step, actions.AddSwitchTaps)]
        assert made == [header]


def test_golden_open_vswitch() -> None:
    limited = replace(L3, bandwidth_mbit=100)
    check_golden("node-ovs-3-of-2", plan_on(1, 2, 2, 3, limited, meters=4))
    check_golden("node-ovs-l2-3-of-2", plan_on(2, 2, 2, 3, L2))


def test_names_of_ports_fit_the_kernel_for_any_job() -> None:
    for prefix in ("n", "nat", "fast1"):
        for mark in (
            *map(names.job_mark, (1, 12, 67_108_863)),
            names.chance_mark(0),
            names.chance_mark(names.MARKS - 1),
        ):
            for number in (0, 35, 1295):
                assert len(names.port(prefix, mark, number)) <= names.MAX_DEVICE
    assert len(names.tunnel(65535)) <= names.MAX_DEVICE
    assert names.link_group(12) != names.link_group(13)


def test_a_group_of_many_nodes_fits_into_messages() -> None:
    """A message has 64 KiB at most; a frame for all still reaches each node once."""
    nodes = 1201
    loaded = flows_of(plan_on(1, nodes, 1, nodes, L2))
    lines = [line for line in loaded.text.splitlines() if line.startswith("group add ")]
    ways = [re.findall(r"set_field:([0-9.]+)->tun_dst", line) for line in lines]
    assert max(len(each) for each in ways) <= 500
    assert sorted(way for each in ways for way in each) == sorted(
        switched(facts_of(job_of(nodes, 1))).tunnels["-ovs"].peers[f"n{number}"] for number in range(2, nodes + 1)
    )
    whole = Switch.load(loaded.text).groups
    assert [each for each in whole[VNI] if each.startswith("group:")] == [
        f"group:{VNI + (2 + part << 24)}" for part in range(3)
    ]
    removed = openflow.render_removal(12, [VNI]).splitlines()
    assert {f"group delete group_id={number}" for number in whole} <= set(removed)
