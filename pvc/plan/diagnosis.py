# SPDX-License-Identifier: Apache-2.0
"""What differs between a node and the plan that was carried out on it: a pure comparison."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pvc.model.host import BridgeKind
from pvc.model.netview import Fault
from pvc.plan import actions, addresses, members, names
from pvc.plan.inputs import Inputs
from pvc.plan.names import UPLINK_GROUP
from pvc.plan.nftables import UPLINK
from pvc.plan.openflow import SWITCH
from pvc.plan.pci import VFIO

_SHOWN = 4
_FOR_ALL = "00:00:00:00:00:00"  # of a VXLAN device's FDB: what is for groups, and for nobody known (bridge(8))
_FLOW = re.compile(r"flow add cookie=[^,]*,table=(\d+),(.*?),actions=")
_WAY = re.compile(r"metadata=(0x[0-9a-f]+|\d+),.*dl_dst=((?!01:)[0-9a-f:]{17}(?:/[0-9a-f:]{17})?)")
_AGAIN = "end the cluster and start it again; if that does not help, pvc-node's log on the node says more"
_MENDED = "pvc-node puts it back within a minute; if it is said again, its log on the node tells what undoes it"
# What can be made anew under running VMs. A VM's own interface cannot: its other end went with it.
MENDABLE = (
    actions.AddUplink,
    actions.AddPeers,
    actions.AddPrograms,
    actions.AddGateway,
    actions.AddSwitchPorts,
    actions.JoinBridge,
    actions.LoadFlows,
    actions.LoadRules,
    actions.SetSysctl,
    actions.ForwardIpv6,
)
# A drop of any chain counts, whatever pvc's own accept (nft(8)), so the site's firewall has to let clusters pass.
WAY_OUT = (
    f"in its firewall: nft insert rule FAMILY TABLE CHAIN iifgroup {UPLINK_GROUP} accept, the same with oifgroup; "
    f"or iptables -I FORWARD -m devgroup --src-group {UPLINK_GROUP:#x} -j ACCEPT, the same with --dst-group"
)
_FORWARDS6 = "net/ipv6/conf/all/forwarding"


@dataclass(frozen=True)
class Device:
    """A network device as the kernel shows it."""

    up: bool
    mtu: int
    master: str | None = None
    vni: int | None = None
    addresses: frozenset[str] = frozenset()  # with prefix lengths


@dataclass(frozen=True)
class Differing:
    """A step of the plan whose effect is not there as it should be; no step: what the plan rests on."""

    step: actions.Action | None
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Seen:
    """What there is on a node; namespaces are names, None is the node's own.

    ``tunnels``: device -> MAC -> nodes; ``guarded``: devices with a program of ours; ``rules``: (namespace, family,
    table) -> number of rules; ``services``: directories of name servers that live.
    ``flows`` of the job in the shared switch: (table, match); ``drivers`` of PCI devices.
    """

    namespaces: frozenset[str]
    devices: Mapping[tuple[str | None, str], Device]
    tunnels: Mapping[str, Mapping[str, set[str]]]
    guarded: frozenset[str]
    rules: Mapping[tuple[str | None, str, str], int]
    services: frozenset[str]
    settings: Mapping[str, str]
    switch_ports: frozenset[str] = frozenset()
    flows: tuple[tuple[int, str], ...] = ()
    drivers: Mapping[str, str | None] = field(default_factory=dict)


def diagnose(inputs: Inputs, steps: Sequence[actions.Action], seen: Seen) -> tuple[Fault, ...]:
    """Everything that is not as planned, in the order of the plan; what hides behind a missing thing is left out."""
    return tuple(fault for each in compare(inputs, steps, seen) for fault in each.faults)


def compare(inputs: Inputs, steps: Sequence[actions.Action], seen: Seen) -> tuple[Differing, ...]:
    """The same by step."""
    found: list[Differing] = []
    for step in steps:
        check = _CHECKS.get(type(step))
        faults = tuple(check(inputs, step, seen)) if check is not None else ()
        if faults:
            found.append(Differing(step, faults))
        if found and isinstance(step, actions.AddNetns):
            return tuple(found)  # everything else is inside
    under = tuple(_underlays(inputs, seen))
    return (*found, Differing(None, under)) if under else tuple(found)


def settings_of(step: actions.Action) -> tuple[str, ...]:
    """The kernel's settings of the node that a step changes."""
    match step:
        case actions.SetSysctl():
            return (step.key,)
        case actions.ForwardIpv6():
            return (_FORWARDS6,)
        case actions.AddUplink():
            return (_forwards(step),)
        case actions.AddSwitchTaps() | actions.JoinBridge():
            return tuple(_silences(name) for name in step.names)
        case actions.AddGateway():
            return (_silences(step.port),)
    return ()


