"""networks.yaml: the networks that resource sets may name."""

from __future__ import annotations

import re
from ipaddress import IPv4Address
from typing import Any

from pvc import parse
from pvc.config import setting
from pvc.config.schema import show
from pvc.config.setting import Kind, Scope, Setting, Table
from pvc.config.yamlmarks import Document
from pvc.model.network import DataPath, EthernetNetwork, Layer, Outbound, ReverseNat

# A device name has 15 characters; a job's number takes up to 6 of them (plan.names.uplink).
MAX_PREFIX = 8
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

REVERSE_NAT = Table(
    settings=(
        Setting("vm-port", setting.integer(1, 65535), "The TCP port of each VM; ``pvc ssh`` needs 22.", default=22),
        Setting(
            "min-host-port", setting.integer(1024, 65535), "The first TCP port of the nodes to use.", required=True
        ),
        Setting(
            "max-host-port",
            setting.integer(1024, 65535),
            "The last one. A node needs one port for each VM that it runs.",
            required=True,
        ),
    ),
)


def _build_reverse_nat(values: Any) -> ReverseNat:
    low, high = values["min-host-port"], values["max-host-port"]
    if low > high:
        raise ValueError(f"min-host-port {low} is above max-host-port {high}")
    return ReverseNat(values["vm-port"], low, high)


_FOREIGN = {
    "mac-start-offset": "every cluster has networks of its own, so their addresses need no offset",
    "host-if-suffix": "pvc has no interface of the host in the cluster's network",
    "gateway": "the gateway of an L3 network is always the VM's own node",
    "manage-ip-forward": "pvc turns forwarding on where it needs it, and back afterwards",
}

ETHERNET = Table(
    settings=(
        Setting(
            "dev-prefix",
            setting.word(
                "text", rf"[A-Za-z][A-Za-z0-9_-]{{0,{MAX_PREFIX - 1}}}", f"1 to {MAX_PREFIX} letters and digits"
            ),
            "How the names of devices begin that this network needs in a node's own network namespace.",
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
            setting.choice("auto", "kernel", parse=DataPath),
            "What carries the frames: ``kernel`` is a bridge with VXLAN and nftables. ``auto`` takes the fastest.",
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
            "The first three bytes of the VMs' hardware addresses.",
            default="52:54:00",
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
            setting.mapping(REVERSE_NAT, _build_reverse_nat, "a mapping with min-host-port and max-host-port"),
            "A port of every VM that is reached through a port of its node (L3). ``pvc ssh`` and ``pvc scp`` need it.",
        ),
        Setting("vxlan-port", setting.integer(1, 65535), "The UDP port of VXLAN between nodes.", default=4789),
        Setting(
            "vni-range",
            setting.text(_parse_vni_range, name="range", expected="a range such as 1024-65535"),
            "VXLAN identifiers that pvc may use; every network of every running cluster takes one.",
            default="1024-65535",
        ),
    ),
    foreign=_FOREIGN,
)

TYPES = {"ethernet": ETHERNET, "eth": ETHERNET}

ENTRY = Table(
    settings=(
        Setting("type", setting.choice(*TYPES), "What kind of network it is; ``eth`` is short.", required=True),
        Setting(
            "settings",
            Kind("mapping", "a mapping of keys to values", {"type": "object"}, lambda value, _scope: value),
            "The keys below.",
            required=True,
        ),
    ),
)


def read_networks(document: Document) -> dict[str, EthernetNetwork]:
    """The networks of a document; what is wrong is noted in it."""
    found: dict[str, EthernetNetwork] = {}
    for name, value, scope in setting.named_entries(document):
        before = len(document.problems)
        entry = ENTRY.read(value, scope)
        table = TYPES.get(entry["type"] or "")
        if table is None or entry["settings"] is None:
            continue
        inner = scope.at("settings")
        values = table.read(entry["settings"], inner)
        if len(document.problems) == before:
            network = _build(name, values)
            _check(network, inner)
            found[name] = network
    return found


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
        vxlan_port=values["vxlan-port"],
        min_vni=values["vni-range"][0],
        max_vni=values["vni-range"][1],
    )


def _check(network: EthernetNetwork, scope: Scope) -> None:
    """What two keys together can have wrong."""
    if network.layer is Layer.L2:
        if network.reverse_nat is not None:
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
