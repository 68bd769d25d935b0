# SPDX-License-Identifier: Apache-2.0
"""This node on the networks that carry the tunnels, and where the job's other nodes are."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pvc.errors import ConfigError, JobError, Problem
from pvc.files import read_text
from pvc.host import netlink, sysctl
from pvc.model.host import NodeFacts, Underlay
from pvc.plan import ownports
from pvc.plan.names import UPLINK_GROUP

# Of names of nodes: addresses, or other names.
Locate = Callable[[Sequence[str]], Mapping[str, str]]


def read_facts(
    node: str,
    nodes: Sequence[str],
    device: str | None,
    *,
    suffixes: Sequence[str] = (),
    ovs_datapath: str = "netdev",
    sysctl_record: Path | None = None,
    etc: Path = Path("/etc"),
    locate: Locate | None = None,
) -> NodeFacts:
    """Addresses of all ``nodes`` by hosts(5) and DNS, and the local device that holds this node's.

    ``locate`` is asked for names that have no address there: it gives addresses, or names that have one, of those that
    it knows. ``device`` None: whichever holds the address that the node's own name has. ``suffixes``: the same for the
    names with each of these added. ``sysctl_record`` says what settings were before jobs changed them.

    :raise ConfigError: the device is not there.
    :raise JobError: a name has no IPv4 address, or this node does not hold its own.
    :raise HostError: the kernel does not answer.
    """
    known = _read_hosts(etc / "hosts")
    known = _complete(known, [*nodes, node], locate)
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
        " ".join(sysctl.read("net/ipv4/ip_local_port_range").split()),
        sysctl.read_prior(sysctl_record, ownports.SETTING) if sysctl_record else sysctl.read(ownports.SETTING),
    )


def read_own(node: str, device: str | None, *, etc: Path = Path("/etc"), locate: Locate | None = None) -> Underlay:
    """This node's own part of that.

    :raise PvcError: as ``read_facts``.
    """
    return _read_underlay(node, (), device, "", _complete(_read_hosts(etc / "hosts"), [node], locate))


def _complete(known: dict[str, str], nodes: Sequence[str], locate: Locate | None) -> dict[str, str]:
    """``known`` with all that ``locate`` says of those nodes that neither hosts(5) nor DNS has.

    :raise JobError: a name that it says has no address itself.
    """
    if locate is None:
        return known
    found = {name: known.get(name) or _find(name) for name in nodes}
    complete = known | {name: address for name, address in found.items() if address is not None}
    missing = [name for name, address in found.items() if address is None]
    for name, where in locate(missing).items() if missing else ():
        if where != name:
            complete[name] = where if _is_ipv4(where) else complete.get(where) or _lookup(where)
    return complete


def _read_underlay(node: str, nodes: Sequence[str], device: str | None, suffix: str, known: dict[str, str]) -> Underlay:
    peers = {name: known.get(name + suffix) or _lookup(name + suffix) for name in nodes}
    address = peers[node] if node in peers else known.get(node + suffix) or _lookup(node + suffix)
    with netlink.opened("read the node's addresses") as links:
        link = links.find(device) if device else links.device_of(address)
    if link is None and device:
        text = f"node {node} has no network device {device}"
        raise ConfigError([Problem("batch.yaml", 0, "settings.underlay-device", text)])
    if link is None:
        # Whoever names the nodes is to blame: one wrong file would take all of them out of service, one by one.
        raise JobError(
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
    found = _find(name)
    if found is None:
        hint = "its name must be in DNS or /etc/hosts, or be given an address in slurm.conf (NodeAddr)"
        raise JobError(f"node {name} has no IPv4 address", hint=hint)
    return found


def _find(name: str) -> str | None:
    try:
        return str(socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return None


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
