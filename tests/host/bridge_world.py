# SPDX-License-Identifier: Apache-2.0
"""VMs on bridges of the site's, Linux' and Open vSwitch's: run by test_bridged.py like node_world.

python -m tests.host.bridge_world SCENARIO
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from pvc.host import ethernet
from pvc.node import netcheck, netview, setup, teardown
from pvc.plan import actions
from pvc.state.ledger import Ledger, Ready, Record
from tests.host import node_world
from tests.host.node_world import CONF, STATE, context, job
from tests.host.site import start_switch
from tests.waits import wait_until

BROADCAST = "ff:ff:ff:ff:ff:ff"
SITE_MAC = "02:00:5e:00:00:01"
_SOL_PACKET, _PACKET_AUXDATA = 263, 8


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def declare(**settings: Any) -> None:
    """A network ``site`` on the bridge sitebr, beside those of the world; a set with it, and one with both."""
    networks = json.loads((CONF / "networks.yaml").read_text())
    networks["site"] = {"type": "bridged", "settings": {"host-bridge": "sitebr", "tap-prefix": "st", **settings}}
    (CONF / "networks.yaml").write_text(json.dumps(networks))
    sets = {"site": {"networks": ["site"]}, "both": {"networks": ["site", "nat"]}}
    (CONF / "resources.yaml").write_text(json.dumps(sets))


def set_up(request: str, job_id: int = 12) -> Ledger:
    print(setup.set_up(context(), job(job_id), request), file=sys.stderr)
    return Ledger(STATE, job_id)


def ready_of(ledger: Ledger) -> Ready:
    ready = ledger.read_ready()
    assert ready is not None, record_of(ledger)
    return ready


def record_of(ledger: Ledger) -> Record:
    record = ledger.read_record()
    assert record is not None
    return record


def ports_of(ledger: Ledger) -> list[str]:
    """Ports that a job's VMs have on the site's bridge, in the node's own namespace."""
    steps = [step for step in ledger.read_actions() if isinstance(step, actions.JoinBridge)]
    return [name for step in steps for name in step.names]


def devices() -> dict[str, Any]:
    """Every device with its MTU."""
    return {link["ifname"]: link["mtu"] for link in json.loads(run("ip", "-j", "link"))}


def frame(source: str, target: str = BROADCAST) -> bytes:
    return bytes.fromhex((target + source).replace(":", "")) + b"\x88\xb5" + b"of pvc's tests".ljust(60, b".")


def listen(device: str) -> socket.socket:
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    link.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
    link.bind((device, 3))
    link.settimeout(5)
    return link


def hear(link: socket.socket, source: str) -> int | None:
    """The VLAN that a frame from ``source`` came with, None without a tag."""
    while True:
        data, auxiliary, _, _ = link.recvmsg(2048, 256)
        if data[6:12].hex(":") != source or b"of pvc's tests" not in data:
            continue
        if data[12:14] == b"\x81\x00":
            return int.from_bytes(data[14:16], "big") & 0xFFF
        for _, _, raw in auxiliary:
            tci = struct.unpack_from("=IIIHHHH", raw)[5]
            return tci & 0xFFF if tci else None
        return None


# --- scenarios -----------------------------------------------------------------------------------------------------


def linux_bridge() -> None:
    """VMs talk to the site's network and to one another; the bridge stays as it was, and so does the node."""
    run("ip", "link", "add", "sitebr", "type", "bridge")
    run("ip", "link", "add", "out0", "type", "veth", "peer", "name", "out1")
    for name in ("out0", "out1", "sitebr"):
        run("ip", "link", "set", name, "mtu", "9000", "up")
    run("ip", "link", "set", "out0", "master", "sitebr")
    declare(mtu=1500)
    before = devices()
    ledger = set_up("1;cpus=2;both:6")
    ready = ready_of(ledger)
    first, second = ready.grant.vms
    assert [nic.network for nic in first.nics] == ["site", "nat"]  # the order of the resource set
    macs = {vm.nics[0].mac for vm in (first, second)}
    assert len(macs) == 2
    assert all(int(mac[:2], 16) & 3 == 2 for mac in macs)
    assert (first.nics[0].mtu, first.nics[0].address, first.nics[0].dhcp) == (1500, None, True)
    fds = ethernet.open_taps(ready.taps)
    outside, tap = listen("out1"), first.nics[0].tap_index

    def travels() -> bool:
        os.write(fds[tap], bytes(10) + frame(first.nics[0].mac))
        return hear(outside, first.nics[0].mac) is None

    wait_until(travels, bear=(OSError,))
    assert devices()["sitebr"] == 9000
    shares = {share.network: share for share in netview.report(ledger, ready).networks}
    counters = shares["site"].members[0].counters
    assert counters is not None
    assert counters.tx_packets >= 1
    assert shares["site"].data_path == "bridge sitebr"
    assert netcheck.check(ledger).faults == ()
    run("ip", "link", "set", ports_of(ledger)[0], "nomaster")
    assert any("is no port of sitebr" in fault.text for fault in netcheck.check(ledger).faults)
    for fd in fds:
        os.close(fd)
    teardown.tear_down(context(), 12)
    assert devices() == before


