# SPDX-License-Identifier: Apache-2.0
"""Persistent drives: one writer at a time, whoever is killed and whenever; what is refused, and with which words."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pvc import codec
from pvc.errors import GuestError
from pvc.host import locks
from pvc.host.drives import publish_lease
from pvc.model.cluster import ClusterKeys, ClusterSpec, Placement
from pvc.model.drive import LEASE, Lease, Mmp, PersistentDrive
from pvc.model.node import VmGrant
from pvc.model.vm import Accel, VmTemplate
from pvc.plan.disks import plan_empty, plan_overlay
from pvc.supervisor import drives
from pvc.supervisor.drives import HeldDrives, hold_drives
from pvc.supervisor.share import VmShare
from tests.unit.images.faults import boundaries, die

MIB = 1 << 20


def hold(drive: PersistentDrive, vm: int = 0, *, job: int = 12, cluster: str = "one") -> HeldDrives:
    template = VmTemplate("t", None, None, "none", drives=(drive,))
    share = VmShare(vm, template, VmGrant(vm, (), {}), "n1", Path("/"), 1, 64, Accel.TCG, (), (), None, None)
    keys = ClusterKeys(cluster, "", "", "", "", "")
    return hold_drives(share, ClusterSpec(job, "c", "t", Placement((), ()), (), {}, (64,), Accel.TCG, (), keys))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for chance waits a little less."""
    monkeypatch.setattr(drives, "_PAUSES_S", (0.0, 0.02))


@pytest.fixture
def raw(tmp_path: Path) -> PersistentDrive:
    return PersistentDrive(os.fspath(tmp_path / "data.raw"), size=MIB)


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def test_a_drive_is_made_held_and_given_back(tmp_path: Path, raw: PersistentDrive) -> None:
    held = hold(raw)
    assert len(held.inherited) == 2
    assert os.fstat(held.fds[0].fd).st_size == MIB
    assert os.fstat(held.fds[0].fd).st_mode & 0o777 == 0o600
    assert len(names(tmp_path)) == 2
    with pytest.raises(GuestError, match=r"in use by vm0 of \S+'s job 12 on node n1, since 20") as caught:
        hold(raw, 1, job=13, cluster="two")
    assert "pvc stop -j 12" in (caught.value.hint or "")
    held.release()
    assert names(tmp_path) == ["data.raw"]
    hold(replace(raw, size=None)).release()


def test_a_link_and_a_second_name_lead_to_the_same_lock(tmp_path: Path, raw: PersistentDrive) -> None:
    held = hold(raw)
    (tmp_path / "link").symlink_to("data.raw")
    os.link(raw.path, tmp_path / "name")
    with pytest.raises(GuestError, match=r"data\.raw is in use by vm0"):
        hold(replace(raw, path=os.fspath(tmp_path / "link")), 1)
    with pytest.raises(GuestError, match="name is in use by a program that left no word"):
        hold(replace(raw, path=os.fspath(tmp_path / "name")), 1)
    held.release()


def test_a_cluster_may_share_and_no_other(tmp_path: Path, raw: PersistentDrive) -> None:
    shared = replace(raw, mmp=Mmp.CLUSTER)
    first, second = hold(shared), hold(shared, 1)
    for other in (shared, raw):
        with pytest.raises(GuestError, match=r"in use by vm[01] of"):
            hold(other, job=13, cluster="two")
    with pytest.raises(GuestError, match=r"in use by vm[01] of"):
        hold(raw, 2)  # of the same cluster, and for itself
    first.release()
    with pytest.raises(GuestError, match="in use by vm1 of"):
        hold(shared, job=13, cluster="two")
    second.release()
    alone = hold(raw, job=13)
    with pytest.raises(GuestError, match="job 13"):
        hold(shared)
    alone.release()
    assert names(tmp_path) == ["data.raw"]


def test_nobody_looks_where_nobody_shall(raw: PersistentDrive) -> None:
    free = replace(raw, mmp=Mmp.NO)
    first, second = hold(free), hold(free, job=13, cluster="two")
    first.release()
    second.release()


