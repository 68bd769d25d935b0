# SPDX-License-Identifier: Apache-2.0
"""Devices of VMs and gateways in the node's own namespace, where the shared switch finds them."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from collections.abc import Sequence

from pvc.host import linkbatch, netlink, netns, sysctl, tap

_SIOCETHTOOL = 0x8946
_ETHTOOL_STXCSUM = 0x17


def ensure_taps(group: int, mtu: int, names: Sequence[str], *, vnet_header: bool) -> None:
    """Persistent taps that the node's own stack has no part in.

    :raise HostError: no /dev/net/tun, or the kernel refused.
    """
    for name in names:
        tap.ensure(name, vnet_header=vnet_header)
        _silence(name)
    # Each device at once: each change is a message for everybody who listens, Open vSwitch too.
    linkbatch.put_up(names, mtu=mtu, group=group)


def ensure_gateway(
    space: str, inner: str, port: str, group: int, mac: str, mtu: int, addresses: Sequence[str], *, offload: bool
) -> None:
    """A pair of devices: ``inner`` in a namespace with the gateway's addresses, and ``port`` for the switch.

    :raise HostError: the kernel refused.
    """
    with netlink.target(space) as fd, netlink.opened(f"make {port}") as links:
        links.add(port, "veth", mtu=mtu, peer={"ifname": inner, "address": mac, "mtu": mtu, "net_ns_fd": fd})
        _silence(port)
        links.set(port, group=group, state="up")

    def join() -> None:
        with netlink.opened(f"prepare {inner}") as links:
            if not offload:
                _complete_checksums(inner)
            if any(":" in address for address in addresses):
                sysctl.set_own(f"net/ipv6/conf/{inner}/disable_ipv6", "0")
            links.set(inner, state="up")
            for address in addresses:
                host, length = address.split("/")
                links.ensure_address(inner, host, int(length))

    netns.run_inside(space, join)


def silence_again(names: Sequence[str]) -> bool:
    """Have the node's own stack speak no IPv6 to VMs where somebody let it; whether there was anything to do.

    :raise HostError: the kernel refused.
    """
    keys = [key for name in names if sysctl.read(key := f"net/ipv6/conf/{name}/disable_ipv6") == "0"]
    for key in keys:
        sysctl.set_own(key, "1")
    return bool(keys)


def remove_group(group: int) -> None:
    """Delete a job's devices in this namespace, all at once. None is fine.

    :raise HostError: the kernel refused.
    """
    with netlink.opened("remove a job's devices") as links:
        links.remove_group(group)


def _silence(name: str) -> None:
    # The node would speak IPv6 to the VM: it has no business there, and a VM none with its link-local address.
    if sysctl.has("net/ipv6"):
        sysctl.set_own(f"net/ipv6/conf/{name}/disable_ipv6", "1")


def _complete_checksums(name: str) -> None:
    """Have the kernel complete what it sends over a device: OVS' own process hands on frames as they are.

    Without it TCP stalls, while ping works (reference: OVS, "userspace datapath: TSO and checksum offload").
    """
    value = array.array("B", struct.pack("II", _ETHTOOL_STXCSUM, 0))
    request = struct.pack("16sP16x", name.encode(), value.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
