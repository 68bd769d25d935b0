"""This node on the networks that carry the tunnels, and where the job's other nodes are."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from pathlib import Path

from pvc.errors import HostError
from pvc.files import read_text
from pvc.host import netlink, sysctl
from pvc.model.host import NodeFacts, Underlay
from pvc.plan.names import UPLINK_GROUP


def read_facts(
    node: str,
    nodes: Sequence[str],
    device: str | None,
    *,
    suffixes: Sequence[str] = (),
    ovs_datapath: str = "netdev",
    sysctl_record: Path | None = None,
    etc: Path = Path("/etc"),
) -> NodeFacts:
    """Addresses of all ``nodes`` by hosts(5) and DNS, and the local device that holds this node's.

    ``device`` None: whichever holds the address that the node's own name has. ``suffixes``: the same for the
    names with each of these added. ``sysctl_record`` says what settings were before jobs changed them.

    :raise HostError: a name has no IPv4 address, or this node does not hold its own.
    """
    known = _read_hosts(etc / "hosts")
    own = _read_underlay(node, nodes, device, "", known)
    tunnels = {suffix: _read_underlay(node, nodes, None, suffix, known) for suffix in suffixes if suffix}
    resolvers = _read_resolvers(etc / "resolv.conf")
    with netlink.opened("read the node's addresses") as links:
        held, exits = links.addresses(), links.exits(but=UPLINK_GROUP)

    def is_off(key: str) -> bool:
        return sysctl_record is not None and sysctl.read_prior(sysctl_record, key) == "0"

    connections = sysctl.read("net/netfilter/nf_conntrack_max")
    return NodeFacts(
        own.address,
        own.device,
        own.device_mtu,
        own.peers,
        resolvers,
        tunnels,
        ovs_datapath,
        held,
        exits,
        tuple(device for device in exits if is_off(f"net/ipv4/conf/{device}/forwarding")),
        is_off("net/ipv6/conf/all/forwarding"),
        int(connections or 0),
    )


def _read_underlay(node: str, nodes: Sequence[str], device: str | None, suffix: str, known: dict[str, str]) -> Underlay:
    peers = {name: known.get(name + suffix) or _lookup(name + suffix) for name in nodes}
    address = peers[node] if node in peers else known.get(node + suffix) or _lookup(node + suffix)
    with netlink.opened("read the node's addresses") as links:
        link = links.get(device) if device else links.device_of(address)
    if link is None:
        raise HostError(
            f"no device of this node has the address {address} of {node}{suffix}",
            hint="that name must resolve to the node's own address on the network that carries tunnels",
        )
    return Underlay(address, link.name, link.mtu, peers)


def _read_hosts(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in read_text(path, default="").splitlines():
        words = line.split("#", 1)[0].split()
        if len(words) > 1 and _is_ipv4(words[0]) and not words[0].startswith("127."):
            for name in words[1:]:
                found.setdefault(name, words[0])
    return found


def _lookup(name: str) -> str:
    try:
        answers = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as err:
        raise HostError(f"node {name} has no IPv4 address") from err
    return str(answers[0][4][0])


def _read_resolvers(path: Path) -> tuple[str, ...]:
    servers = [line.split()[1] for line in read_text(path, default="").splitlines() if line.startswith("nameserver ")]
    # A resolver on the node's loopback cannot be reached from a cluster's namespace.
    return tuple(server for server in servers if _is_ipv4(server) and not server.startswith("127."))


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True
