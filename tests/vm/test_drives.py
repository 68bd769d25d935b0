# SPDX-License-Identifier: Apache-2.0
"""Persistent drives in real VMs: what guests write stays, and one VM writes at a time, whoever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from guests import build_guest
from harness import HYPERVISORS, Console, guest_template, is_alive, supervised

from pvc.model.cluster import ClusterSpec
from pvc.model.drive import Mmp, PersistentDrive
from pvc.model.vm import Phase
from tests.waits import wait_until

pytestmark = pytest.mark.vm

MIB = 1 << 20


def as_one_group(spec: ClusterSpec, count: int) -> ClusterSpec:
    """The same, with all VMs of the first template."""
    return replace(spec, groups=(replace(spec.groups[0], count=count),))


class Cluster:
    """A cluster of VMs with the same drives, each with a node's socket of its own."""

    def __init__(
        self, base: Path, name: str, *drives: PersistentDrive, count: int = 1, hypervisor: str = "qemu"
    ) -> None:
        self._orders = 0
        (base / name).mkdir()
        template = guest_template(build_guest(), drives=drives, hypervisor=hypervisor)
        self._stack = ExitStack()
        self.launched = self._stack.enter_context(
            supervised(base / name, *[template] * count, change=lambda spec: as_one_group(spec, count))
        )

    def type(self, words: str, rank: int = 0) -> str:
        """Let a guest run a command to its end; all that its console said."""
        self.launched.wait_phase(rank, Phase.BOOTING)
        self._orders += 1
        with self.launched.connect() as connection:
            console = Console(connection, rank)
            console.wait_prompt()
            # The console repeats what it said before, and what is typed.
            console.send(f"{words}; echo do''ne-{self._orders}\n".encode())
            return console.wait(f"done-{self._orders}".encode()).decode(errors="replace")

    def end(self) -> None:
        """As its launcher would, and wait."""
        assert self.launched.process.stdin is not None
        self.launched.process.stdin.close()
        self.launched.wait_end(60)

    def close(self) -> None:
        """Leave nothing, whatever the test did."""
        if self.launched.process.poll() is None:
            self.launched.process.kill()
            self.launched.process.wait()
        self._stack.close()


def write(text: str, disk: str = "vdb") -> str:
    """Until the disk has it: sync(2) sends block devices no flush, which qcow2 needs for its tables."""
    return f"echo {text} | dd of=/dev/{disk} conv=notrunc,fsync"


@pytest.mark.parametrize("hypervisor", HYPERVISORS)
def test_what_guests_write_stays_and_nobody_else_writes(tmp_path: Path, hypervisor: str) -> None:
    """Two drives of one VM, seen by their serial numbers; a second cluster is refused; the next one reads it."""
    raw = PersistentDrive(os.fspath(tmp_path / "data.raw"), size=8 * MIB, iothread=True)
    grown = PersistentDrive(os.fspath(tmp_path / "more.qcow2"), "qcow2", size=64 * MIB, bus="virtio", discard=True)
    first = Cluster(tmp_path, "one", raw, grown, hypervisor=hypervisor)
    second = None
    try:
        said = first.type(
            "cd /sys/block; for d in vd*; do echo D:$(cat $d/serial):$(cat $d/size); done; "
            f"{write('raw-data')}; {write('qcow2-data', 'vdc')}"
        )
        assert "D:drive1:16384" in said
        assert "D:drive2:131072" in said
        assert len(list(tmp_path.glob(".*.pvc-lease.*"))) == 2
        assert first.launched.ask(op="disks", vm=0)["disks"] == []  # they are no part of what pvc save saves
        second = Cluster(tmp_path, "two", raw, hypervisor=hypervisor)
        failed = second.launched.wait_phase(0, Phase.FAILED)
        owner = "root" if hypervisor == "qemu" else "nobody"
        assert f"data.raw is in use by vm0 of {owner}'s job 12 on node n1, since" in failed.detail
        assert "pvc stop -j 12" in (failed.hint or "")
        # Who is asked to go while its guest works asks it to power down first; this one has no ACPI daemon.
        first.end()
        assert not list(tmp_path.glob(".*.pvc-*"))
        assert (tmp_path / "data.raw").read_bytes().startswith(b"raw-data")
        subprocess.run(["qemu-img", "check", "-q", tmp_path / "more.qcow2"], check=True)
        assert second.launched.ask(op="order", order="start", vms=[0])["vms"][0]["error"] is None
        said = second.type("head -c 8 /dev/vdb")
        assert "raw-data" in said
    finally:
        first.close()
        if second is not None:
            second.close()


