# SPDX-License-Identifier: Apache-2.0
"""A cluster on Open vSwitch: what VMs of two nodes see of each other, and a switch that is killed meanwhile."""

from __future__ import annotations

import pytest

from tests.slurm.clusters import Cluster
from tests.slurm.guest import Console
from tests.slurm.testbed import Snapshot, Testbed
from tests.waits import wait_until

_FLOWS = "ovs-ofctl -OOpenFlow15 --no-stats dump-flows pvc-ovs | sort"


@pytest.mark.parametrize("resource_set", ["nat-ovs"])
def test_vms_of_two_nodes_on_open_vswitch(
    tb: Testbed, small: str, before: dict[str, Snapshot], resource_set: str
) -> None:
    cluster = Cluster(tb, f"{small}:4", "-N", "2", "--resource-set", resource_set)
    try:
        cluster.wait_running().wait_reachable()
        check_traffic(tb, cluster)
        check_a_killed_switch(tb, cluster)
        check_traffic(tb, cluster)
    finally:
        cluster.close()
    tb.wait_no_jobs()
    tb.assert_clean(before)


def check_traffic(tb: Testbed, cluster: Cluster) -> None:
    with Console(tb, cluster.job_id, "vm0", cluster.user) as vm:
        for rank in range(4):
            code, out = vm.run(f"ping -c 1 -w 10 -s 1472 10.200.0.{rank + 1}")
            assert code == 0, out
            assert f"10.200.0.{rank + 1}" in vm.run(f"nslookup vm{rank} 10.200.255.254 | sed '1,2d'")[1]
        assert vm.run("ping -c 1 -w 10 10.200.255.254")[0] == 0


def check_a_killed_switch(tb: Testbed, cluster: Cluster) -> None:
    node = next(each for each in tb.nodes() if f"pvc-{cluster.job_id}" in tb.root("ls /run/netns", each))
    flows = tb.root(_FLOWS, node)
    assert f"cookie={cluster.job_id:#x}" in flows
    tb.root("kill -9 $(cat /run/openvswitch/ovs-vswitchd.pid)", node)
    wait_until(lambda: tb.root(_FLOWS, node, check=False) == flows, 120, "the flows have not come back")
