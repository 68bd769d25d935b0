# SPDX-License-Identifier: Apache-2.0
"""A VM that boots from the network of its cluster: who serves it there, and a machine without anything of its own."""

from __future__ import annotations

import os
import signal
import subprocess

from pvc.host import ethernet
from pvc.plan.node import NodePlan
from tests.host.nodes import ROOT, run


def serve_boot(address: str) -> None:
    """In a guest: a DHCP and TFTP server with two scripts of iPXE, one of which leads to the other."""
    files = ROOT / "boot"
    files.mkdir()
    (files / "first").write_text(f"#!ipxe\nchain tftp://{address}/second\n")
    (files / "second").write_text("#!ipxe\npoweroff\n")
    words = (
        "--conf-file=/dev/null",
        "--port=0",
        "--interface=eth0",
        "--bind-interfaces",
        "--leasefile-ro",
        "--user=root",
    )
    lease = ("--dhcp-range=192.168.7.10,192.168.7.10", "--dhcp-boot=first", "--enable-tftp", f"--tftp-root={files}")
    run("dnsmasq", *words, *lease, f"--log-facility={ROOT}/boot.log", f"--pid-file={ROOT}/boot.pid")


def read_boot_log() -> str:
    """What that server has said."""
    return (ROOT / "boot.log").read_text()


def start_machine(plan: NodePlan, rank: int) -> int:
    """On a node: QEMU at a VM's tap, with neither disk nor kernel; its process id."""
    nic = next(each for each in plan.grant.vms if each.rank == rank).nics[0]
    (fd,) = ethernet.open_taps((plan.taps[nic.tap_index],))
    try:
        argv = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-m", "64M", "-netdev", f"tap,id=net0,fd={fd}"]
        argv += ["-device", f"virtio-net-pci,netdev=net0,mac={nic.mac},bootindex=1"]
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=(fd,)).pid
    finally:
        os.close(fd)


def end(process: int) -> None:
    """Kill a process of this one."""
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
