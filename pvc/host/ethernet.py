# SPDX-License-Identifier: Apache-2.0
"""The devices of a cluster's networks on a node: one function to make and one to remove each kind."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pvc.errors import HostError
from pvc.host import linkbatch, netlink, netns, sysctl, tap
from pvc.model.node import Tap
from pvc.plan.names import UPLINK_GROUP

_BUSY_TRIES = 50
_BUSY_WAIT_S = 0.02
_MOST_LEARNT = 1 << 17  # addresses on an L2 network: two for each VM that a cluster may have


def ensure_netns(name: str) -> None:
    """A namespace that forwards, with its loopback up.

    :raise HostError: the kernel refused.
    """
    netns.ensure(name)

    def prepare() -> None:
        sysctl.set_own("net/ipv4/ip_forward", "1")
        if sysctl.has("net/ipv6"):
            # No port of a bridge has an address of its own to be reached at; gateways get theirs back.
            sysctl.set_own("net/ipv6/conf/default/disable_ipv6", "1")
            sysctl.set_own("net/ipv6/conf/default/accept_dad", "0")
            sysctl.set_own("net/ipv6/conf/all/forwarding", "1")
        for family in ("iptables", "ip6tables", "arptables"):
            # br_netfilter, which container engines load, would take each frame between VMs for a routed packet.
            key = f"net/bridge/bridge-nf-call-{family}"
            if sysctl.has(key):
                sysctl.set_own(key, "0")
        with netlink.opened(f"prepare {name}") as links:
            links.set("lo", state="up")

    netns.run_inside(name, prepare)


def ensure_bridge(name: str, bridge: str, mac: str, mtu: int, addresses: Sequence[str]) -> None:
    """A bridge without spanning tree or multicast snooping; with ``addresses`` (CIDR) it is the gateway.

    :raise HostError: the kernel refused.
    """

    def make() -> None:
        with netlink.opened(f"make bridge {bridge}") as links:
            links.add(bridge, "bridge", address=mac, br_mcast_snooping=0, br_stp_state=0)
            if not addresses:
                # A VM may send from any address on an L2 network, and each that is learnt is memory of the node's.
                linkbatch.limit_learning(bridge, _MOST_LEARNT)
            if any(":" in address for address in addresses):
                sysctl.set_own(f"net/ipv6/conf/{bridge}/disable_ipv6", "0")
            links.set(bridge, mtu=mtu, state="up")
            for address in addresses:
                host, length = address.split("/")
                links.ensure_address(bridge, host, int(length))

    netns.run_inside(name, make)


def ensure_vxlan(name: str, vxlan: str, bridge: str, vni: int, local: str, port: int, mtu: int, learns: bool) -> None:
    """A tunnel end made from the caller's namespace, so its packets travel there, as a port of ``bridge``.

    ``learns``: it is a switch's port, see ``actions.AddVxlan``.

    :raise HostError: the VNI stays taken, or the kernel refused.
    """

    def make() -> None:
        with netlink.target(name) as fd, netlink.opened(f"make VXLAN {vni}") as links:
            links.add(
                vxlan,
                "vxlan",
                net_ns_fd=fd,
                vxlan_id=vni,
                vxlan_local=local,
                vxlan_port=port,
                vxlan_learning=learns,
                vxlan_limit=_MOST_LEARNT if learns else 0,
            )

    def join() -> None:
        with netlink.opened(f"join VXLAN {vni} to {bridge}") as links:
            links.set(vxlan, master=bridge, mtu=mtu, state="up")
            # On L3 everything is known: nothing is learnt, nothing unknown leaves the node. On L2 users may have
            # addresses that nobody gave out. What is for groups goes to all nodes on both; what of it stays at home is
            # for rules (plan.guard).
            links.set_port(vxlan, learning=int(learns), unicast_flood=int(learns), mcast_flood=1, bcast_flood=1)

    # The kernel frees a VNI some milliseconds after its device is deleted, and tells nobody.
    for _ in range(_BUSY_TRIES):
        make()
        if not netns.run_inside(name, lambda: _missing(vxlan)):
            break
        time.sleep(_BUSY_WAIT_S)
    else:
        raise HostError(f"cannot make VXLAN {vni}: another device of this node has it")
    netns.run_inside(name, join)


def remove_vxlan(name: str, vxlan: str) -> None:
    """Take the tunnel end away at once, so that its VNI is free. Absent is fine."""
    _remove_inside(name, vxlan)


def ensure_taps(name: str, bridge: str, mtu: int, taps: tuple[str, ...], limit: netlink.Limit | None) -> None:
    """Persistent taps as ports of ``bridge``; ``limit`` is for what each VM receives.

    :raise HostError: no /dev/net/tun, or the kernel refused.
    """

    def make() -> None:
        for each in taps:
            tap.ensure(each)
        with netlink.opened(f"join taps to {bridge}") as links:
            links.enslave(taps, bridge, mtu)
            if limit is not None:
                links.limit(taps, limit)

    netns.run_inside(name, make)


@dataclass(frozen=True)
class Uplink:
    """A pair of devices between the node and a cluster; see ``actions.AddUplink``."""

    device: str
    inner: str
    host_address: str
    inner_address: str
    length: int
    addresses6: tuple[str, str] | None = None
    routes6: tuple[str, ...] = ()


def ensure_uplink(name: str, uplink: Uplink) -> None:
    """A pair of devices that connects the cluster's namespace with the caller's.

    :raise HostError: the kernel refused.
    """
    device, inner = uplink.device, uplink.inner
    with netlink.target(name) as fd, netlink.opened(f"make {device}") as links:
        links.add(device, "veth", group=UPLINK_GROUP, peer={"ifname": inner, "net_ns_fd": fd})
        _prepare6(device, uplink.addresses6 is not None)
        links.ensure_address(device, uplink.host_address, uplink.length)
        links.set(device, state="up")
        if uplink.addresses6 is not None:
            links.ensure_address(device, uplink.addresses6[0], 126)
    sysctl.set_own(f"net/ipv4/conf/{device}/forwarding", "1")

    def join() -> None:
        with netlink.opened(f"join {inner}") as links:
            _prepare6(inner, uplink.addresses6 is not None)
            links.ensure_address(inner, uplink.inner_address, uplink.length)
            links.set(inner, state="up")
            links.ensure_route("0.0.0.0/0", uplink.host_address)
            if uplink.addresses6 is not None:
                links.ensure_address(inner, uplink.addresses6[1], 126)
                links.ensure_route("::/0", uplink.addresses6[0])

    netns.run_inside(name, join)
    if uplink.addresses6 is not None and uplink.routes6:
        with netlink.opened(f"route to {device}") as links:
            for route in uplink.routes6:
                links.ensure_route(route, uplink.addresses6[1])


def _prepare6(device: str, wanted: bool) -> None:
    """A device that has IPv6 or none, learns nothing from advertisements and needs no time to check its address."""
    here = f"net/ipv6/conf/{device}"
    if sysctl.has(here):
        sysctl.set_own(f"{here}/disable_ipv6", "0" if wanted else "1")
        if wanted:
            sysctl.set_own(f"{here}/accept_ra", "0")
            sysctl.set_own(f"{here}/accept_dad", "0")


def remove_device(device: str) -> None:
    """Delete a device of the caller's namespace. Absent is fine."""
    with netlink.opened(f"remove {device}") as links:
        links.remove(device)


def open_taps(taps: Sequence[Tap]) -> list[int]:
    """Descriptors of the taps, in order; the caller closes them.

    :raise HostError: one is held by another process or gone.
    """
    opened: dict[int, int] = {}

    def attach(space: str | None) -> None:
        for place, each in enumerate(taps):
            if each.netns == space:
                opened[place] = tap.open_queue(each.name, vnet_header=each.vnet_header)

    try:
        for space in dict.fromkeys(each.netns for each in taps):
            netns.run_inside(space, lambda space=space: attach(space))  # type: ignore[misc]
    except BaseException:
        for fd in opened.values():
            os.close(fd)
        raise
    return [opened[place] for place in range(len(taps))]


def _remove_inside(name: str, device: str) -> None:
    if netns.exists(name):
        netns.run_inside(name, lambda: remove_device(device))


def _missing(device: str) -> bool:
    with netlink.opened(f"look for {device}") as links:
        return links.find(device) is None
