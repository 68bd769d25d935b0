"""The devices of a cluster's networks on a node: one function to make and one to remove each kind."""

from __future__ import annotations

import os
import time

from pvc.errors import HostError
from pvc.host import neighbours, netlink, netns, sysctl, tap

_BUSY_TRIES = 50
_BUSY_WAIT_S = 0.02


def ensure_netns(name: str) -> None:
    """A namespace that forwards, with its loopback up.

    :raise HostError: the kernel refused.
    """
    netns.ensure(name)

    def prepare() -> None:
        sysctl.set_own("net/ipv4/ip_forward", "1")
        with netlink.opened(f"prepare {name}") as links:
            links.set("lo", state="up")

    netns.run_inside(name, prepare)


def ensure_bridge(name: str, bridge: str, mac: str, mtu: int, address: str | None) -> None:
    """A bridge without spanning tree or multicast snooping; with ``address`` it is the gateway.

    :raise HostError: the kernel refused.
    """

    def make() -> None:
        with netlink.opened(f"make bridge {bridge}") as links:
            links.add(bridge, "bridge", address=mac, br_mcast_snooping=0, br_stp_state=0)
            links.set(bridge, mtu=mtu, state="up")
            if address is not None:
                host, length = address.split("/")
                links.ensure_address(bridge, host, int(length))

    netns.run_inside(name, make)


def ensure_vxlan(name: str, vxlan: str, bridge: str, vni: int, local: str, port: int, mtu: int) -> None:
    """A tunnel end made from the caller's namespace, so its packets travel there, as a port of ``bridge``.

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
                vxlan_learning=False,
            )

    def join() -> None:
        with netlink.opened(f"join VXLAN {vni} to {bridge}") as links:
            links.set(vxlan, master=bridge, mtu=mtu, state="up")
            # Everything is known: nothing is learnt, nothing unknown leaves the node.
            links.set_port(vxlan, learning=0, neigh_suppress=1, unicast_flood=0, mcast_flood=0, bcast_flood=0)

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


def ensure_taps(name: str, bridge: str, mtu: int, taps: tuple[str, ...]) -> None:
    """Persistent taps as ports of ``bridge``.

    :raise HostError: no /dev/net/tun, or the kernel refused.
    """

    def make() -> None:
        for each in taps:
            tap.ensure(each)
        with netlink.opened(f"join taps to {bridge}") as links:
            links.enslave(taps, bridge, mtu)

    netns.run_inside(name, make)


def ensure_peers(name: str, bridge: str, vxlan: str, entries: tuple[neighbours.Entry, ...]) -> None:
    """Static entries for the VMs of other nodes.

    :raise HostError: the kernel refused.
    """
    netns.run_inside(name, lambda: neighbours.ensure_peers(bridge, vxlan, entries))


def ensure_uplink(name: str, device: str, inner: str, host_address: str, inner_address: str, length: int) -> None:
    """A pair of devices that connects the cluster's namespace with the caller's.

    :raise HostError: the kernel refused.
    """
    with netlink.target(name) as fd, netlink.opened(f"make {device}") as links:
        links.add(device, "veth", peer={"ifname": inner, "net_ns_fd": fd})
        links.ensure_address(device, host_address, length)
        links.set(device, state="up")
    sysctl.set_own(f"net/ipv4/conf/{device}/forwarding", "1")

    def join() -> None:
        with netlink.opened(f"join {inner}") as links:
            links.ensure_address(inner, inner_address, length)
            links.set(inner, state="up")
            links.ensure_default_route(host_address)

    netns.run_inside(name, join)


def remove_device(device: str) -> None:
    """Delete a device of the caller's namespace. Absent is fine."""
    with netlink.opened(f"remove {device}") as links:
        links.remove(device)


def open_taps(name: str, taps: tuple[str, ...]) -> list[int]:
    """Descriptors of the taps, in order; the caller closes them.

    :raise HostError: one is held by another process or gone.
    """

    def attach() -> list[int]:
        opened: list[int] = []
        try:
            for each in taps:
                opened.append(tap.open_queue(each))
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise
        return opened

    return netns.run_inside(name, attach)


def _remove_inside(name: str, device: str) -> None:
    if netns.exists(name):
        netns.run_inside(name, lambda: remove_device(device))


def _missing(device: str) -> bool:
    with netlink.opened(f"look for {device}") as links:
        return links.find(device) is None
