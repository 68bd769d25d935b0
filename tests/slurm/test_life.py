# SPDX-License-Identifier: Apache-2.0
"""Single VMs of a running cluster, with real jobs, real taps and two users."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.slurm.clusters import Cluster
from tests.slurm.testbed import Snapshot, Testbed


@pytest.fixture
def cluster(tb: Testbed, small: str, before: dict[str, Snapshot]) -> Iterator[Cluster]:
    del before  # taken before the cluster is
    made = Cluster(tb, f"{small}:4", "-N", "3").wait_running()
    yield made
    made.close()


def pvc(cluster: Cluster, *words: str) -> Any:
    """What ``pvc WORDS --json`` of the cluster prints."""
    return json.loads(cluster.tb.run(["pvc", *words, "--json", "-j", str(cluster.job_id)], timeout=300).out)


def test_vms_stop_and_start_in_a_cluster_that_goes_on(
    tb: Testbed, cluster: Cluster, before: dict[str, Snapshot]
) -> None:
    cluster.wait_reachable()
    was = {vm["name"]: vm for vm in pvc(cluster, "status")["vms"]}
    assert [vm["phase"] for vm in pvc(cluster, "pause", "vm[0-1]")] == ["paused", "paused"]
    refused = tb.run(["pvc", "wait", "vm1", "-j", str(cluster.job_id)], check=False)
    assert (refused.code, "vm1: is paused (paused on request)" in refused.err) == (7, True)
    assert [vm["phase"] for vm in pvc(cluster, "resume", "vm[0-1]")] == ["reachable", "reachable"]

    stopped = pvc(cluster, "stop", "vm[0-3]", "--grace", "0s")
    assert [vm["phase"] for vm in stopped] == ["stopped"] * 4
    assert tb.run(["squeue", "-h", "-j", str(cluster.job_id), "-o", "%T"]).out.strip() == "RUNNING"
    failed = tb.run(["pvc", "reset", "vm2", "-j", str(cluster.job_id)], check=False)
    assert failed.code == 7
    assert "cannot reset vm2: it is stopped" in failed.err
    assert "pvc start vm2" in failed.err

    # Taps come from pvc-node again, of these VMs alone.
    tb.run(["pvc", "start", "vm[0-1]", "vm3", "--wait", "-j", str(cluster.job_id)], timeout=180)
    now = {vm["name"]: vm for vm in pvc(cluster, "status")["vms"]}
    assert {name: vm["phase"] for name, vm in now.items()} == {
        "vm0": "reachable",
        "vm1": "reachable",
        "vm2": "stopped",
        "vm3": "reachable",
    }
    same = ("node", "addresses", "ssh_host", "ssh_port")
    assert all(now[name][key] == was[name][key] for name in now for key in same)

    # Another user has no part in it.
    orders = (["stop", "vm0"], ["start", "vm2"], ["reset", "vm0"], ["pause", "vm0"])
    looks = (["monitor", "vm0", "quit"], ["dump", "vm0", "/tmp/x"], ["display", "vm0", "--print"])
    for words in (*orders, *looks):
        words.insert(1, f"-j{cluster.job_id}")
        assert tb.run(["pvc", *words], user="teacher", check=False).code == 4
    assert {vm["name"]: vm["phase"] for vm in pvc(cluster, "status")["vms"]}["vm0"] == "reachable"
    job = f"-j{cluster.job_id}"
    assert "VM status: running" in tb.run(["pvc", "monitor", job, "vm0", "info", "status"]).out
    assert json.loads(tb.run(["pvc", "monitor", job, "vm1", '{"execute": "query-status"}']).out)["running"] is True
    unknown = tb.run(["pvc", "monitor", job, "vm0", "no-such"], check=False)
    assert (unknown.code, unknown.out.startswith("unknown command")) == (7, True)

    # The node writes the file as the job's user, at the place that the user means.
    tb.run(["pvc", "dump", job, "--format", "kdump-zlib", "vm3", "vm3.dump"], timeout=300)
    written = (tb.home() / "vm3.dump").stat()
    assert (written.st_mode & 0o777, written.st_uid) == (0o600, tb.home().stat().st_uid)
    assert tb.run(["pvc", "dump", job, "vm3", "vm3.dump"], check=False).code == 2
    refused = tb.run(["pvc", "dump", job, "vm3", "/etc/mine"], check=False)
    assert (refused.code, "Permission denied" in refused.err or "Read-only" in refused.err) == (7, True)
    screen = tb.run(["pvc", "display", job, "vm0", "--screenshot", "vm0.png"], check=False)
    assert (screen.code, "vm0 has no screen" in screen.err) == (7, True)

    tb.run(["pvc", "stop", job])
    cluster.end()
    tb.wait_no_jobs()
    tb.assert_clean(before)
