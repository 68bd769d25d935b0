# SPDX-License-Identifier: Apache-2.0
"""Scenarios of test_node.py: what others change on a node under running clusters, and what a state store forgets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pvc.host import netlink
from pvc.node import netcheck, setup, teardown
from pvc.node.memberships import register_again
from pvc.node.mend import look_after
from pvc.node.reclaim import reclaim
from pvc.node.strays import adopt
from pvc.node.upkeep import Upkeep
from pvc.plan.names import uplink
from pvc.state import membership
from pvc.state.etcd import EtcdStore
from pvc.state.ledger import Ledger
from tests.host.node_world import (
    CONF,
    ETCD,
    REQUEST,
    RUNTIME,
    STATE,
    assert_clean,
    context,
    data_path,
    dump_flows,
    job,
    run,
    snapshot,
)
from tests.waits import wait_until

DEVICE = uplink("nat", 12)


def sh(text: str) -> str:
    return subprocess.run(["sh", "-c", text], check=True, capture_output=True, text=True).stdout


def seen() -> dict[str, Any]:
    """What a set-up made of all that others can take away."""
    now = {key: value for key, value in snapshot().items() if key in ("links", "nft", "forwarding", "bridges", "ports")}
    # Tables are in the order in which they were loaded, ports in one by chance.
    now["ports"] = sorted(now["ports"].split())
    now["nft"] = sorted(now["nft"].split("\n}\n"))
    now["flows"] = dump_flows() if data_path() == "ovs" else []
    with netlink.opened("look") as links:
        now["addresses"] = links.addresses()
    now["own"] = Path(f"/proc/sys/net/ipv4/conf/{DEVICE}/forwarding").read_text()
    return now


def differences(good: dict[str, Any]) -> dict[str, Any]:
    return {key: (value, good[key]) for key, value in seen().items() if value != good[key]}


def standing(job_id: int) -> list[str]:
    return [fault.text for fault in Ledger(STATE, job_id).read_upkeep().standing]


def mended(job_id: int, since: float) -> list[str]:
    return [each.text for each in Ledger(STATE, job_id).read_upkeep().mended if each.at >= since]


CHANGES = (
    ("nft flush ruleset", "the nftables table ip pvc-12 is gone"),
    ("nft delete table ip pvc-12", "the nftables table ip pvc-12 is gone"),
    ("nft flush chain ip pvc-12 forward", "the nftables table ip pvc-12 has"),
    # The kernel does nothing where the switch stands so already.
    ("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.ip_forward=0", "forwarding is 0 instead of 1"),
    ("sysctl -qw net.ipv4.conf.eth0.forwarding=0", "net/ipv4/conf/eth0/forwarding is 0 instead of 1"),
    # A look beside the deletion may find the device still, without its address and its other end.
    (f"ip link del {DEVICE}", f"the cluster's way out ({DEVICE}) is gone", "the cluster's way out (up0) is gone"),
    (f"ip link set {DEVICE} down", f"the cluster's way out ({DEVICE}) is down"),
    (f"ip addr flush dev {DEVICE}", f"the cluster's way out ({DEVICE}) has no address"),
)


def noticed_and_put_back() -> None:
    """The kernel tells of what others do; it is put back, and said."""
    before = snapshot()
    for job_id in (12, 13):
        setup.set_up(context(), job(job_id), REQUEST)
    keep = Upkeep(context())
    keep.start()
    good = seen()
    changes = list(CHANGES)
    if data_path() == "ovs":
        changes.append(("ovs-vsctl del-br pvc-ovs", "the Open vSwitch bridge pvc-ovs has no port"))
    for command, *words in changes:
        since = time.time()
        sh(command)
        # What both share is put back by whoever looks first.
        wait_until(
            lambda: any(each in text for each in words for job_id in (12, 13) for text in mended(job_id, since)),  # noqa: B023
            lack=lambda: (command, mended(12, since)),  # noqa: B023
        )
        wait_until(lambda: seen() == good, lack=lambda: (command, differences(good), standing(12)), bear=(OSError,))  # noqa: B023
        wait_until(lambda: not standing(12))
    for job_id in (12, 13):
        teardown.tear_down(context(), job_id)
    keep.refresh()
    assert_clean(before)


def found_by_a_look() -> None:
    """What the kernel does not tell of, and what was done while nobody served, is found by the next look."""
    before = snapshot()
    setup.set_up(context(), job(), REQUEST)
    good = seen()
    inside = "ip netns exec pvc-12"
    changes = ["nft flush ruleset", f"{inside} nft flush ruleset"]
    changes += ["ovs-ofctl del-flows pvc-ovs cookie=12/-1"] if data_path() == "ovs" else []
    for command in changes:
        sh(command)
        assert netcheck.check(Ledger(STATE, 12)).faults, command
        assert look_after(context(), 12), command
        assert seen() == good, command
        assert not netcheck.check(Ledger(STATE, 12)).faults, command
        assert not look_after(context(), 12), command
    sh("nft flush ruleset")
    Upkeep(context()).start()
    wait_until(lambda: seen() == good, lack=lambda: differences(good))
    # A VM's own interface cannot come back: it is told, and stays told.
    if data_path() == "kernel":
        sh(f"{inside} ip link del t0n0")
        assert not look_after(context(), 12)
        assert any("the interface of vm0 on network nat" in text for text in standing(12)), standing(12)
    teardown.tear_down(context(), 12)
    assert_clean(before)


def way_out() -> None:
    """A firewall that drops what it does not know keeps VMs from outside, whatever our own rules accept."""
    before = snapshot()
    sh("ip route add default via 10.99.0.254")
    sh("ip neigh replace 10.99.0.254 lladdr 02:00:00:00:00:fe dev eth0 nud permanent")
    setup.set_up(context(), job(), REQUEST)
    ledger = Ledger(STATE, 12)
    assert netcheck.check(ledger).faults == ()
    sh("nft 'add table ip site; add chain ip site forward { type filter hook forward priority 10; policy drop; }'")
    (fault,) = netcheck.check(ledger).faults
    assert "what VMs send to networks outside does not leave this node" in fault.text
    assert "chain ip site forward drops" in fault.text
    # The remedy that it names is one.
    assert fault.fix is not None
    sh(fault.fix.removeprefix("as root: "))
    assert netcheck.check(ledger).faults == ()
    sh("nft delete table ip site")
    # A node that has no way out itself says nothing of its clusters'.
    sh("ip route del default")
    assert netcheck.check(ledger).faults == ()
    teardown.tear_down(context(), 12)
    assert_clean(before)


def forgetful_store() -> None:
    """A store that was emptied under a running cluster gives nobody the cluster's numbers."""
    text = (CONF / "networks.yaml").read_text()
    (CONF / "networks.yaml").write_text(text.replace('"mtu": 1550', '"mtu": 1550, "vni-range": "100-101"'))
    before = snapshot()
    setup.set_up(context(), job(12), REQUEST)
    known = snapshot()["keys"]
    assert known["v1/vni/100"] == "12"
    wipe()
    # 14 begins its search at the same number.
    setup.set_up(context(), job(14), REQUEST)
    inputs = Ledger(STATE, 14).read_inputs()
    assert inputs is not None
    assert inputs.grants.vnis == {"nat": 101}
    keys = snapshot()["keys"]
    assert {key: keys.get(key) for key in known} == known
    wipe()
    register_again(context())
    assert snapshot()["keys"] == keys
    # Another node was faster: that is said, and nothing of the other's is touched.
    wipe()
    sh("env ETCDCTL_API=3 etcdctl --endpoints=http://10.99.0.1:2379 put /pvc/v1/vni/100 99")
    ours = context()
    register_again(ours)
    assert any("VNI 100 of network nat is another job's" in text for text in ours._told[12])
    assert snapshot()["keys"]["v1/vni/100"] == "99"
    for job_id in (12, 14):
        teardown.tear_down(context(), job_id)
    wipe()
    (CONF / "networks.yaml").write_text(text)
    assert_clean(before)


