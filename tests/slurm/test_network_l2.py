# SPDX-License-Identifier: Apache-2.0
"""What an empty switch promises, on each data path."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm import frames
from tests.slurm.labs import Lab, check_bulk, run_lab, until
from tests.slurm.testbed import Testbed

RESOURCE_SETS = ("lan", "lan-ovs")
UNKNOWN = "02:00:00:00:00:77"
MULTICAST = "01:00:5e:01:02:03"


@pytest.fixture(scope="module", params=RESOURCE_SETS)
def l2(request: pytest.FixtureRequest, testbed: Testbed, small: str) -> Iterator[Lab]:
    yield from run_lab(testbed, small, request.param)


def test_an_empty_switch(l2: Lab) -> None:
    """Broadcast, multicast and unknown addresses reach every other member once, and nobody else."""
    assert "inet " not in l2.ask(0, "ip -4 addr show eth0")
    assert int(l2.ask(0, "cat /sys/class/net/eth0/mtu").splitlines()[-1]) == 1500
    targets = {"all": frames.BROADCAST, "group": MULTICAST, "unknown": UNKNOWN, "vm2": l2.mac(2)}
    sent = [frames.ethernet(to, l2.mac(1), frames.EXPERIMENT, f"mark-{name}".encode()) for name, to in targets.items()]
    # Addresses are the users' own affair there.
    sent.append(frames.ethernet(l2.mac(2), UNKNOWN, frames.EXPERIMENT, b"mark-foreign"))
    marks = [f"mark-{name}" for name in (*targets, "foreign")]
    watch = l2.watch(marks, *((rank, l2.mine) for rank in (0, 2, 3)), *((rank, l2.theirs) for rank in (0, 1)))
    l2.send(1, sent)
    to_all = {"mark-all": 1, "mark-group": 1, "mark-unknown": 1}
    expected = [to_all, to_all | {"mark-vm2": 1, "mark-foreign": 1}, to_all, {}, {}]
    assert watch.counts(expected) == expected


def test_a_dhcp_server_of_the_users_own(l2: Lab) -> None:
    config = "start 192.168.7.10\nend 192.168.7.20\ninterface eth0\noption subnet 255.255.255.0\nlease_file /leases\n"
    lines = config.replace("\n", "\\n")
    l2.ask(0, f"ip addr add 192.168.7.1/24 dev eth0; touch /leases; mkdir -p /var/run; printf '{lines}' > /server")
    l2.ask(0, f"(udhcpd -f -I 192.168.7.1 /server >/dev/null 2>&1 &) ; {until('grep -q :0043 /proc/net/udp')}")  # 67
    found = {}
    for rank in (1, 2, 3):
        l2.ask(rank, "udhcpc -n -q -t 10 -T 1 -i eth0 -s /dhcp >/dev/null 2>&1")
        words = l2.ask(rank, "ip -4 -o addr show eth0").split()
        found[rank] = next(word for word in words if word.startswith("192.168.7.")).partition("/")[0]
    assert len(set(found.values())) == 3
    for source, to in ((1, 2), (2, 3), (3, 1)):
        l2.ask(source, f"frames ping {found[to]} 1500")
    check_bulk(l2, 1, 3, found[3])
    # The other cluster has the same switch for itself.
    code, out = l2.vm(0, l2.theirs).run("udhcpc -n -q -t 2 -T 1 -i eth0 -s /bin/true 2>&1")
    assert code != 0, out
