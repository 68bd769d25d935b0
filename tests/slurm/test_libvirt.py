# SPDX-License-Identifier: Apache-2.0
"""VMs through libvirt as real jobs: it stays within the job, answers its owner alone, and leaves nothing."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.clusters import Cluster
from tests.slurm.testbed import Snapshot, Testbed, find_pids
from tests.waits import wait_until


@pytest.fixture
def cluster(tb: Testbed, small: str, before: dict[str, Snapshot]) -> Iterator[Cluster]:
    """vm0 on n1 and vm1 on n2, which libvirt runs."""
    del before  # taken before the cluster is
    path = tb.home() / ".pvc" / "templates.yaml"
    tb.run(["mkdir", "-p", ".pvc"])
    path.write_text(f"domain:\n  image: {small}\n  hypervisor: libvirt\n")
    made = Cluster(tb, "domain:2", "-N", "2").wait_running()
    yield made
    made.close()
    path.unlink()


def statuses(cluster: Cluster) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        cluster.tb.run(["pvc", "status", "--json", "-j", str(cluster.job_id)]).out
    )["vms"]
    return found


def find_all(tb: Testbed) -> list[int]:
    return [pid for node in tb.nodes() for pid in find_pids(tb, node, "libvirtd|qemu-system|virtlogd|virtexec")]


def assert_over(tb: Testbed, before: dict[str, Snapshot]) -> None:
    tb.wait_no_jobs()
    tb.assert_clean(before)
    tb.wait_idle()
    assert find_all(tb) == []
    for name in (".config", ".cache", ".local"):
        assert not (tb.home() / name).exists(), name


def test_a_job_and_its_libvirt(tb: Testbed, before: dict[str, Snapshot], cluster: Cluster) -> None:
    """It boots over real taps, in the job's cgroup, and virsh works for its owner; scancel ends it all."""
    cluster.wait_reachable()
    first, second = statuses(cluster)
    assert (first["node"], second["node"]) == ("n1", "n2")
    uri = first["libvirt_uri"]
    assert uri.startswith(f"qemu:///session?socket=/var/tmp/pvc/{cluster.job_id}/virt/")
    for pattern in ("libvirtd", "qemu-system"):
        (pid,) = find_pids(tb, "n1", pattern)
        shown = tb.root(["cat", f"/proc/{pid}/cgroup", f"/proc/{pid}/status"], "n1")
        assert f"job_{cluster.job_id}/" in shown
        assert f"\nUid:\t{Path(tb.home()).stat().st_uid}\t" in shown

    assert tb.run(["pvc", "monitor", "-j", str(cluster.job_id), "--uri", "vm0"]).out.strip() == uri
    virsh = ["virsh", "-q", "-c", uri]
    assert tb.run([*virsh, "list", "--name"], node="n1").out.split() == ["vm0"]
    tb.run([*virsh, "suspend", "vm0"], node="n1")
    wait_until(lambda: statuses(cluster)[0]["phase"] == "paused", 120, "a pause by virsh was not seen")
    tb.run([*virsh, "resume", "vm0"], node="n1")
    wait_until(lambda: statuses(cluster)[0]["phase"] == "reachable", 120, "a resume by virsh was not seen")
    assert "Permission denied" in tb.run([*virsh, "list"], user="teacher", node="n1", check=False).err
    assert "vm0" in tb.run(["pvc", "monitor", "-j", str(cluster.job_id), "vm0", "info", "name"]).out

    tb.run(["scancel", str(cluster.job_id)])
    cluster.end()
    assert_over(tb, before)


def test_kill_9_of_the_supervisor(tb: Testbed, before: dict[str, Snapshot], cluster: Cluster) -> None:
    """Libvirt's QEMU ends with its supervisor, as any other; the other node's VM goes on."""
    (victim,) = find_pids(tb, "n1", "pvc supervise")
    tb.root(["kill", f"-{signal.SIGKILL}", str(victim)], "n1")
    wait_until(lambda: not find_pids(tb, "n1", "qemu-system|libvirtd"), 120, "they outlived their supervisor")
    assert find_pids(tb, "n2", "qemu-system")
    tb.run(["pvc", "stop", "-j", str(cluster.job_id)], check=False)
    cluster.end()
    assert_over(tb, before)
