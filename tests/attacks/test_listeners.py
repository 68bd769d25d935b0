# SPDX-License-Identifier: Apache-2.0
"""Crowds at what listens on a node, and whether its owner and honest users get in beside them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from tests.attacks.victim import Victim, allocs, attacking
from tests.slurm.testbed import Testbed

# Opens so many connections, says that they are there, and keeps as many until nobody wants it any more.
_CROWD = """
import resource, select, socket, sys
host, port, count, said = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), bytes.fromhex(sys.argv[4])
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
links, poll = {}, select.poll()

def come():
    link = socket.socket(socket.AF_UNIX if host == "unix" else socket.AF_INET)
    link.settimeout(10)
    try:
        link.connect("/run/pvc/node.sock" if host == "unix" else (host, port))
        link.sendall(said)
    except OSError:
        link.close()
        return
    links[link.fileno()] = link
    poll.register(link, select.POLLIN | select.POLLRDHUP)

for _ in range(count):
    come()
print("there", flush=True)
poll.register(0, select.POLLIN)
while True:
    for number, _ in poll.poll():
        if number == 0:
            sys.exit()
        poll.unregister(number)
        links.pop(number).close()
        come()
"""
TLS_BEGINNING = "160301020001"


@contextlib.contextmanager
def crowd(tb: Testbed, node: str, *words: str) -> Iterator[None]:
    """The attacker's crowd on a node while the block runs."""
    with attacking(tb, _CROWD, *words, node=node) as process:
        yield
        assert process.poll() is None


def test_a_crowd_at_the_control_port(victim: Victim) -> None:
    """3,000 connections of another user on another node, and on the same one: the cluster lives, its owner gets in."""
    tb = victim.tb
    host, port = victim.find_control_port()
    for node, said in (("n3", ""), ("n3", TLS_BEGINNING), ("n1", TLS_BEGINNING)):
        with crowd(tb, node, host, str(port), "3000", said):
            for _ in range(3):
                vms = json.loads(victim.pvc("status", "--json").out)["vms"]
                assert [vm["phase"] for vm in vms] == ["booting", "booting"], vms
    assert victim.job_id in map(int, tb.jobs())


def test_a_crowd_at_pvc_node(tb: Testbed) -> None:
    """Another user allocates on a node whose socket has no room left."""
    size = len(tb.log("n1", "pvc-node"))
    with crowd(tb, "n1", "unix", "0", "500", b"[".hex() * 5000):
        assert allocs(tb).code == 0
    assert len(tb.log("n1", "pvc-node")) - size < 100_000