def _forwards(step: actions.AddUplink) -> str:
    return f"net/ipv4/conf/{step.host_device}/forwarding"


def _silences(device: str) -> str:
    return f"net/ipv6/conf/{device}/disable_ipv6"


def programmed(step: actions.AddPrograms) -> list[str]:
    """The devices that have a program."""
    return [*(port.name for port in step.ports), *([step.tunnel] if step.tunnel is not None else [])]


def count_rules(text: str) -> dict[tuple[str, str], int]:
    """(family, table) -> rules of nftables' text: the lines of chains that are neither heads nor brackets."""
    counts: dict[tuple[str, str], int] = {}
    table = ("", "")
    inside = False
    for line in (line.strip() for line in text.splitlines()):
        words = line.split()
        if words[:1] == ["table"] and len(words) == 4:
            table = words[1], words[2]
            counts[table] = 0
        elif words[:1] == ["chain"]:
            inside = True
        elif line == "}":
            inside = False
        elif inside and line and not line.startswith(("type ", "policy ", "#")):
            counts[table] += 1
    return counts


def _netns(_: Inputs, step: actions.AddNetns, seen: Seen) -> Iterator[Fault]:
    if step.netns not in seen.namespaces:
        yield Fault(f"the cluster's network namespace {step.netns} is gone", _AGAIN)


def _device(
    seen: Seen, namespace: str | None, name: str, what: str, *, mtu: int = 0, master: str = ""
) -> Iterator[Fault]:
    device = seen.devices.get((namespace, name))
    inside = f" in namespace {namespace}" if namespace else ""
    if device is None:
        yield Fault(f"{what} ({name}{inside}) is gone", _AGAIN)
        return
    enter = f"ip netns exec {namespace} " if namespace else ""
    if not device.up:
        yield Fault(f"{what} ({name}{inside}) is down", f"as root: {enter}ip link set {name} up")
    if mtu and device.mtu != mtu:
        fix = f"as root: {enter}ip link set {name} mtu {mtu}"
        yield Fault(f"{what} ({name}{inside}) carries {device.mtu} bytes instead of {mtu}", fix)
    if master and device.master != master:
        fix = f"as root: {enter}ip link set {name} master {master}"
        yield Fault(f"{what} ({name}{inside}) is no port of {master}", fix)


def _bridge(inputs: Inputs, step: actions.AddBridge, seen: Seen) -> Iterator[Fault]:
    yield from _device(
        seen, step.netns, step.name, f"the bridge of network {_network(inputs, step.name)}", mtu=step.mtu
    )


def _vxlan(inputs: Inputs, step: actions.AddVxlan, seen: Seen) -> Iterator[Fault]:
    what = f"the tunnel of network {_network(inputs, step.bridge)}"
    yield from _device(seen, step.netns, step.name, what, mtu=step.mtu, master=step.bridge)
    device = seen.devices.get((step.netns, step.name))
    if device is not None and device.vni is not None and device.vni != step.vni:
        yield Fault(f"{what} has VNI {device.vni} instead of {step.vni}", _AGAIN)


def _taps(inputs: Inputs, step: actions.AddTaps, seen: Seen) -> Iterator[Fault]:
    network = _network(inputs, step.bridge)
    for name in step.names:
        vm = f"vm{name[1:].partition('n')[0]}"
        yield from _device(seen, step.netns, name, f"the interface of {vm} on network {network}", master=step.bridge)


def _switch_taps(_: Inputs, step: actions.AddSwitchTaps, seen: Seen) -> Iterator[Fault]:
    for name in step.names:
        yield from _device(seen, None, name, "a VM's interface", mtu=step.mtu)
        yield from _differs(_silences(name), "1", seen)


def _gateway(inputs: Inputs, step: actions.AddGateway, seen: Seen) -> Iterator[Fault]:
    what = f"the gateway of network {_network(inputs, step.name)}"
    yield from _device(seen, step.netns, step.name, what, mtu=step.mtu)
    yield from _device(seen, None, step.port, what)
    yield from _differs(_silences(step.port), "1", seen)


def _switch_ports(_: Inputs, step: actions.AddSwitchPorts, seen: Seen) -> Iterator[Fault]:
    missing = [name for name in (*(name for name, _ in step.tunnels), *step.ports) if name not in seen.switch_ports]
    if missing:
        yield Fault(f"the Open vSwitch bridge {step.bridge} has no port {_some(missing)}", _MENDED)


