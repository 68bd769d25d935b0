# SPDX-License-Identifier: Apache-2.0
"""Many ports at once: run by test_node.py like node_world.py."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pvc.errors import HostError
from pvc.host import linkbatch, ovs, packetsockets, switchports, tap
from pvc.node import setup, teardown
from pvc.state.ledger import Ledger
from tests.host.node_world import DATA_PATH, REQUEST, STATE, assert_clean, context, job, run, snapshot


def held_sockets() -> None:
    """A socket that is held is open when Open vSwitch has closed it, and closed when it is let go; all are found."""
    before = snapshot()
    setup.set_up(context(), job(), REQUEST)
    ready = Ledger(STATE, 12).read_ready()
    assert ready is not None
    names = [each.name for each in ready.taps]
    indexes = {str(socket.if_nametoindex(name)) for name in names}

    def count() -> int:
        return sum(row.split()[4] in indexes for row in Path("/proc/net/packet").read_text().splitlines())

    process = ovs.find_process()
    for nobody, nothing in ((None, names), (process, ["nothing"]), (os.getpid(), names)):
        with packetsockets.held(nobody, nothing) as found:
            assert found == 0
    with packetsockets.held(process, names) as found:
        assert found == count() == len(names) > 0
        subprocess.run(["ovs-vsctl", *(word for name in names for word in ("--", "del-port", name))], check=True)
        assert count() == len(names)
    assert count() == 0
    teardown.tear_down(context(), 12)
    assert_clean(before)


def many_taps() -> None:
    """More devices than one call takes are all changed; what cannot be done is said of its device."""
    before = snapshot()
    names = [f"many{number}" for number in range(250)]
    for name in names:
        tap.ensure(name)
    linkbatch.put_up(names, mtu=1400, group=77)
    found = json.loads(subprocess.run(["ip", "-j", "link"], check=True, capture_output=True).stdout)
    changed = {
        link["ifname"] for link in found if (link["mtu"], link["group"]) == (1400, "77") and "UP" in link["flags"]
    }
    assert changed == set(names)
    with pytest.raises(HostError, match="no network device many250"):
        linkbatch.put_up([*names[:3], "many250"], mtu=1500)
    with pytest.raises(HostError, match="cannot put many0 up"):
        linkbatch.put_up(names[:3], mtu=1 << 20)
    switchports.remove_group(77)
    assert_clean(before)


SCENARIOS = (held_sockets, many_taps)


if __name__ == "__main__":
    os.environ[DATA_PATH] = sys.argv[2]
    run(next(each for each in SCENARIOS if each.__name__ == sys.argv[1]))
