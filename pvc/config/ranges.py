# SPDX-License-Identifier: Apache-2.0
"""Addresses and ports of networks.yaml that do not fit each other or what they are for."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from pvc.config.setting import Scope
from pvc.model.network import UPLINKS6, EthernetNetwork, Layer, ReverseNat


def check_ranges(networks: Mapping[str, EthernetNetwork], scopes: Mapping[str, Scope]) -> None:
    """Note what is wrong within each network and between any two; ``scopes`` are of their settings."""
    for name, network in networks.items():
        _check_ports(network, scopes[name].at("reverse-nat"))
        _check_ipv6(network, scopes[name])
    layer3 = [network for network in networks.values() if network.layer is Layer.L3]
    for one, other in combinations(layer3, 2):
        _check_pair(one, other, scopes[other.name])


# Of IANA's list, and of Slurm (slurm.conf(5), slurmdbd.conf(5), slurmrestd(8)): what a node cannot do without.
_OWN_PORTS = {
    2049: "NFS",
    2379: "etcd",
    2380: "etcd",
    6817: "slurmctld",
    6818: "slurmd",
    6819: "slurmdbd",
    6820: "slurmrestd",
}


def _check_ports(network: EthernetNetwork, scope: Scope) -> None:
    for index, entry in enumerate(network.reverse_nat):
        # A mapping by itself is a list of one, and has no number in the file.
        where = scope if len(network.reverse_nat) == 1 else scope.at(index)
        there, needed = entry.max_host_port - entry.min_host_port + 1, entry.last_vm_port - entry.first_vm_port + 1
        if there < needed:
            where.at("max-host-port").add(
                f"{entry.min_host_port}-{entry.max_host_port} has {there} ports, and every VM needs {needed}"
            )
        for port, whose in _OWN_PORTS.items():
            if entry.min_host_port <= port <= entry.max_host_port:
                where.at("min-host-port").add(
                    f"{entry.min_host_port}-{entry.max_host_port} holds {port}, which is that of {whose}"
                )
        for other in network.reverse_nat[:index]:
            if _meet(entry, other):
                where.at("vm-port").add(
                    f"{entry.protocol.value} {_ports(entry)} is forwarded already ({_ports(other)})"
                )


def _meet(one: ReverseNat, other: ReverseNat) -> bool:
    return (
        one.protocol is other.protocol
        and one.first_vm_port <= other.last_vm_port
        and other.first_vm_port <= one.last_vm_port
    )


def _ports(entry: ReverseNat) -> str:
    one = entry.first_vm_port == entry.last_vm_port
    return str(entry.first_vm_port) if one else f"{entry.first_vm_port}-{entry.last_vm_port}"


def _check_ipv6(network: EthernetNetwork, scope: Scope) -> None:
    prefix = network.int_network6
    if prefix is None:
        return
    if network.layer is Layer.L2:
        scope.at("int-network6").add("an L2 network has no addresses of pvc's; it needs network-layer L3")
    elif prefix.overlaps(UPLINKS6):
        scope.at("int-network6").add(f"{prefix} is what pvc uses between nodes and clusters ({UPLINKS6})")


def _check_pair(one: EthernetNetwork, other: EthernetNetwork, scope: Scope) -> None:
    # Two clusters' ways out get numbers that differ; equal ranges make addresses of them that differ, too.
    if one.ext_network != other.ext_network and one.ext_network.overlaps(other.ext_network):
        scope.at("ext-network").add(
            f"{other.ext_network} overlaps that of {one.name!r} ({one.ext_network}) without being the same"
        )
    for inner, outer, key in ((one, other, "ext-network"), (other, one, "int-network")):
        if inner.int_network.overlaps(outer.ext_network):
            mine, theirs = ("ext", "int") if key == "ext-network" else ("int", "ext")
            named = outer.ext_network if mine == "ext" else inner.int_network
            against = inner.int_network if mine == "ext" else outer.ext_network
            scope.at(key).add(f"{named} overlaps {theirs}-network {against} of {one.name!r}")