def _flows(inputs: Inputs, step: actions.LoadFlows, seen: Seen) -> Iterator[Fault]:
    wanted = _parse_flows(step.text)
    if not seen.flows:
        yield Fault(f"the Open vSwitch bridge {step.bridge} has no flows of this job", _MENDED)
        return
    there = {(int(found[1], 0), found[2]) for table, match in seen.flows if table == SWITCH and (found := _way(match))}
    for index, membership in enumerate(inputs.memberships()):
        network = membership.network.name
        vni = inputs.grants.vnis.get(network)
        planned = {found[2] for table, match in wanted if table == SWITCH and (found := _way(match))
                   and int(found[1], 0) == vni}  # fmt: skip
        missing = {macs for macs in planned if (vni, macs) not in there}
        if missing:
            vms = _some(_behind(inputs, index, missing))
            yield Fault(f"no forwarding entry for {vms} on network {network}", _MENDED)
    for table in sorted({table for table, _ in wanted} - {SWITCH}):
        count, found_count = (sum(each[0] == table for each in flows) for flows in (wanted, seen.flows))
        if count != found_count:
            yield Fault(f"table {table} of bridge {step.bridge} has {found_count} flows instead of {count}", _MENDED)


def _way(match: str) -> re.Match[str] | None:
    return _WAY.search(match)


def _parse_flows(text: str) -> frozenset[tuple[int, str]]:
    """(table, match) of the flows of ``openflow.render``; the same match twice is one flow."""
    found = (_FLOW.match(line) for line in text.splitlines())
    return frozenset((int(each[1]), each[2]) for each in found if each is not None)


def _leads(_: Inputs, step: actions.AddLeads, seen: Seen) -> Iterator[Fault]:
    for lead in step.leads:
        for name in (lead.tap, lead.end):
            yield from _device(seen, step.netns, name, "a VM's interface on a bridge of the site's")


def _joined(_: Inputs, step: actions.JoinBridge, seen: Seen) -> Iterator[Fault]:
    # Open vSwitch's own process is no master of its ports that the kernel knows.
    master = step.bridge if step.kind == BridgeKind.LINUX.value else ""
    for name in step.names:
        yield from _device(seen, None, name, f"a VM's interface on {step.bridge}", master=master)
        yield from _differs(_silences(name), "1", seen)


def _bound(_: Inputs, step: actions.BindDevice, seen: Seen) -> Iterator[Fault]:
    driver = seen.drivers.get(step.address)
    if driver != VFIO:
        yield Fault(f"device {step.address} is at driver {driver or 'none'}, not at {VFIO}", _AGAIN)


def _peers(inputs: Inputs, step: actions.AddPeers, seen: Seen) -> Iterator[Fault]:
    # Without its device there are no entries; that was said already.
    if (step.netns, step.vxlan) not in seen.devices:
        return
    tunnels = seen.tunnels.get(step.vxlan, {})
    network = _network(inputs, step.bridge)
    for label, peer in enumerate(step.peers if step.labelled else ()):
        nodes = tunnels.get(addresses.label_mac(label), set())
        vms = _vms(peer.ranks)
        if not nodes:
            yield Fault(f"no forwarding entry for {vms} on network {network}", _MENDED)
        elif nodes != {peer.node}:
            how = f"sent to {', '.join(sorted(nodes))} instead of {peer.node}"
            yield Fault(f"frames for {vms} on network {network} are {how}", _MENDED)
    to_all = tunnels.get(_FOR_ALL, set())
    left_out = [peer.node for peer in step.peers if peer.node not in to_all]
    if left_out:
        yield Fault(f"no entry that leads multicast and broadcast of network {network} to {_some(left_out)}", _MENDED)


def _programs(inputs: Inputs, step: actions.AddPrograms, seen: Seen) -> Iterator[Fault]:
    missing = [name for name in programmed(step) if (step.netns, name) in seen.devices and name not in seen.guarded]
    if missing:
        network = _network(inputs, step.bridge)
        yield Fault(f"nothing guards or forwards what {_some(missing)} of network {network} brings", _MENDED)


def _uplink(_: Inputs, step: actions.AddUplink, seen: Seen) -> Iterator[Fault]:
    what = "the cluster's way out"
    ends = ((None, step.host_device, step.host_address, 0), (step.netns, UPLINK, step.netns_address, 1))
    for namespace, name, address, six in ends:
        device = seen.devices.get((namespace, name))
        if device is None or not device.up:
            yield Fault(f"{what} ({name}) is {'gone' if device is None else 'down'}", _MENDED)
            continue
        wanted = {f"{address}/{step.prefix_length}"} | ({f"{step.addresses6[six]}/126"} if step.addresses6 else set())
        if missing := wanted - device.addresses:
            yield Fault(f"{what} ({name}) has no address {', '.join(sorted(missing))}", _MENDED)
    yield from _differs(_forwards(step), "1", seen)


