# SPDX-License-Identifier: Apache-2.0
"""What a node of a test's own has besides pvc: a network between nodes, Open vSwitch with a bridge on it."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

from pvc.host import ovs, tap
from tests.waits import wait_until

DATABASE, LOG = "/run/ovs.db", "/run/vswitchd.log"


def show_devices(directory: Path) -> None:
    """/dev/net/tun as udev makes it on usual distributions, open to all, and /sys of this network namespace."""
    own = directory / "tun"
    os.mknod(own, stat.S_IFCHR, os.makedev(10, 200))
    own.chmod(0o666)
    subprocess.run(["mount", "--bind", own, tap.DEVICE], check=True)
    subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=True)


def make_underlay(device: str) -> None:
    """A device that carries 9000 bytes, to nowhere unless it is there already."""
    if subprocess.run(["ip", "link", "show", device], check=False, capture_output=True).returncode:
        subprocess.run(["ip", "link", "add", device, "type", "veth", "peer", "name", f"peer-{device}"], check=True)
        subprocess.run(["ip", "link", "set", f"peer-{device}", "mtu", "9000", "up"], check=True)
    subprocess.run(["ip", "link", "set", device, "mtu", "9000", "up"], check=True)


def start_switch(underlay: str, address: str) -> None:
    """Open vSwitch in this namespace, with the network that carries its tunnels on a bridge of the site's."""
    rundir, database = ovs.RUN_DIR, DATABASE
    rundir.mkdir(exist_ok=True)
    make_underlay(underlay)
    # The kernel must not answer for the bridge's address: it sees what comes to the link as well.
    subprocess.run(["ip", "link", "set", underlay, "arp", "off"], check=True)
    subprocess.run(["ovsdb-tool", "create", database, "/usr/share/openvswitch/vswitch.ovsschema"], check=True)
    remote = f"unix:{rundir}/db.sock"
    quiet = ["--pidfile", "--no-chdir", "--detach", "-vconsole:off"]
    subprocess.run(["ovsdb-server", database, f"--remote=p{remote}", *quiet], check=True)
    start_vswitchd()
    bridge = ["add-br", "br-phy", "--", "set", "Bridge", "br-phy", "datapath_type=netdev"]
    jumbo = ["--", "set", "Interface", "br-phy", "mtu_request=9000"]
    subprocess.run(["ovs-vsctl", *bridge, *jumbo, "--", "add-port", "br-phy", underlay], check=True)
    subprocess.run(["ip", "addr", "add", address, "dev", "br-phy"], check=True)
    subprocess.run(["ip", "link", "set", "br-phy", "up"], check=True)


def start_vswitchd() -> None:
    argv = ["ovs-vswitchd", f"unix:{ovs.RUN_DIR}/db.sock", "--pidfile", "--no-chdir", "--detach", "-vconsole:off"]
    # One that was killed holds its pid file's lock a moment longer.
    wait_until(lambda: subprocess.run([*argv, f"--log-file={LOG}"], check=False).returncode == 0)
