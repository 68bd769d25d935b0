# SPDX-License-Identifier: Apache-2.0
"""networks.yaml: the networks that resource sets may name."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from typing import Any

from pvc import parse
from pvc.config import setting
from pvc.config.hostnetworks import BRIDGED, GENERIC_PCI, build_bridged, build_pci, check_devices
from pvc.config.ranges import check_ranges
from pvc.config.schema import show
from pvc.config.setting import Kind, Scope, Setting, Table
from pvc.config.yamlmarks import Document
from pvc.model.network import (
    Access,
    BridgedNetwork,
    DataPath,
    EthernetNetwork,
    Layer,
    Network,
    Outbound,
    Outbound6,
    PciNetwork,
    Protocol,
    ReverseNat,
)

# A device name has 15 characters; a job's number takes up to 6 of them (plan.names.uplink).
MAX_PREFIX = 8
# Ports of the shared Open vSwitch bridge have six characters by chance and a number in their names (plan.names.port).
MAX_SWITCH_PREFIX = 5
# The smallest MTU with which IPv6 works is 1280, and VXLAN takes 50 bytes of each frame.
MIN_MTU, MAX_MTU = 1330, 65535
_VNI_RANGE = re.compile(r"([0-9]{1,8})-([0-9]{1,8})")
MAX_VNI = (1 << 24) - 1


def _parse_address(text: str) -> str:
    try:
        return str(IPv4Address(text))
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv4 address") from None


def _parse_vni_range(text: str) -> tuple[int, int]:
    match = _VNI_RANGE.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]) <= MAX_VNI:
        raise ValueError(f"{text!r} is not a range of VXLAN identifiers within 1-{MAX_VNI}")
    return int(match[1]), int(match[2])


_ADDRESS = setting.text(_parse_address, name="address", expected="an IPv4 address")
_CIDR = setting.text(parse.parse_network, name="network", expected="an IPv4 network such as 10.200.0.0/16")
_DOMAIN = setting.word(
    "domain",
    r"(?=.{1,200}\Z)[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*",
    "a domain name",
)

MAX_FORWARDS = 64
# Above the multicast of all prefixes there is no room for ranks; RFC 4862 makes addresses of /64 alone.
_PREFIX6 = 64


def _parse_ports(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text, re.ASCII)
    if found is None:
        raise ValueError(f"{text!r} is not a port or a range such as 8000-8009")
    first, last = int(found[1]), int(found[2] or found[1])
    if not 1 <= first <= last <= 65535 or last - first >= MAX_FORWARDS:
        raise ValueError(f"{text!r} is not a range of at most {MAX_FORWARDS} ports within 1-65535")
    return first, last


def _parse_network6(text: str) -> IPv6Network:
    try:
        network = IPv6Network(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv6 network such as fd00:c8::/64") from None
    if network.prefixlen != _PREFIX6 or network.is_multicast or network.is_link_local:
        raise ValueError(f"{text!r} cannot be used for hosts: it must be a unicast /64")
    return network


def _parse_any_network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a network such as 10.1.0.0/16") from None


REVERSE_NAT = Table(
    settings=(
        Setting(
            "vm-port",
            Kind(
                "number or range",
                "a port or a range such as 8000-8009",
                {"type": ["integer", "string"], "minimum": 1, "maximum": 65535},
                lambda value, _scope: _parse_ports(str(value)),
            ),
            "The port of each VM, or a range of them; ``pvc ssh`` needs 22.",
            default=22,
        ),
        Setting("protocol", setting.choice("tcp", "udp", parse=Protocol), "What the port speaks.", default="tcp"),
        Setting(
            "access",
            setting.choice("any", "owner", parse=Access),
            "Who may use it: ``any`` host that reaches the node, or the job's ``owner`` alone, from the node itself.",
            default="any",
        ),
        Setting("min-host-port", setting.integer(1024, 65535), "The first port of the nodes to use.", required=True),
        Setting(
            "max-host-port",
            setting.integer(1024, 65535),
            "The last one. A node needs one port for each VM that it runs, times the ports of ``vm-port``.",
            required=True,
        ),
    ),
)


def _build_reverse_nat(values: Any) -> ReverseNat:
    low, high = values["min-host-port"], values["max-host-port"]
    if low > high:
        raise ValueError(f"min-host-port {low} is above max-host-port {high}")
    first, last = values["vm-port"]
    return ReverseNat(first, last, low, high, values["protocol"], values["access"])


ETHERNET = Table(
    settings=(
        Setting(
            "dev-prefix",
            setting.word(
                "text", rf"[A-Za-z][A-Za-z0-9_-]{{0,{MAX_PREFIX - 1}}}", f"1 to {MAX_PREFIX} letters and digits"
            ),
            "How the names of devices begin that this network needs in a node's own network namespace; at most "
            f"{MAX_SWITCH_PREFIX} letters with ``data-path: ovs``.",
            required=True,
        ),
        Setting(
            "network-layer",
            setting.choice("L3", "L2", parse=Layer),
            "``L3``: pvc gives VMs addresses and names and is their gateway. ``L2``: an empty switch.",
            default="L3",
        ),
        Setting(
            "data-path",
            setting.choice("auto", "kernel", "ovs", parse=DataPath),
            "What carries the frames: ``kernel`` is a bridge with VXLAN and programs at the taps (BPF), ``ovs`` is "
            "Open vSwitch with static OpenFlow tables, on one bridge for all clusters of a node, ``pvc-ovs``. "
            "``auto`` takes the fastest, which is ``kernel``. Where Open vSwitch has no kernel module, addresses of "
            "tunnels must be on a "
            "bridge of its own (``datapath_type=netdev``), see ``host-if-suffix``.",
            default="auto",
        ),
        Setting(
            "int-network",
            _CIDR,
            "Addresses of the VMs (L3): VM *i* has the address number *i* + 1, the gateway the last one. Clusters do "
            "not see one another and may all use the same.",
            default="10.200.0.0/16",
        ),
        Setting(
            "ext-network",
            _CIDR,
            "Addresses between a node and the clusters on it (L3): four for each cluster. They never leave the node.",
            default="10.201.0.0/16",
        ),
        Setting(
            "mtu",
            setting.integer(MIN_MTU, MAX_MTU),
            "The largest packet that the nodes' network carries. VMs get 50 bytes less.",
            default=1500,
        ),
        Setting(
            "mac-prefix",
            setting.text(parse.parse_mac_prefix, name="text", expected="a MAC prefix such as 52:54:00"),
            "The first three bytes of the VMs' hardware addresses. That of VM *i* ends with the number *i* + 1, as its "
            "IP addresses do.",
            default="52:54:00",
        ),
        Setting(
            "mac-start-offset",
            setting.integer(0, 0xFFFF),
            "What is added to the last two bytes of the VMs' hardware addresses. With ``data-path: ovs``, multiples of "
            "a large power of two, such as 1024, keep the switches' tables small.",
            default=0,
        ),
        Setting(
            "int-network6",
            setting.text(_parse_network6, name="network", expected="an IPv6 network such as fd00:c8::/64"),
            "IPv6 addresses of the VMs (L3), a /64: VM *i* has the address number *i* + 1. Announced by router "
            "advertisements and DHCPv6. Without it the network has no IPv6.",
        ),
        Setting(
            "ipv6-outbound",
            setting.choice("nat", "routed", parse=Outbound6),
            "How IPv6 packets leave a node: ``nat`` gives them the node's address, ``routed`` leaves them as they "
            "are, for a prefix that the site routes.",
            default="nat",
        ),
        Setting(
            "host-if-suffix",
            setting.word("text", r"[A-Za-z0-9._-]{0,32}", "the end of a host name"),
            "What is added to a node's name to find its address on the network that carries the tunnels.",
            default="",
            default_text="nothing",
        ),
        Setting(
            "bandwidth",
            setting.integer(1, 400_000),
            "The most that each VM may send, and receive, on this network, in Mbit/s.",
            default_text="no limit",
        ),
        Setting(
            "allow-host",
            setting.boolean(),
            "Whether VMs may reach services of their own node (L3).",
            default=False,
        ),
        Setting(
            "allow-networks",
            setting.list_of(
                setting.text(_parse_any_network, name="network", expected="a network such as 10.1.0.0/16"), single=True
            ),
            "Networks that VMs may reach although their node is part of them (L3). With ``allow-outbound`` they reach "
            "everything but the networks that their node has an address in, the job's other nodes, link-local "
            "addresses and other clusters.",
            default=[],
        ),
        Setting(
            "manage-ip-forward",
            setting.boolean(),
            "Whether pvc turns a node's IP forwarding on while clusters need it, for them alone, and back afterwards.",
            default=True,
        ),
        Setting("domain-name", _DOMAIN, "The domain of the VMs' names (L3).", default="pvc.internal"),
        Setting(
            "dns-server",
            setting.list_of(_ADDRESS, single=True),
            "Name servers that answer for everything outside the cluster.",
            default=[],
            default_text="those of each node",
        ),
        Setting(
            "dns-search",
            setting.list_of(_DOMAIN, single=True),
            "Domains that VMs search besides their own.",
            default=[],
        ),
        Setting("ntp-server", _ADDRESS, "A time server that VMs are told of."),
        Setting(
            "allow-outbound",
            setting.choice("all", "none", parse=Outbound),
            "Whether VMs may open connections to the world outside, through NAT on their node (L3).",
            default="all",
        ),
        Setting(
            "reverse-nat",
            setting.list_of(
                setting.mapping(REVERSE_NAT, _build_reverse_nat, "a mapping with min-host-port and max-host-port"),
                single=True,
            ),
            "Ports of every VM that are reached through ports of its node (L3), a mapping or a list of them. "
            "``pvc ssh`` and ``pvc scp`` need one for port 22.",
            default=[],
        ),
        Setting(
            "vxlan-port",
            setting.integer(1, 65535),
            "The UDP port of VXLAN between nodes. Networks of both data paths cannot share one.",
            default=4789,
        ),
        Setting(
            "vni-range",
            setting.text(_parse_vni_range, name="range", expected="a range such as 1024-65535"),
            "VXLAN identifiers that pvc may use; every network of every running cluster takes one.",
            default="1024-65535",
        ),
    ),
    idle={"gateway": "the gateway of an L3 network is always the VM's own node"},
)

TYPES = {
    "ethernet": ETHERNET,
    "eth": ETHERNET,
    "bridged": BRIDGED,
    "bridged-ethernet": BRIDGED,
    "genericpci": GENERIC_PCI,
}

ENTRY = Table(
    settings=(
        Setting(
            "type",
            setting.choice(*TYPES),
            "``ethernet`` (``eth``): networks of each cluster's own. ``bridged`` (``bridged-ethernet``): a network of "
            "the site, by a bridge of the nodes. ``genericpci``: PCI devices of the nodes, one for each VM.",
            required=True,
        ),
        Setting(
            "settings",
            Kind("mapping", "a mapping of keys to values", {"type": "object"}, lambda value, _scope: value),
            "The keys below.",
            required=True,
        ),
    ),
)


def read_networks(document: Document) -> dict[str, Network]:
    """The networks of a document; what is wrong is noted in it."""
    found: dict[str, Network] = {}
    scopes: dict[str, Scope] = {}
    for name, value, scope in setting.named_entries(document):
        before = len(document.problems)
        entry = ENTRY.read(value, scope)
        table = TYPES.get(entry["type"] or "")
        if table is None or entry["settings"] is None:
            continue
        inner = scope.at("settings")
        values = table.read(entry["settings"], inner)
        if len(document.problems) > before:
            continue
        if table is BRIDGED:
            found[name] = build_bridged(name, values, inner)
        elif table is GENERIC_PCI:
            found[name] = build_pci(name, values, inner)
        else:
            network = _build(name, values)
            _check(network, inner)
            found[name], scopes[name] = network, inner
    own = {name: each for name, each in found.items() if isinstance(each, EthernetNetwork)}
    _check_tunnels(own, scopes)
    check_ranges(own, scopes)
    _check_prefixes(document, found)
    check_devices(found, document)
    return found


def _check_prefixes(document: Document, networks: dict[str, Network]) -> None:
    """Devices of bridged networks are told apart by their prefix."""
    first: dict[str, str] = {}
    for name, network in networks.items():
        if isinstance(network, PciNetwork):
            continue
        bridged = isinstance(network, BridgedNetwork)
        prefix = network.tap_prefix if isinstance(network, BridgedNetwork) else network.dev_prefix
        other = first.setdefault(prefix, name)
        if other != name and (bridged or isinstance(networks[other], BridgedNetwork)):
            key = "tap-prefix" if bridged else "dev-prefix"
            document.add((name, "settings", key), f"{prefix!r} is that of network {other!r}, too")


def _build(name: str, values: dict[str, Any]) -> EthernetNetwork:
    return EthernetNetwork(
        name=name,
        dev_prefix=values["dev-prefix"],
        layer=values["network-layer"],
        data_path=values["data-path"],
        int_network=values["int-network"],
        ext_network=values["ext-network"],
        mtu=values["mtu"],
        mac_prefix=values["mac-prefix"],
        domain_name=values["domain-name"],
        dns_servers=values["dns-server"],
        dns_search=values["dns-search"],
        ntp_server=values["ntp-server"],
        allow_outbound=values["allow-outbound"],
        reverse_nat=values["reverse-nat"],
        int_network6=values["int-network6"],
        outbound6=values["ipv6-outbound"],
        allow_host=values["allow-host"],
        allow_networks=values["allow-networks"],
        manage_forwarding=values["manage-ip-forward"],
        mac_offset=values["mac-start-offset"],
        host_suffix=values["host-if-suffix"],
        bandwidth_mbit=values["bandwidth"],
        vxlan_port=values["vxlan-port"],
        min_vni=values["vni-range"][0],
        max_vni=values["vni-range"][1],
    )


def _check_tunnels(networks: dict[str, EthernetNetwork], scopes: dict[str, Scope]) -> None:
    """The kernel gives a UDP port to tunnels of one kind: its own or Open vSwitch's ("Address already in use")."""
    kernel = {each.vxlan_port: name for name, each in networks.items() if each.data_path is not DataPath.OVS}
    for name, network in networks.items():
        other = kernel.get(network.vxlan_port)
        if network.data_path is DataPath.OVS and other is not None:
            scopes[name].at("vxlan-port").add(
                f"UDP port {network.vxlan_port} is that of network {other!r}, which the kernel carries; "
                "Open vSwitch needs another one"
            )


def _check(network: EthernetNetwork, scope: Scope) -> None:
    """What two keys together can have wrong."""
    if network.data_path is DataPath.OVS and len(network.dev_prefix) > MAX_SWITCH_PREFIX:
        scope.at("dev-prefix").add(
            f"{network.dev_prefix!r} is too long: names of devices for data-path ovs have room for {MAX_SWITCH_PREFIX} "
            "letters of it"
        )
    if network.layer is Layer.L2:
        if network.reverse_nat:
            scope.at("reverse-nat").add("an L2 network has no addresses to forward to; it needs network-layer L3")
        return
    for key, range_ in (("int-network", network.int_network), ("ext-network", network.ext_network)):
        if range_.prefixlen > 30:
            scope.at(key).add(f"{range_} is too small: it needs four addresses at least (/30)")
        if range_.is_multicast or range_.is_loopback or range_.is_link_local:
            scope.at(key).add(
                f"{range_} cannot be used for hosts: {show(str(range_))} is multicast, loopback or link-local"
            )
    if network.int_network.overlaps(network.ext_network):
        scope.at("ext-network").add(f"{network.ext_network} overlaps int-network {network.int_network}")