def _rules(_: Inputs, step: actions.LoadRules, seen: Seen) -> Iterator[Fault]:
    inside = f" in namespace {step.netns}" if step.netns else ""
    for (family, table), wanted in count_rules(step.text).items():
        there = seen.rules.get((step.netns, family, table))
        if there is None:
            yield Fault(f"the nftables table {family} {table}{inside} is gone", _MENDED)
        elif there != wanted:
            text = f"the nftables table {family} {table}{inside} has {there} rules instead of {wanted}"
            yield Fault(text, _MENDED)


def _dnsmasq(_: Inputs, step: actions.StartDnsmasq, seen: Seen) -> Iterator[Fault]:
    if step.directory not in seen.services:
        yield Fault("the name server (dnsmasq) does not run: no DHCP and no names for the VMs of this node", _AGAIN)


def _setting(_: Inputs, step: actions.SetSysctl, seen: Seen) -> Iterator[Fault]:
    yield from _differs(step.key, step.value, seen)


def _forward6(_: Inputs, __: actions.ForwardIpv6, seen: Seen) -> Iterator[Fault]:
    yield from _differs(_FORWARDS6, "1", seen)


def _differs(key: str, wanted: str, seen: Seen) -> Iterator[Fault]:
    value = seen.settings.get(key)
    if value is not None and value != wanted:
        yield Fault(f"{key} is {value} instead of {wanted}", _MENDED)


def _underlays(inputs: Inputs, seen: Seen) -> Iterator[Fault]:
    if not inputs.grants.vnis:
        return
    for membership in inputs.memberships():
        network = membership.network
        device = inputs.facts.underlay(network.host_suffix).device
        there = seen.devices.get((None, device))
        if there is None:
            yield Fault(f"the device to the other nodes ({device}) is gone", f"as root: ip link show {device}")
        elif not there.up:
            yield Fault(f"the device to the other nodes ({device}) is down", f"as root: ip link set {device} up")
        elif there.mtu < network.mtu:
            yield Fault(
                f"{device} carries {there.mtu} bytes and network {network.name} needs {network.mtu}",
                f"as root: ip link set {device} mtu {network.mtu}; or a smaller mtu in networks.yaml",
            )


def _network(inputs: Inputs, bridge: str) -> str:
    for membership in inputs.memberships():
        if names.bridge(membership.index) == bridge:
            return membership.network.name
    return bridge


def _behind(inputs: Inputs, index: int, macs: set[str]) -> list[str]:
    """The VMs of the cluster's network ``index`` behind MACs, each with a mask or without."""
    masked = []
    for text in macs:
        mac, _, mask = text.partition("/")
        masked.append((_number(mac), _number(mask) if mask else (1 << 48) - 1))
    membership = inputs.memberships()[index]
    first = members.numbering(membership.network, index, inputs.grants.vnis[membership.network.name])
    found = [
        names.vm(rank)
        for rank, mac, _, _ in members.expand(first, members.to_ranks(membership.members))
        if any(_number(mac) & mask == value for value, mask in masked)
    ]
    return found or ["the gateway"]


def _number(mac: str) -> int:
    return int(mac.replace(":", ""), 16)


def _vms(ranks: members.Ranks) -> str:
    return ", ".join(names.vm(first) if end == first + 1 else f"vm[{first}-{end - 1}]" for first, end in ranks)


def _some(texts: Sequence[str]) -> str:
    shown = ", ".join(texts[:_SHOWN])
    return shown if len(texts) <= _SHOWN else f"{shown} and {len(texts) - _SHOWN} more"


_CHECKS: dict[type[Any], Callable[[Inputs, Any, Seen], Iterator[Fault]]] = {
    actions.AddNetns: _netns,
    actions.AddBridge: _bridge,
    actions.AddVxlan: _vxlan,
    actions.AddTaps: _taps,
    actions.AddPeers: _peers,
    actions.AddPrograms: _programs,
    actions.AddLeads: _leads,
    actions.JoinBridge: _joined,
    actions.BindDevice: _bound,
    actions.AddSwitchTaps: _switch_taps,
    actions.AddGateway: _gateway,
    actions.AddSwitchPorts: _switch_ports,
    actions.LoadFlows: _flows,
    actions.AddUplink: _uplink,
    actions.LoadRules: _rules,
    actions.StartDnsmasq: _dnsmasq,
    actions.SetSysctl: _setting,
    actions.ForwardIpv6: _forward6,
}