def test_a_child_that_lives_on_keeps_the_drive(raw: PersistentDrive) -> None:
    """As QEMU does, for a moment, when its supervisor is killed."""
    held = hold(raw)
    inside, outside = os.pipe()
    child = os.fork()
    if not child:
        os.close(outside)
        os.read(inside, 1)
        os._exit(0)
    os.close(inside)
    for fd in held.inherited:
        os.close(fd)  # the supervisor is gone, and nothing was given back
    with pytest.raises(GuestError, match="in use by vm0"):
        hold(raw, 1)
    os.close(outside)
    os.waitpid(child, 0)
    hold(raw, 1).release()


BAD = [
    ("missing", None, "raw", "cannot use persistent drive .*: No such file", "give the drive a size"),
    ("empty", b"", "raw", "its 0 bytes are no whole sectors", "truncate -s"),
    ("odd", b"x" * 513, "raw", "its 513 bytes are no whole sectors", "truncate -s"),
    ("no header", b"x" * MIB, "qcow2", "is refused: it has no qcow2 header", None),
]


@pytest.mark.parametrize(("name", "content", "form", "told", "hint"), BAD)
def test_what_is_no_drive(
    tmp_path: Path, name: str, content: bytes | None, form: str, told: str, hint: str | None
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GuestError, match=told) as caught:
        hold(PersistentDrive(os.fspath(path), form))
    assert hint is None or hint in (caught.value.find_hint() or "")
    assert names(tmp_path) == ([name] if content is not None else [])
    if content is not None:
        assert path.read_bytes() == content


@pytest.mark.parametrize("kind", ["directory", "fifo", "device"])
def test_only_files_are_drives(tmp_path: Path, kind: str) -> None:
    path = Path("/dev/null") if kind == "device" else tmp_path / "x"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(GuestError, match=r"is no file|Is a directory"):
        hold(PersistentDrive(os.fspath(path), mmp=Mmp.NO))


def write(path: Path, length: int, extents: list[tuple[int, bytes]]) -> None:
    with path.open("wb") as stream:
        for offset, data in extents:
            stream.seek(offset)
            stream.write(data)
        stream.truncate(length)


def test_a_qcow2_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.qcow2"
    drive = PersistentDrive(os.fspath(path), "qcow2")
    backed = plan_overlay("/etc/shadow", "raw", MIB)
    write(path, backed.length, [(each.offset, each.data) for each in backed.extents])
    path.chmod(0o600)
    with pytest.raises(GuestError, match="refused: it needs a backing file"):
        hold(drive)
    empty = plan_empty(MIB)
    extents = [(each.offset, each.data) for each in empty.extents]
    write(path, empty.length, [*extents, (72, (4).to_bytes(8, "big"))])  # external data file
    with pytest.raises(GuestError, match="refused: its data is in another file"):
        hold(drive)
    write(path, empty.length, extents)
    hold(drive).release()
    path.chmod(0o620)
    with pytest.raises(GuestError, match="others can write to this qcow2 file") as caught:
        hold(drive)
    assert "chmod go-w" in (caught.value.hint or "")
    assert names(tmp_path) == ["evil.qcow2"]


def test_a_raw_drive_whose_guest_wrote_a_header_stays_raw(tmp_path: Path) -> None:
    """What a guest writes never decides which files QEMU opens."""
    path = tmp_path / "disk.raw"
    backed = plan_overlay("/etc/shadow", "raw", MIB)
    write(path, MIB, [(each.offset, each.data) for each in backed.extents])
    hold(PersistentDrive(os.fspath(path))).release()


def test_a_lease_of_the_dead_is_buried_and_a_broken_one_explained(tmp_path: Path, raw: PersistentDrive) -> None:
    lease = Lease("bob", "", 5, "c5", "n9", "another boot", "vm3", 1e9, Mmp.YES)
    grave = tmp_path / ".data.raw.pvc-lease.0123456789abcdef"
    grave.write_text(LEASE.dumps(lease))
    hold(raw).release()
    assert names(tmp_path) == ["data.raw"]
    shared = replace(raw, mmp=Mmp.CLUSTER)
    grave.write_text("{")
    hold(shared).release()
    assert names(tmp_path) == ["data.raw"]