def two_jobs() -> None:
    """Two jobs' VMs on one bridge have devices and addresses of their own; only bridged networks need no store."""
    run("ip", "link", "add", "sitebr", "address", SITE_MAC, "type", "bridge")
    run("ip", "link", "set", "sitebr", "up")
    declare()
    before = devices()
    ledgers = [set_up("1;cpus=2;site:6", job_id) for job_id in (12, 13)]
    taps = [name for ledger in ledgers for name in ports_of(ledger)]
    macs = [vm.nics[0].mac for ledger in ledgers for vm in ready_of(ledger).grant.vms]
    assert len(set(taps)) == len(set(macs)) == 4
    for ledger in ledgers:
        (share,) = netview.report(ledger, ready_of(ledger)).networks
        assert [each.counters is not None for each in share.members] == [True, True]
        assert netcheck.check(ledger).faults == ()
    for job_id in (12, 13):
        teardown.tear_down(context(), job_id)
    assert devices() == before


def refusals() -> None:
    """What the node's bridge cannot do is told to the user; the node stays in service, and clean."""
    run("ip", "link", "add", "plain", "address", SITE_MAC, "type", "bridge")
    run("ip", "link", "add", "bare", "type", "bridge")
    before = devices()
    for settings, part in (
        ({}, "this node has no bridge sitebr"),
        ({"host-bridge": "bare"}, "bare has no MAC of its own on this node and would take the first port's"),
        ({"host-bridge": "lo"}, "this node has no bridge lo"),
        ({"host-bridge": "plain", "mtu": 9000}, "9000 is more than plain carries (1500)"),
        ({"host-bridge": "plain", "vlans": [{"vid": 5}]}, "plain does not tell VLANs from one another"),
    ):
        declare(**settings)
        refusal = record_of(set_up("1;cpus=2;site:6")).refusal
        assert refusal is not None
        assert refusal.exit_code == 3
        assert part in refusal.message, refusal
        assert "networks.yaml:1: site.settings." in refusal.message, refusal
        teardown.tear_down(context(), 12)
        assert devices() == before


def open_vswitch() -> None:
    """VLANs on a bridge of Open vSwitch: untagged, native beside tagged, tagged alone."""
    start_switch("eth1", "10.98.0.1/24")
    run("ovs-vsctl", "add-br", "sitebr", "--", "set", "Bridge", "sitebr", "datapath_type=netdev")
    run("ip", "link", "add", "out0", "type", "veth", "peer", "name", "out1")
    for name in ("out0", "out1", "sitebr"):
        run("ip", "link", "set", name, "up")
    run("ovs-vsctl", "add-port", "sitebr", "out0")
    before, ports = devices(), run("ovs-vsctl", "list-ports", "sitebr")
    for vlans, tag, columns in (
        ([{"vid": 20, "type": "untagged"}], 20, "access 20 []"),
        ([{"vid": 30, "type": "native"}, {"vid": 31}], 30, "native-untagged 30 [30, 31]"),
        ([], None, "[] [] []"),
    ):
        declare(vlans=vlans)
        ledger = set_up("1;cpus=2;site:6")
        ready = ready_of(ledger)
        mac, name = ready.grant.vms[0].nics[0].mac, ports_of(ledger)[0]
        asked = [run("ovs-vsctl", "get", "Port", name, column).strip() for column in ("vlan_mode", "tag", "trunks")]
        assert " ".join(asked) == columns
        fds = ethernet.open_taps(ready.taps)
        with listen("out1") as outside:
            wait_until(sent_with(fds[0], outside, mac, tag), bear=(OSError,))
        assert netcheck.check(ledger).faults == ()
        for fd in fds:
            os.close(fd)
        teardown.tear_down(context(), 12)
        assert devices() == before
        assert run("ovs-vsctl", "list-ports", "sitebr") == ports


def sent_with(fd: int, outside: socket.socket, mac: str, tag: int | None) -> Callable[[], bool]:
    def check() -> bool:
        os.write(fd, frame(mac))  # without a virtio-net header: Open vSwitch's own process does not know it
        return hear(outside, mac) == tag

    return check


SCENARIOS = (linux_bridge, two_jobs, refusals, open_vswitch)


def main() -> None:
    node_world.run(next(each for each in SCENARIOS if each.__name__ == sys.argv[1]))


if __name__ == "__main__":
    main()
