# SPDX-License-Identifier: Apache-2.0
"""What VMs see of their network, and what nobody else does."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.slurm.clusters import Cluster
from tests.slurm.guest import Console
from tests.slurm.testbed import Snapshot, Testbed

ATTACH = """
import json, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect("/run/pvc/node.sock")
link.sendall(json.dumps({"op": "attach", "job": int(sys.argv[1])}).encode() + b"\\n")
print(link.recv(65536).decode())
"""
TLS = """
import json, socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
try:
    link = context.wrap_socket(socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5))
    link.sendall(b'{"op":"status"}\\n')
    print("answer", link.recv(100))
except OSError as err:
    print("refused", err)
"""


@pytest.fixture
def pair(tb: Testbed, small: str, before: dict[str, Snapshot]) -> Iterator[tuple[Cluster, Cluster]]:
    """Clusters of student and teacher on the same nodes; the nodes are clean afterwards."""
    made = [Cluster(tb, f"{small}:3", "-N", "3", user=user) for user in ("student", "teacher")]
    try:
        first, second = (each.wait_running() for each in made)
        yield first, second
    finally:
        for each in made:
            each.close()
    tb.wait_no_jobs()
    tb.assert_clean(before)


def test_two_users_on_the_same_nodes(tb: Testbed, pair: tuple[Cluster, Cluster]) -> None:
    mine, theirs = (each.wait_reachable() for each in pair)
    check_names_and_addresses(tb, mine)
    check_the_network_is_private(tb, mine, theirs)
    check_the_node_is_private(tb, mine, theirs)
    check_files_and_sockets_are_private(tb, mine, theirs)


def check_names_and_addresses(tb: Testbed, cluster: Cluster) -> None:
    with Console(tb, cluster.job_id, "vm0", cluster.user) as vm:
        # Its statically linked ping looks no names up; a Debian guest's does, in the demonstration.
        for rank in range(3):
            code, out = vm.run(f"ping -c 1 -w 10 10.200.0.{rank + 1}")
            assert code == 0, out
            assert f"10.200.0.{rank + 1}" in vm.run(f"nslookup vm{rank} 10.200.255.254 | sed '1,2d'")[1]
        # The gateway answers on every node, and nothing but what a gateway is for.
        assert vm.run("ping -c 1 -w 10 10.200.255.254")[0] == 0
        # Frames of 1500 bytes fit through the tunnel.
        code, out = vm.run("ping -c 1 -w 10 -s 1472 10.200.0.3")
        assert code == 0, out


def check_the_network_is_private(tb: Testbed, mine: Cluster, theirs: Cluster) -> None:
    """The same addresses in both; a name of one cluster means its own VM, whose console alone shows the mark."""
    with Console(tb, mine.job_id, "vm0", mine.user) as vm, Console(tb, theirs.job_id, "vm0", theirs.user) as other:
        assert vm.run("echo of-mine > /owner")[0] == 0
        assert other.run("echo of-theirs > /owner; cat /owner")[1].split() == ["of-theirs"]
        assert "of-theirs" not in vm.run("cat /owner")[1]
        table = tb.root("nft list ruleset | grep -o 'dnat to 10.201[0-9.]*' | sort -u", "n1").split()
        uplinks = [word for word in table if word.startswith("10.201")]
        assert len(uplinks) == 2
        reached = [address for address in uplinks if vm.run(f"nc -w 3 {address} 60000 </dev/null", 30)[0] == 0]
        # Its own way out may answer it; the other cluster's must not.
        own = tb.root(f"ip netns exec pvc-{mine.job_id} ip -4 -o addr show up0", "n1")
        assert all(f"{address}/" in own for address in reached)


def check_the_node_is_private(tb: Testbed, mine: Cluster, theirs: Cluster) -> None:
    """From a VM, no service of its node answers, and no port that leads to the neighbour's VMs."""
    address = tb.run(["getent", "hosts", "n1"]).out.split()[0]
    with Console(tb, mine.job_id, "vm0", mine.user) as vm:
        assert vm.run(f"nc -w 3 {address} 6818 </dev/null")[0] != 0
        status = json.loads(tb.run(["pvc", "status", "--json", "-j", str(theirs.job_id)], user=theirs.user).out)
        port = next(each["ssh_port"] for each in status["vms"] if each["name"] == "vm0")
        assert vm.run(f"nc -w 3 {address} {port} </dev/null")[0] != 0


def check_files_and_sockets_are_private(tb: Testbed, mine: Cluster, theirs: Cluster) -> None:
    status = tb.run(["pvc", "status", "-j", str(theirs.job_id)], check=False)
    assert status.code != 0
    for place in (f"/var/tmp/pvc/{theirs.job_id}", f"/var/lib/pvc/jobs/{theirs.job_id}"):
        assert tb.run(["ls", place], node="n1", check=False).code != 0
    assert tb.run(["ls", "/home/teacher/.pvc/jobs"], check=False).code != 0
    answer = tb.run(["/usr/bin/python3", "-", str(theirs.job_id)], node="n1", stdin=ATTACH).out
    assert "no virtual cluster was prepared" in answer
    again = tb.run(["/usr/bin/python3", "-", str(mine.job_id)], node="n1", stdin=ATTACH).out
    assert "held by another process" in again
    endpoints = tb.run(f"cat ~/.pvc/jobs/{theirs.job_id}/cluster.json", user="teacher").out
    for endpoint in json.loads(endpoints)["endpoints"]:
        argv = ["/usr/bin/python3", "-", endpoint["host"], str(endpoint["port"])]
        assert "answer b'{" not in tb.run(argv, stdin=TLS).out
    enter = tb.run(["nsenter", f"--net=/run/netns/pvc-{theirs.job_id}", "true"], node="n1", check=False)
    assert enter.code != 0
    etcd = ["env", "ETCDCTL_API=3", "etcdctl", "--endpoints=http://login:2379", "get", "", "--prefix", "--keys-only"]
    assert "/pvc/" not in tb.run(etcd, check=False).out
