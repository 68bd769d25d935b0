# SPDX-License-Identifier: Apache-2.0
"""Broken paths of a running cluster: made with nft, ip and bridge on the nodes, found by the cluster's owner."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pvc.plan.addresses import label_mac
from tests.slurm.clusters import Cluster
from tests.slurm.testbed import Snapshot, Testbed

BLOCK = (
    "nft 'add table inet site; add chain inet site in { type filter hook input priority -10; }; "
    "add rule inet site in udp dport 4789 drop'"
)


@pytest.fixture
def switched(tb: Testbed, bare: str, before: dict[str, Snapshot]) -> Iterator[Cluster]:
    """Two VMs on two nodes, on Open vSwitch."""
    made = Cluster(tb, f"{bare}:2", "-N", "2", "--resource-set", "nat-ovs")
    try:
        yield made.wait_running()
    finally:
        made.close()
    tb.wait_no_jobs()
    tb.assert_clean(before)


@pytest.fixture
def cluster(tb: Testbed, bare: str, before: dict[str, Snapshot]) -> Iterator[Cluster]:
    """Three VMs on three nodes, which are clean afterwards."""
    made = Cluster(tb, f"{bare}:3", "-N", "3")
    try:
        yield made.wait_running()
    finally:
        made.close()
    tb.wait_no_jobs()
    tb.assert_clean(before)


def doctor(tb: Testbed, cluster: Cluster) -> tuple[int, dict[str, str]]:
    """Exit code, and what is broken by where."""
    done = tb.run(["pvc", "doctor", "--json", "-j", str(cluster.job_id)], check=False)
    findings = json.loads(done.out)
    assert findings, done.err
    return done.code, {each["where"]: each["text"] for each in findings if each["verdict"] == "fail"}


def test_members_and_counters_are_shown_to_the_owner(tb: Testbed, cluster: Cluster) -> None:
    shown = json.loads(tb.run(["pvc", "network", "show", "nat", "--json"]).out)
    (live,) = shown["clusters"]
    assert live["job_id"] == cluster.job_id
    assert live["vni"]
    assert [(each["vm"], each["node"]) for each in live["members"]] == [("vm0", "n1"), ("vm1", "n2"), ("vm2", "n3")]
    assert all(each["interface"]["counters"] for each in live["members"])
    assert {each["node"] for each in live["tunnels"]} == {"n1", "n2", "n3"}
    assert shown["silent"] == {}
    table = tb.run(["pvc", "network", "show", "nat"]).out
    assert "VNI" in table
    assert live["members"][2]["interface"]["mac"] in table
    assert str(cluster.job_id) in tb.run(["pvc", "network", "list"]).out
    other = json.loads(tb.run(["pvc", "network", "show", "nat", "--json"], user="teacher").out)
    assert other["clusters"] == []


def test_what_is_broken_is_named(tb: Testbed, cluster: Cluster) -> None:
    assert doctor(tb, cluster) == (0, {})

    tb.root(BLOCK, "n2")
    code, found = doctor(tb, cluster)
    assert (code, list(found)) == (6, ["n2"])
    assert "nothing arrives from any other node: UDP 4789 is blocked on its way in" in found["n2"]
    tb.root("nft delete table inet site", "n2")

    device = tb.root("ip -o addr | awk '/ 10[.]99[.]/ {print $2}'", "n3").split()[0].partition("@")[0]
    mtu = tb.root(f"cat /sys/class/net/{device}/mtu", "n3").strip()
    tb.root(f"ip link set {device} mtu 1400", "n3")
    code, found = doctor(tb, cluster)
    assert code == 6
    assert f"{device} carries 1400 bytes" in found["n3"]
    for path in ("n1 -> n3", "n2 -> n3"):
        assert "1500-byte frames are lost, 100-byte ones arrive: MTU" in found[path]
    tb.root(f"ip link set {device} mtu {mtu}", "n3")

    mac = label_mac(0)
    inside = f"ip netns exec pvc-{cluster.job_id} bridge fdb"
    tb.root(f"{inside} del {mac} dev vx0 self", "n1")
    # Frames for nobody known go to all members, so nobody but the doctor sees it.
    assert doctor(tb, cluster) == (6, {"n1": "no forwarding entry for vm1 on network nat"})
    there, elsewhere = (tb.run(["getent", "ahostsv4", node]).out.split()[0] for node in ("n2", "n3"))
    tb.root(f"{inside} replace {mac} dev vx0 dst {elsewhere} self", "n1")
    code, found = doctor(tb, cluster)
    assert code == 6
    assert found["n1"] == f"frames for vm1 on network nat are sent to {elsewhere} instead of {there}"
    assert "nothing arrives" in found["n1 -> n2"]
    assert set(found) == {"n1", "n1 -> n2"}


def test_what_is_broken_on_open_vswitch_is_named(tb: Testbed, switched: Cluster) -> None:
    assert doctor(tb, switched) == (0, {})
    (live,) = json.loads(tb.run(["pvc", "network", "show", "nat-ovs", "--json"]).out)["clusters"]
    assert live["data_path"] == "ovs"
    mac = live["members"][1]["interface"]["mac"]
    tb.root(f"ovs-ofctl -O OpenFlow15 del-flows pvc-ovs table=4,dl_dst={mac}", "n1")
    code, found = doctor(tb, switched)
    assert code == 6
    assert found["n1"] == "no forwarding entry for vm1 on network nat-ovs"
    assert "nothing arrives" in found["n1 -> n2"]
    assert set(found) == {"n1", "n1 -> n2"}