@pytest.mark.parametrize(("whom", "hypervisor"), [("qemu", "qemu"), ("supervisor", "qemu"), ("supervisor", "libvirt")])
def test_killed_while_a_guest_writes(tmp_path: Path, whom: str, hypervisor: str) -> None:
    drive = PersistentDrive(os.fspath(tmp_path / "data.qcow2"), "qcow2", size=64 * MIB)
    first = Cluster(tmp_path, "one", drive, hypervisor=hypervisor)
    try:
        first.type(f"{write('safe')}; (dd if=/dev/zero of=/dev/vdb bs=64k seek=1 count=900 &)")
        (qemu,) = first.launched.qemu_pids()
        victim = qemu if whom == "qemu" else first.launched.process.pid
        os.kill(victim, signal.SIGKILL)
        if whom == "qemu":
            first.launched.wait_phase(0, Phase.FAILED)
            wait_until(lambda: not list(tmp_path.glob(".*.pvc-*")))
        wait_until(lambda: not is_alive(qemu))
        second = Cluster(tmp_path, "two", drive, hypervisor=hypervisor)
        try:
            assert "safe" in second.type("head -c 4 /dev/vdb")
            assert len(list(tmp_path.glob(".*.pvc-*"))) == 1
        finally:
            second.close()
    finally:
        first.close()


def test_vms_of_a_cluster_share_and_have_their_own(tmp_path: Path) -> None:
    shared = PersistentDrive(os.fspath(tmp_path / "shared"), size=MIB, mmp=Mmp.CLUSTER)
    own = PersistentDrive(os.fspath(tmp_path / "own-%{vm_rank}"), size=2 * MIB)
    cluster = Cluster(tmp_path, "one", shared, own, count=2)
    try:
        for rank in (0, 1):
            cluster.type(write(f"own-{rank}", "vdc"), rank)
        cluster.type(write("for-all"))
        assert "for-all" in cluster.type("head -c 7 /dev/vdb", 1)
        cluster.end()
        assert (tmp_path / "own-0").read_bytes().startswith(b"own-0")
        assert (tmp_path / "own-1").read_bytes().startswith(b"own-1")
    finally:
        cluster.close()


def test_a_full_file_system_pauses_the_guest(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "pvc-test", small], check=True)
    cluster = Cluster(tmp_path, "one", PersistentDrive(os.fspath(small / "data"), size=32 * MIB))
    try:
        cluster.launched.wait_phase(0, Phase.BOOTING)
        with cluster.launched.connect() as connection:
            console = Console(connection, 0)
            console.wait_prompt()
            console.send(b"dd if=/dev/urandom of=/dev/vdb bs=64k count=128; sync; echo do''ne\n")
            wait_until(lambda: any("cannot be written" in each.detail for each in cluster.launched.events), 120)
            detail = cluster.launched.ask(op="status")["vms"][0]["detail"]
            assert detail.startswith(f"paused: its persistent drive {small}/data cannot be written: No space left")
            subprocess.run(["mount", "-o", "remount,size=40m", small], check=True)
            console.wait(b"done")
        cluster.end()
    finally:
        cluster.close()
        subprocess.run(["umount", small], check=True)