def wipe() -> None:
    sh("env ETCDCTL_API=3 etcdctl --endpoints=http://10.99.0.1:2379 del '' --from-key")


def sites_apart() -> None:
    """Two sites on one etcd, each with its prefix, know nothing of each other."""
    here, there = EtcdStore(ETCD), EtcdStore(replace(ETCD, prefix="other/site"))
    member = membership.Member("n1", "10.99.0.1", "one")
    (network,) = (each for each in context().site().networks.values() if each.name == "nat")
    for store in (here, there):
        assert membership.join(store, 12, member, [network])
    known = here.read_prefix("")
    assert there.read_prefix("") == known
    membership.leave(there, 12, "n1")
    assert there.read_prefix("") == {}
    assert here.read_prefix("") == known
    membership.leave(here, 12, "n1")
    for store in (here, there):
        store.close()


def pvc_node(*words: str) -> subprocess.CompletedProcess[str]:
    """The command on this node, where Slurm does not answer."""
    places = ["--conf-dir", CONF, "--state-dir", STATE, "--runtime-dir", RUNTIME]
    argv = [sys.executable, "-m", "pvc.cli.node", *places, *words]
    env = {**os.environ, "SLURM_CONF": "/nowhere"}
    return subprocess.run(argv, check=False, capture_output=True, text=True, env=env)