def test_the_lease_of_a_living_holder_counts_without_the_drives_lock(tmp_path: Path, raw: PersistentDrive) -> None:
    """Where locks on the drive do not help, for instance because it was replaced by another file."""
    shared = replace(raw, mmp=Mmp.CLUSTER)
    lease = publish_lease(Path(raw.path), Lease("bob", "", 5, "c5", "n9", "b", "vm3", 1e9, Mmp.YES))
    with pytest.raises(GuestError, match="in use by vm3 of bob's job 5 on node n9, since 2001-09-09"):
        hold(shared)
    lease.withdraw()
    hold(shared).release()


@pytest.mark.parametrize(
    "change", [{"user": "\x1b[2J"}, {"node": "--help"}, {"node": "n\n1"}, {"since": 1e300}, {"job_id": -1}]
)
def test_what_others_write_into_leases_reaches_no_terminal(
    tmp_path: Path, raw: PersistentDrive, change: dict[str, object]
) -> None:
    lease = Lease("bob", "", 5, "c5", "n9", "b", "vm3", 1e9, Mmp.YES)
    path = tmp_path / ".data.raw.pvc-lease.0123456789abcdef"
    path.write_text(json.dumps(codec.to_data(lease) | change))
    fd = os.open(path, os.O_RDWR)
    assert locks.try_lock(fd)
    with pytest.raises(GuestError, match="has a lease that cannot be read") as caught:
        hold(replace(raw, mmp=Mmp.CLUSTER))
    assert str(caught.value).isprintable()
    os.close(fd)
    hold(replace(raw, mmp=Mmp.CLUSTER)).release()


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_killed_at_any_call_the_drive_is_free_and_whole(tmp_path: Path, form: str) -> None:
    drive = PersistentDrive(os.fspath(tmp_path / "d"), form, size=MIB)

    def clear() -> None:
        for path in tmp_path.iterdir():
            path.unlink()

    calls = 0
    for _ in boundaries(lambda: hold(drive).release(), die, clear):
        assert {name for name in names(tmp_path) if not name.startswith(".d.pvc-lease.")} <= {"d"}
        hold(drive).release()
        assert names(tmp_path) == ["d"]
        calls += 1
    assert calls >= 6


@pytest.mark.parametrize("mmp", [Mmp.YES, Mmp.CLUSTER])
def test_another_at_any_call_never_has_it_too(tmp_path: Path, raw: PersistentDrive, mmp: Mmp) -> None:
    mine = replace(raw, mmp=mmp)

    def intrude() -> None:
        """Hold it for as long as the other goes on, unless it is the other's already."""
        try:
            hold(raw, 1, job=13, cluster="two")
        except GuestError:
            return
        (tmp_path / "intruder").touch()

    def take() -> None:
        try:
            held = hold(mine)
        except GuestError:
            return
        assert not (tmp_path / "intruder").exists()
        held.release()

    def clear() -> None:
        for path in tmp_path.iterdir():
            path.unlink()

    assert len(list(boundaries(take, intrude, clear))) >= 6


def _fight(raw: PersistentDrive, witness: Path, number: int, seed: int, tell: Callable[[bytes], object]) -> None:
    chance = random.Random(seed)
    deadline = time.monotonic() + 60
    for _ in range(30):
        if time.monotonic() > deadline:
            return
        try:
            held = hold(raw, number, job=100 + number, cluster=str(number))
        except GuestError:
            continue
        fd = os.open(witness, os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(b"!")
        tell(b".")
        if chance.random() < 0.2:
            os.kill(os.getpid(), signal.SIGKILL)
        os.close(fd)
        held.release()


def test_many_that_fight_and_die_never_meet(tmp_path: Path, raw: PersistentDrive) -> None:
    """Whoever has the drive takes a second lock that goes with its process: it must be free each time."""
    witness = tmp_path / "witness"
    witness.touch()
    inside, outside = os.pipe()
    children = []
    for number in range(6):
        child = os.fork()
        if not child:
            try:
                _fight(raw, witness, number, number, lambda data: os.write(outside, data))
            finally:
                os._exit(0)
        children.append(child)
    os.close(outside)
    said = b""
    while data := os.read(inside, 4096):
        said += data
    for child in children:
        os.waitpid(child, 0)
    assert b"!" not in said
    assert said.count(b".") >= 6
    hold(raw).release()
    assert names(tmp_path) == ["data.raw", "witness"]
