# SPDX-License-Identifier: Apache-2.0
"""A network namespace as pvc-node makes one: taps on a bridge, DHCP, ports that lead to the VMs' port 22."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pvc.host import netns
from pvc.model.node import Nic, VmGrant

NAMESPACE = f"pvc-test-{os.getpid()}"
TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 2, 0x1000, 0x4000  # linux/if_tun.h
GATEWAY = "10.9.0.254"
ENTER = ("nsenter", f"--net={netns.path_of(NAMESPACE)}")
MACS = ("52:54:00:00:00:01", "52:54:00:00:00:02")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def open_taps(count: int) -> list[int]:
    """Descriptors of taps in the namespace, as pvc-node opens them."""

    def run() -> list[int]:
        found = []
        for i in range(count):
            found.append(os.open("/dev/net/tun", os.O_RDWR))
            wish = struct.pack("16sH22x", f"tap{i}".encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
            fcntl.ioctl(found[-1], TUNSETIFF, wish)
        return found

    return netns.run_inside(NAMESPACE, run)


@contextmanager
def tap_network(directory: Path) -> Iterator[list[int]]:
    """Two taps on a bridge with DHCP, and ports 4001 and 4002 that lead to the VMs' port 22."""
    netns.ensure(NAMESPACE)
    inside = ("-n", NAMESPACE)
    fds: list[int] = []
    try:
        ip(*inside, "link", "set", "lo", "up")
        ip(*inside, "link", "add", "br0", "type", "bridge")
        ip(*inside, "address", "add", "10.9.0.254/24", "dev", "br0")
        fds = open_taps(2)
        for i in range(2):
            ip(*inside, "link", "set", f"tap{i}", "mtu", "1400", "master", "br0", "up")
        ip(*inside, "link", "set", "br0", "up")
        rules = "\n".join(f"tcp dport {4001 + i} dnat to 10.9.0.{i + 1}:22" for i in range(2))
        rules = f"table ip t {{\nchain out {{\ntype nat hook output priority -100;\n{rules}\n}}\n}}"
        subprocess.run(["ip", "netns", "exec", NAMESPACE, "nft", "-f", "-"], input=rules, text=True, check=True)
        hosts = [f"--dhcp-host={mac},10.9.0.{i + 1},vm{i}" for i, mac in enumerate(MACS)]
        argv = [
            "ip",
            "netns",
            "exec",
            NAMESPACE,
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--port=0",
        ]
        argv += ["--interface=br0", "--bind-interfaces", "--dhcp-range=10.9.0.1,static", "--user=root", "--no-ping"]
        argv += [f"--dhcp-leasefile={directory}/leases", "--pid-file", *hosts]
        dnsmasq = subprocess.Popen(argv)
        try:
            yield fds
        finally:
            dnsmasq.terminate()
            dnsmasq.wait(10)
    finally:
        for fd in fds:
            os.close(fd)
        netns.remove(NAMESPACE)


def vm_grants() -> list[VmGrant]:
    """What the two VMs of the network are given; their taps are swapped."""
    nics = [Nic("nat", mac, 1400, f"10.9.0.{i + 1}/24", GATEWAY, 1 - i) for i, mac in enumerate(MACS)]
    return [VmGrant(i, (nics[i],), {"22": 4001 + i}) for i in range(2)]
