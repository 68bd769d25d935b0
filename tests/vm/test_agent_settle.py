# SPDX-License-Identifier: Apache-2.0
"""A guest that reads no seed gets its name, keys and addresses by its agent; one that does is left alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import free_port, user_net
from reached import Reached, reached

from pvc.ops.agents import Agents, Collected, ask
from pvc.ops.loop import Loop
from tests.waits import wait_until

pytestmark = pytest.mark.vm

MAC = "52:54:00:12:34:56"  # QEMU's first
KEY = "ssh-ed25519 AAAA somebody"
# A stranger's image: another name, no keys of ours, and nobody who asks for an address.
ESTRANGE = f"""
hostname stranger; mkdir -p /etc/ssh /root/.ssh; printf '%s' '{KEY}' > /root/.ssh/authorized_keys
(sleep 0.5; killall pvc-agent; exec setsid /bin/pvc-agent) </dev/null >/dev/null 2>&1 &
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reached]:
    with reached(tmp_path_factory.mktemp("settle") / "cluster", 1, custom_args=user_net(free_port())) as found:
        # The agent answers before the guest has its lease, whose last part is the route.
        found.run("sh", "-c", "until ip route | grep -q default; do sleep 0.1; done")
        yield found


def wait_line(cluster: Reached, line: str) -> None:
    """Until this line for the guest's shell succeeds; its agent may go and come meanwhile."""
    wait_until(lambda: cluster.run("sh", "-c", line).codes == [0], lack=line)


def test_a_guest_without_cloud_init_becomes_the_clusters(cluster: Reached) -> None:
    assert cluster.run("sh", "-c", ESTRANGE).codes == [0]
    wait_line(cluster, 'test "$(hostname)" = vm0')
    wait_line(cluster, "test -f /etc/ssh/ssh_host_ed25519_key.pub")
    assert cluster.run("cat", "/etc/hostname").out() == "vm0\n"
    keys = cluster.run("cat", "/root/.ssh/authorized_keys").out().splitlines()
    assert keys[0] == KEY
    assert len(keys) == len(set(keys)) >= 2
    made = cluster.cluster.keys
    assert cluster.run("cat", "/etc/ssh/ssh_host_ed25519_key").out().strip() == made.host_key.strip()
    assert cluster.run("cat", "/etc/ssh/ssh_host_ed25519_key.pub").out().strip() == made.host_key_pub.strip()
    modes = cluster.run("sh", "-c", "stat -c %a /root/.ssh/authorized_keys /etc/ssh/ssh_host_ed25519_key").out()
    assert modes.split()[1] == "600"
    # Once more changes nothing
    before = cluster.run("sh", "-c", "ls -li --full-time /etc/ssh /etc/hostname; cat /root/.ssh/authorized_keys").out()
    assert settle(cluster, ("hostname", "vm0"), *(("authorized-key", key) for key in keys)).result == {"exit": "0"}
    after = cluster.run("sh", "-c", "ls -li --full-time /etc/ssh /etc/hostname; cat /root/.ssh/authorized_keys").out()
    assert before == after


def settle(cluster: Reached, *words: tuple[str, str]) -> Collected:
    with Loop((), lambda _: None) as loop, Agents(cluster.control, loop) as agents:
        return ask(agents, loop, 0, [("op", "settle"), *words], 60)


def test_an_address_only_where_there_is_none(cluster: Reached) -> None:
    wanted = ("address", f"{MAC} 10.0.2.77/24 10.0.2.2")
    assert settle(cluster, wanted).result == {"exit": "0"}
    assert "10.0.2.77" not in cluster.run("ip", "-4", "address").out()
    cluster.run("sh", "-c", "ip address flush dev eth0")
    assert settle(cluster, wanted).result == {"exit": "0"}
    assert "inet 10.0.2.77/24" in cluster.run("ip", "-4", "address").out()
    assert "default via 10.0.2.2 dev eth0" in cluster.run("ip", "route").out()
    # Somebody who asks for one just now is waited for
    late = "ip address flush dev eth0; (sleep 1; ip address add 10.0.2.99/24 dev eth0) >/dev/null 2>&1 &"
    cluster.run("sh", "-c", late)
    assert settle(cluster, wanted).result == {"exit": "0"}
    assert "10.0.2.77" not in cluster.run("ip", "-4", "address").out()


def test_a_guest_that_is_cloud_inits_is_left_alone(cluster: Reached) -> None:
    cluster.run("sh", "-c", "mkdir -p /usr/bin; cp /bin/busybox /usr/bin/cloud-init")
    try:
        assert settle(cluster, ("hostname", "other"), ("authorized-key", "ssh-rsa other")).result == {"exit": "0"}
        assert cluster.run("hostname").out() != "other\n"
        assert "other" not in cluster.run("cat", "/root/.ssh/authorized_keys").out()
    finally:
        cluster.run("rm", "/usr/bin/cloud-init")
