# SPDX-License-Identifier: Apache-2.0
"""Scenarios of test_node.py: addresses, ports and devices of the site's files that are not to be had on a node."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from pvc.node import setup, teardown
from pvc.state.ledger import Ledger, Refusal
from tests.host.node_world import CONF, REQUEST, ROOT, STATE, assert_clean, context, job, run, snapshot


def refusal_of(job_id: int, request: str = REQUEST) -> Refusal:
    setup.set_up(context(), job(job_id), request)
    record = Ledger(STATE, job_id).read_record()
    assert record is not None
    assert record.refusal is not None
    teardown.tear_down(context(), job_id)
    return record.refusal


def taken_ranges() -> None:
    """What the node itself needs is never taken for a network, and the node goes on reaching it."""
    before = snapshot()
    good = (CONF / "networks.yaml").read_text()
    for old, new, words in (
        ("10.201.0.0/16", "10.99.0.0/16", "10.99.0.0/24 is this node's network on eth0"),
        ("10.200.0.0/16", "10.99.0.0/24", "10.99.0.0/24 is this node's network on eth0"),
        ("10.201.0.0/16", "10.77.0.0/16", "10.77.3.0/24 is this node's route by eth0"),
    ):
        subprocess.run(["ip", "route", "replace", "10.77.3.0/24", "via", "10.99.0.9"], check=True)
        (CONF / "networks.yaml").write_text(good.replace(old, new))
        found = refusal_of(12)
        assert (found.exit_code, words in found.message) == (3, True), found
        assert "networks.yaml:1: nat.settings." in found.message
        assert_clean(before)
    # A wider route leads elsewhere what is not nearer by: that is what one is for.
    subprocess.run(["ip", "route", "replace", "10.0.0.0/8", "via", "10.99.0.9"], check=True)
    (CONF / "networks.yaml").write_text(good)
    setup.set_up(context(), job(), REQUEST)
    assert Ledger(STATE, 12).read_ready() is not None
    teardown.tear_down(context(), 12)
    assert_clean(before)


def taken_ports() -> None:
    """A port that a program of the node has is no VM's, and no program is given one that is."""
    before = snapshot()
    with socket.create_server(("10.99.0.1", 60000)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 60002))
        # Programs of the node, with ports of the kernel's choice.
        setup.set_up(context(), job(), REQUEST)
    record = Ledger(STATE, 12).read_record()
    assert record is not None
    assert record.ports == (60001, 60003)
    setting = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
    assert setting.read_text() == "60000-60999\n"
    setup.set_up(context(), job(13), REQUEST)
    teardown.tear_down(context(), 12)
    assert setting.read_text() == "60000-60999\n"
    teardown.tear_down(context(), 13)
    assert_clean(before)
    # What the site has reserved itself comes back as it was.
    setting.write_text("50000,60990-61010")
    before = snapshot()
    setup.set_up(context(), job(), REQUEST)
    assert setting.read_text() == "50000,60000-61010\n"
    teardown.tear_down(context(), 12)
    assert setting.read_text() == "50000,60990-61010\n"
    assert_clean(before)


def wrong_underlay() -> None:
    """The site's mistake, and a name that nobody knows, are refusals: no node has to leave service for them."""
    before = snapshot()
    good = (CONF / "batch.yaml").read_text()
    (CONF / "batch.yaml").write_text(good.replace('{"etcd', '{"underlay-device": "ehto0", "etcd'))
    found = refusal_of(12)
    assert (found.exit_code, "batch.yaml:1: settings.underlay-device" in found.message) == (3, True), found
    (CONF / "batch.yaml").write_text(good)
    hosts = (ROOT / "hosts").read_text()
    (ROOT / "hosts").write_text(hosts.replace("10.99.0.1 n1\n", ""))
    found = refusal_of(12)
    assert (found.exit_code, "n1 has no IPv4 address" in found.message) == (4, True), found
    (ROOT / "hosts").write_text(hosts.replace("10.99.0.1 n1\n", "10.99.0.77 n1\n"))
    found = refusal_of(12)
    assert (found.exit_code, "no device of this node has the address 10.99.0.77" in found.message) == (4, True), found
    (ROOT / "hosts").write_text(hosts)
    assert_clean(before)


SCENARIOS = (taken_ranges, taken_ports, wrong_underlay)

if __name__ == "__main__":
    run(next(each for each in SCENARIOS if each.__name__ == sys.argv[1]))
