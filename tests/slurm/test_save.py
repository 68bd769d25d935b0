# SPDX-License-Identifier: Apache-2.0
"""A VM's disk as an image, the way a user makes and uses it; and saves that are killed or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.slurm.clusters import Cluster
from tests.slurm.guest import Console
from tests.slurm.testbed import Snapshot, Testbed, find_pids
from tests.waits import wait_until


@pytest.fixture
def cluster(tb: Testbed, small: str, before: dict[str, Snapshot]) -> Iterator[Cluster]:
    del before  # taken before the cluster is
    made = Cluster(tb, f"{small}:2", "-N", "2").wait_running()
    yield made
    made.close()


def test_what_a_guest_wrote_is_in_the_next_cluster(tb: Testbed, cluster: Cluster, before: dict[str, Snapshot]) -> None:
    cluster.wait_reachable()
    job = f"-j{cluster.job_id}"
    with Console(tb, cluster.job_id, "vm1") as console:
        console.type("")
        fill = "dd if=/dev/urandom of=/dev/vda bs=1M seek=2 count=16 2>/dev/null; "
        assert console.run(f"{fill}echo FROM-VM1 | dd of=/dev/vda bs=1M conv=notrunc,fsync", 120)[0] == 0

    # The site's images are not the student's to change, so the new one is in the student's own repository, whole.
    refused = tb.run(["pvc", "save", job, "vm1"], check=False)
    assert (refused.code, "that you may not write" in refused.err) == (2, True)
    assert "pvc save vm1 small-of-mine" in refused.err
    assert tb.run(["pvc", "save", job, "vm1", "mine"], user="teacher", check=False).code == 4
    saved = tb.run(["pvc", "save", job, "vm1", "mine"], timeout=300)
    assert "were not frozen" in saved.err
    assert saved.out.startswith("saved vm1 as user:mine@1: qcow2, a disk of 64M")
    shown = json.loads(tb.run(["pvc", "image", "show", "mine", "--json"]).out)
    assert len(shown["below"]) == 1
    assert "layer 1" in tb.run(["pvc", "image", "show", "mine"]).out

    # Killed in the middle, a save leaves no image, and QEMU nothing to do.
    killed = tb.start(["pvc", "save", job, "vm1", "killed", "--speed", "1M"])
    wait_until(lambda: "backup" in tb.run(["pvc", "monitor", job, "vm1", "info block-jobs"]).out, 120, "no job runs")
    pids = find_pids(tb, "login", "save.*killed")
    tb.root(["kill", "-9", *map(str, pids)], "login")
    killed.communicate(timeout=300)
    none = "No active jobs"
    wait_until(lambda: none in tb.run(["pvc", "monitor", job, "vm1", "info block-jobs"]).out, 120, "the job goes on")
    names = json.loads(tb.run(["pvc", "image", "list", "--json"]).out)
    assert "killed" not in {each["name"] for each in names}
    tb.run(["pvc", "repo", "gc", "user"])
    assert not list((tb.home() / ".pvc" / "images" / ".tmp").iterdir())
    assert "user:mine@1: ok" in tb.run(["pvc", "repo", "verify", "user"]).out
    tb.run(["pvc", "stop", job])
    cluster.end()

    again = Cluster(tb, "mine").wait_running()
    try:
        again.wait_reachable()
        with Console(tb, again.job_id, "vm0") as console:
            console.type("")
            assert "FROM-VM1" in console.run("head -c 8 /dev/vda")[1]
            console.run("echo FROM-VM0 | dd of=/dev/vda bs=1M conv=notrunc,fsync")
        saved = tb.run(["pvc", "save", f"-j{again.job_id}", "vm0", "--json"], timeout=300)
        made = json.loads(saved.out)
        assert (made["uri"], len(made["image"]["below"]), made["frozen"]) == ("user:mine@2", 2, False)
        assert made["image"]["disk"]["size"] < 2 << 20
    finally:
        again.close()
    tb.run(["pvc", "image", "delete", "--yes", "--all", "mine"])
    tb.wait_no_jobs()
    tb.assert_clean(before)
