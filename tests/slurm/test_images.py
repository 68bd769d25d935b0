# SPDX-License-Identifier: Apache-2.0
"""Images that nobody here made, the way a user meets them: pvc image import, pvc alloc, and what status says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.guests import GuestFiles, alpine_image, foreign_debian
from tests.slurm.clusters import Cluster
from tests.slurm.testbed import Snapshot, Testbed
from tests.waits import wait_until

# An emulated distribution on a busy machine; how soon it answers is for the benchmarks.
BOOT_S = 600.0


def import_as_student(tb: Testbed, guest: GuestFiles) -> None:
    home = tb.home()
    made = []
    for path in (guest.disk, guest.kernel, guest.initrd):
        copy = home / f"{guest.name}-{path.name}"
        shutil.copy(path, copy)
        owner = home.stat()
        shutil.chown(copy, owner.st_uid, owner.st_gid)
        made.append(copy)
    inside = [Path("/home/student") / copy.name for copy in made]
    local = replace(guest, disk=inside[0], kernel=inside[1], initrd=inside[2])
    tb.run(["pvc", *local.import_argv()], timeout=300)
    for copy in made:
        copy.unlink()


def status(tb: Testbed, cluster: Cluster) -> dict[str, object]:
    done = tb.run(["pvc", "status", "--json", "-j", str(cluster.job_id)])
    found: dict[str, object] = json.loads(done.out)["vms"][0]
    return found


def test_alpine_runs_has_a_console_and_no_ssh(tb: Testbed, before: dict[str, Snapshot]) -> None:
    import_as_student(tb, alpine_image())
    cluster = Cluster(tb, "alpine", "-m", "256M").wait_running()
    try:
        log = ["pvc", "console", "--log", "vm0", "-j", str(cluster.job_id)]
        # No getty is on its serial line; the init system talks there.
        wait_until(lambda: "OpenRC" in tb.run(log).out, BOOT_S, "nothing of OpenRC on the console")
        # Nor does it configure its network: nothing answers, and nothing refuses.
        vm = status(tb, cluster)
        assert (vm["phase"], vm["detail"]) == ("booting", "runs, no ssh answer yet")
        assert vm["reachable"] is None
        waited = tb.run(["pvc", "wait", "--timeout", "1s", "-j", str(cluster.job_id)], check=False)
        assert waited.code == 7
        assert "vm0: has no ssh yet (runs, no ssh answer yet)" in waited.err
    finally:
        cluster.close()
    tb.wait_no_jobs()
    tb.assert_clean(before)


@pytest.mark.parametrize("suite", ["trixie"])
def test_a_debian_of_another_release_answers_ssh(tb: Testbed, before: dict[str, Snapshot], suite: str) -> None:
    import_as_student(tb, foreign_debian(suite=suite))
    cluster = Cluster(tb, f"foreign-{suite}", "-m", "640M").wait_running()
    try:
        tb.run(["pvc", "wait", "--timeout", f"{BOOT_S:g}s", "-j", str(cluster.job_id)], timeout=BOOT_S + 60)
        done = tb.run(["pvc", "ssh", "-j", str(cluster.job_id), "vm0", "--", "hostname; cat /etc/os-release"])
        assert done.out.startswith("vm0\n")
        assert f"VERSION_CODENAME={suite}" in done.out
        assert status(tb, cluster)["phase"] == "reachable"
    finally:
        cluster.close()
    tb.wait_no_jobs()
    tb.assert_clean(before)
