# SPDX-License-Identifier: Apache-2.0
"""What makes a clone somebody else: name, ids, keys, random numbers, clock and addresses, in a guest that runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import free_port, user_net
from reached import Reached, reached

from pvc.ops.agents import Agents, Collected, ask
from pvc.ops.loop import Loop

pytestmark = pytest.mark.vm

MAC = "52:54:00:12:34:56"  # QEMU's first
IDENTITY = (
    ("hostname", "clone7"),
    ("machine-id", "0123456789abcdef0123456789abcdef"),
    ("random", "5a" * 64),
    ("clock", "2000000000.25"),
    ("host-key", "-----BEGIN KEY-----\nabc\n-----END KEY-----"),
    ("host-key-pub", "ssh-ed25519 AAAA"),
    ("address", f"{MAC} 10.0.2.77/24 10.0.2.2"),
)


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reached]:
    with reached(tmp_path_factory.mktemp("identity") / "cluster", 1, custom_args=user_net(free_port())) as found:
        yield found


def test_a_guest_becomes_another(cluster: Reached) -> None:
    loop = Loop((), lambda _: None)
    agents = Agents(cluster.control, loop)

    def become(*words: tuple[str, str]) -> Collected:
        return ask(agents, loop, 0, [("op", "identity"), *words], 60)

    try:
        # The agent answers before the guest has its lease, whose last part is the route.
        cluster.run("sh", "-c", "until ip route | grep -q default; do sleep 0.1; done")
        assert "inet 10.0.2.15/24" in cluster.run("ip", "-4", "address").out()
        cluster.run("mkdir", "-p", "/etc/ssh")
        done = become(*IDENTITY)
        assert (done.result, bytes(done.err)) == ({"exit": "0"}, b"")
        ran = cluster.run(
            "sh", "-c", "hostname; cat /etc/hostname /etc/machine-id; date +%Y; ls -l /etc/ssh; cat /etc/ssh/*"
        )
        lines = ran.out().splitlines()
        assert lines[:4] == ["clone7", "clone7", IDENTITY[1][1], "2033"]
        assert [line.split()[0] for line in lines[5:7]] == ["-rw-------", "-rw-r--r--"]
        assert lines[7:] == [*IDENTITY[4][1].splitlines(), "ssh-ed25519 AAAA"]
        addresses = cluster.run("ip", "-4", "address").out()
        assert "inet 10.0.2.77/24" in addresses
        assert "10.0.2.15" not in addresses
        assert "default via 10.0.2.2 dev eth0" in cluster.run("ip", "route").out()

        # Each thing that fails is told, and the others are done.
        failed = become(("clock", "yesterday"), ("address", "02:00:00:00:00:01 10.0.0.1/8"), ("hostname", "clone8"))
        assert (failed.result or {})["exit"] == "1"
        assert failed.err.decode().splitlines() == [
            "pvc-agent: cannot set the clock: Invalid argument",
            "pvc-agent: no interface has the address 02:00:00:00:00:01",
        ]
        assert cluster.run("hostname").out() == "clone8\n"
    finally:
        agents.close()
        loop.close()