def slurm_is_silent() -> None:
    """Who asks for a reclaim is told when nobody could say what is an orphan."""
    before = snapshot()
    setup.set_up(context(), job(), REQUEST)
    done = pvc_node("reclaim", "--node", "n1")
    assert done.returncode == 4, done
    assert "SLURM_CONF" in done.stderr
    assert not reclaim(context(), None).clean
    teardown.tear_down(context(), 12)
    assert_clean(before)


def roots_view() -> None:
    """Root sees whose jobs are here, what they hold, and what is nobody's; without Slurm nothing is left over."""
    before = snapshot()
    setup.set_up(context(), job(), REQUEST)
    setup.set_up(context(), job(13), "1;cpus=2;nope:2")
    shutil.rmtree(STATE / "jobs" / "12")
    setup.set_up(context(), job(14), REQUEST)
    view = json.loads(pvc_node("status", "--node", "n1", "--json").stdout)
    found = {each["job_id"]: each for each in view["jobs"]}
    assert {job_id: each["phase"] for job_id, each in found.items()} == {12: "nobody's", 13: "refused", 14: "ready"}
    assert "namespace pvc-12" in found[12]["text"]
    assert "nope" in found[13]["text"]
    assert (found[14]["user"], found[14]["vms"], len(found[14]["ports"])) == ("nobody", 2, 2)
    assert all(each["known"] is None for each in found.values())
    shares = {each["what"]: (each["used"], each["of"]) for each in view["shares"]}
    assert (shares["ports 60000-60999"], shares["uplinks"]) == ((2, 1000), (1, 16384))
    table = pvc_node("status", "--node", "n1").stdout
    assert "ports 60000-60999: 2 of 1000" in table
    assert "job 13: there is no resource set 'nope'" in table
    done = pvc_node("repair", "--yes", "--node", "n1")
    assert (done.returncode, "nobody knows which jobs this node has" in done.stderr) == (6, True), done
    ours = context()
    assert adopt(ours, 12)
    for job_id in (12, 13, 14):
        teardown.tear_down(ours, job_id)
    membership.leave(ours.store(), 12, "n1")
    assert_clean(before)


SCENARIOS: tuple[Callable[[], None], ...] = (
    noticed_and_put_back,
    found_by_a_look,
    way_out,
    forgetful_store,
    sites_apart,
    slurm_is_silent,
    roots_view,
)
ON_BOTH_PATHS = (noticed_and_put_back, found_by_a_look)

if __name__ == "__main__":
    os.environ["PVC_TEST_DATA_PATH"] = sys.argv[2]
    run(next(each for each in SCENARIOS if each.__name__ == sys.argv[1]))
