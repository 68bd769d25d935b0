# SPDX-License-Identifier: Apache-2.0
"""Persistent drives on file systems of which nobody knows whether their locks reach other nodes: FUSE."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pvc.errors import GuestError
from pvc.host.mounts import find_mount
from pvc.model.drive import LEASE, Lease, Mmp, PersistentDrive, Reach
from pvc.plan.drives import find_reach
from tests.unit.supervisor.test_drives import hold
from tests.waits import wait_until

pytestmark = pytest.mark.host

MIB = 1 << 20


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[Path]:
    """A directory behind bindfs, which locks for all in its own name: everybody gets every lock."""
    (tmp_path / "behind").mkdir()
    mount = tmp_path / "fuse"
    mount.mkdir()
    # In the foreground and bound to us: it unmounts when it is ended, and ends when a test is killed.
    argv = ["setpriv", "--pdeathsig", "TERM", "--", "bindfs", "-f", tmp_path / "behind", mount]
    with subprocess.Popen(argv, start_new_session=True) as bindfs:
        wait_until(lambda: os.path.ismount(mount) or bindfs.poll() is not None, lack="bindfs has mounted nothing")
        assert bindfs.poll() is None, "bindfs has ended"
        yield mount
        bindfs.terminate()
    assert not os.path.ismount(mount)


def reach_of(path: Path) -> Reach:
    fd = os.open(path, os.O_RDONLY)
    try:
        facts = find_mount(fd)
    finally:
        os.close(fd)
    assert facts is not None
    return find_reach(facts.fstype, facts.options)


def test_what_is_mounted_where(fuse: Path, tmp_path: Path) -> None:
    assert reach_of(fuse) is Reach.NODE
    small = tmp_path / "a place\twith blanks"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "pvc-test", small], check=True)
    try:
        assert reach_of(small) is Reach.ALL
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize("mmp", [Mmp.YES, Mmp.CLUSTER])
def test_leases_count_where_locks_may_not(fuse: Path, mmp: Mmp) -> None:
    drive = PersistentDrive(os.fspath(fuse / "d"), size=MIB, mmp=mmp)
    held = hold(drive)
    for other in (drive, replace(drive, mmp=Mmp.YES)):
        with pytest.raises(GuestError, match=r"may be in use by vm0 of .*: cannot ask Slurm"):
            hold(other, 1, job=13, cluster="two")
    if mmp is Mmp.CLUSTER:
        hold(drive, 1).release()
    held.release()
    hold(drive, job=13, cluster="two").release()
    assert os.listdir(fuse) == ["d"]


def test_a_free_lock_proves_nothing_about_another_node(fuse: Path) -> None:
    drive = PersistentDrive(os.fspath(fuse / "d"), size=MIB)
    hold(drive).release()
    grave = fuse / ".d.pvc-lease.0123456789abcdef"
    theirs = Lease("bob", os.environ.get("SLURM_CLUSTER_NAME", ""), 5, "c5", "n9", "another boot", "vm3", 1e9, Mmp.YES)
    # Of this node, before it booted: certain. Of another node: there is no Slurm here that could tell.
    grave.write_text(LEASE.dumps(replace(theirs, node="n1")))
    hold(drive).release()
    assert os.listdir(fuse) == ["d"]
    grave.write_text(LEASE.dumps(theirs))
    with pytest.raises(
        GuestError, match=r"may be in use by vm3 of bob's job 5 on node n9.*: cannot ask Slurm"
    ) as caught:
        hold(drive)
    assert f"then: rm {grave}" in (caught.value.hint or "")
    grave.write_text(LEASE.dumps(replace(theirs, slurm="elsewhere")))
    with pytest.raises(GuestError, match=r"its job is of another Slurm cluster, elsewhere"):
        hold(drive)
    grave.unlink()
    hold(drive).release()
