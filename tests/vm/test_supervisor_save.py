"""Disks of running VMs as images: what a guest wrote is there for the next cluster, over a chain of three."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from guests import build_guest
from harness import NODE, Console, FakeNode, Launched, guest_template, make_grant, make_keys, make_spec, wait_until

from pvc.errors import GuestError, HostError, UsageError
from pvc.images.repository import FoundImage, Repositories
from pvc.images.transfer import Incoming
from pvc.images.verify import verify_store
from pvc.model.cluster import ClusterRecord, NodeEndpoint
from pvc.model.event import EventKind
from pvc.model.node import VmGrant
from pvc.model.site import Repository
from pvc.model.vm import Disk, DiskFile, ExtraDisk, Phase
from pvc.ops.control import Control
from pvc.ops.jobdir import JobDir
from pvc.ops.save import Saved, Wish, save

pytestmark = pytest.mark.vm
SIZE = 64 << 20


def quiet(*_: object) -> None:
    """Progress for nobody."""


@pytest.fixture
def where(tmp_path: Path) -> Repositories:
    """A repository with a raw image, which has a mark at its start."""
    found = Repositories([Repository("site", os.fspath(tmp_path / "site"))], home=tmp_path)
    disk = tmp_path / "base.raw"
    disk.write_bytes(b"MARK-0 of the base".ljust(510, b".") + b"\x55\xaa")
    os.truncate(disk, SIZE)
    guest = build_guest()
    found.import_file(Incoming(disk, "base", kernel=guest.kernel, initrd=guest.initrd, append=guest.append), quiet)
    return found


class Saver:
    """A cluster of one VM, started from an image, and what its owner's commands see of it."""

    def __init__(self, base: Path, where: Repositories, image: str, *extra: ExtraDisk) -> None:
        base.mkdir()
        (base / "run").mkdir()
        self.where = where
        found = where.locate(image)
        where.verify(found)
        store = where.store(found.repository)
        files = [DiskFile(os.fspath(store.blob_path(each.blob)), each.format.value) for each in found.image.layers]
        disk = Disk(files[-1].path, files[-1].format, found.image.size, tuple(files[:-1]), found.uri)
        template = guest_template(build_guest(), disk, disks=extra)
        keys = make_keys(base / "keys")
        spec = make_spec([template], keys)
        self.node = FakeNode(base / "sock", make_grant(base / "run", [VmGrant(0, (), {})]))
        self.cluster = Launched(spec, base / "sock", home=base)
        listening = self.cluster.wait_event(EventKind.LISTENING)
        assert listening.host is not None
        assert listening.port is not None
        self.endpoint = NodeEndpoint(NODE, listening.host, listening.port)
        jobdir = JobDir(base / "job")
        jobdir.path.mkdir()
        jobdir.write_keys(keys)
        record = ClusterRecord(12, "test", "tiny", 0.0, "here", 1, spec.placement, spec.groups, (self.endpoint,))
        self.control = Control(record, jobdir)
        self.cluster.wait_phase(0, Phase.BOOTING)

    @contextmanager
    def shell(self) -> Iterator[Console]:
        """The guest's shell."""
        with self.cluster.connect() as connection:
            console = Console(connection, 0)
            console.wait_prompt()
            yield console

    def save(self, image: str | None = None, **wish: Any) -> Saved:
        """As the command."""
        return save(self.control, self.endpoint, Wish("vm0", 0, image=image, **wish), self.where, "me", quiet)

    def ask_qemu(self, command: str) -> Any:
        """What QEMU answers."""
        return self.cluster.ask(op="monitor", vm=0, qmp={"execute": command})["return"]

    def is_clean(self) -> bool:
        """Whether QEMU has nothing left of a save, and runs the guest."""
        nodes = [each["node-name"] for each in self.ask_qemu("query-named-block-nodes")]
        running = self.ask_qemu("query-status")["status"] == "running"
        nothing = not self.ask_qemu("query-jobs") and not self.ask_qemu("query-fdsets")
        return running and nothing and not any(name.startswith("save-") for name in nodes)

    def close(self) -> None:
        """End it."""
        self.cluster.close()
        self.node.close()


@contextmanager
def started(base: Path, where: Repositories, image: str, *extra: ExtraDisk) -> Iterator[Saver]:
    saver = Saver(base, where, image, *extra)
    try:
        yield saver
    finally:
        saver.close()


def write(console: Console, text: str, at_mib: int, device: str = "vda") -> None:
    """Let the guest write a word, and bring it to its disk."""
    console.send(
        f"echo {text} | dd of=/dev/{device} bs=1M seek={at_mib} conv=notrunc,fsync; echo WRO''TE-{text}\n".encode()
    )
    console.wait(f"WROTE-{text}".encode())


def read_whole(where: Repositories, found: FoundImage, base: Path) -> bytes:
    """All of the disk, as any tool sees it: by the names in the headers alone."""
    out = base / "whole.raw"
    path = where.store(found.repository).blob_path(found.image.disk)
    subprocess.run(["qemu-img", "convert", "-O", "raw", path, out], check=True)
    return out.read_bytes()


def test_saves_on_saves(tmp_path: Path, where: Repositories) -> None:
    with started(tmp_path / "a", where, "base") as saver:
        with saver.shell() as console:
            write(console, "FIRST", 8)
        first = saver.save("mine")
        assert (first.found.uri, first.flattened, first.frozen) == ("site:mine@1", False, False)
        assert saver.is_clean()
        # The guest goes on, and what it writes now is in no image.
        with saver.shell() as console:
            write(console, "LATER", 9)
    image = first.found.image
    assert [each.blob for each in image.below] == [where.find("base").disk]
    assert image.disk.size < 2 << 20
    assert (image.kernel, image.append) == (where.find("base").kernel, where.find("base").append)

    with started(tmp_path / "b", where, "mine") as saver:
        with saver.shell() as console:
            for at, word in ((0, b"MARK-0"), (8, b"FIRST")):
                console.send(f"dd if=/dev/vda bs=1M skip={at} count=1 2>/dev/null | head -c 6; echo\n".encode())
                console.wait(word)
            write(console, "SECOND", 16)
        second = saver.save()
        full = saver.save("alone", full=True)
    assert second.found.uri == "site:mine@2"
    assert [each.blob for each in second.found.image.below] == [where.find("base").disk, image.disk]
    assert full.found.image.below == ()

    # Nobody needs the older names: the data stays.
    where.delete("base", every=True)
    where.delete("mine@1")
    assert where.store("site").collect().files == 0
    assert [each.problem for each in verify_store(where.store("site"), quiet)] == [None, None]
    for found in (second.found, full.found):
        whole = read_whole(where, found, tmp_path)
        assert len(whole) == SIZE
        assert whole.startswith(b"MARK-0")
        assert (whole[8 << 20 :][:6], whole[16 << 20 :][:7], whole[9 << 20 :][:5]) == (
            b"FIRST\n",
            b"SECOND\n",
            bytes(5),
        )
    with started(tmp_path / "c", where, "mine") as saver, saver.shell() as console:
        console.send(b"dd if=/dev/vda bs=1M skip=16 count=1 2>/dev/null | head -c 6; echo\n")
        console.wait(b"SECOND")


def test_one_moment_and_no_half_images(tmp_path: Path, where: Repositories) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small], check=True)
    try:
        wanted = Repositories([Repository("site", os.fspath(tmp_path / "site")), Repository("small", f"{small}/r")])
        with started(tmp_path / "a", wanted, "base", ExtraDisk(None, 32 << 20)) as saver, saver.shell() as console:
            check_moment(saver, console, tmp_path)
            check_more_disks(saver, console, tmp_path)
            check_failures(saver)
            check_kills(saver, tmp_path)
    finally:
        subprocess.run(["umount", small], check=True)


def check_moment(saver: Saver, console: Console, base: Path) -> None:
    """A guest that counts at the end of its disk, then at the start: no moment has a start that is ahead."""
    console.send(b"dd if=/dev/urandom of=/dev/vda bs=1M seek=1 count=32 conv=notrunc,fsync; echo FIL''LED\n")
    console.wait(b"FILLED", 120)
    count = "for at in 62 0; do echo N$i. | dd of=/dev/vda bs=1M seek=$at conv=notrunc,fsync 2>/dev/null; done"
    console.send(f"(i=100000; while :; do i=$((i+1)); {count}; [ $i = 100005 ] && echo COUN''TING; done) &\n".encode())
    console.wait(b"COUNTING", 60)
    found = saver.save("moment", speed=16 << 20).found
    console.send(b"kill %1; wait; echo STOP''PED\n")
    console.wait(b"STOPPED", 60)
    whole = read_whole(saver.where, found, base)
    ahead, behind = (int(whole[at << 20 :][1:7]) for at in (62, 0))
    assert ahead - behind in (0, 1)
    assert ahead > 100000


def check_more_disks(saver: Saver, console: Console, base: Path) -> None:
    """An empty disk is an image by itself, without a kernel."""
    with pytest.raises(UsageError, match="started empty"):
        saver.save(disk=1)
    with pytest.raises(UsageError, match=r"no disk 2 \(it has: 0, 1\)"):
        saver.save("x", disk=2)
    write(console, "EXTRA", 3, "vdc")
    found = saver.save("extra", disk=1).found
    assert (found.image.below, found.image.kernel, found.image.size) == ((), None, 32 << 20)
    assert read_whole(saver.where, found, base)[3 << 20 :][:6] == b"EXTRA\n"


def check_failures(saver: Saver) -> None:
    """What cannot be saved leaves neither an image nor anything in QEMU."""
    small = saver.where.store("small")
    with pytest.raises(HostError) as caught:
        saver.save("small:x")
    assert "MiB free" in str(caught.value) or "No space left" in str(caught.value)
    with pytest.raises(HostError, match="No space left on device") as caught:
        saver.save("small:x", full=True)
    assert "free space there" in (caught.value.find_hint() or "")
    assert small.list_revisions() == {}
    assert small.measure() == 0
    assert not list((small.path / ".tmp").iterdir())
    with pytest.raises(UsageError, match="numbered by the repository"):
        saver.save("x@3")
    for request in (
        {"path": "relative"},
        {"path": "/dev/null"},
        {"path": "/no/such/file"},
        {"path": "/tmp", "disk": "0"},
        {"path": "/tmp", "disk": 7},
        {"path": "/tmp", "speed": -1},
    ):
        assert saver.cluster.ask(op="save", vm=0, **request)["ok"] is False
    assert saver.is_clean()


def check_kills(saver: Saver, base: Path) -> None:
    """A caller who leaves ends the job; a supervisor that is killed ends the save with an error."""
    target = base / "target.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", target, str(SIZE)], check=True)
    request = {"op": "save", "vm": 0, "path": os.fspath(target), "full": True, "speed": 1 << 16}
    with saver.cluster.connect() as connection:
        connection.sendall(json.dumps(request).encode() + b"\n")
        assert "done" in json.loads(connection.makefile("rb").readline())
        again = saver.cluster.ask(**request)
        assert again["ok"] is False  # one at a time
    wait_until(saver.is_clean, 60)
    before = saver.where.store("site").list_revisions()

    def kill(_what: str, done: int, _total: int) -> None:
        if done:
            saver.cluster.process.kill()

    wish = Wish("vm0", 0, image="killed", speed=1 << 20)
    with pytest.raises((HostError, GuestError), match="answer"):
        save(saver.control, saver.endpoint, wish, saver.where, "me", kill)
    assert saver.where.store("site").list_revisions() == before
    assert not list((saver.where.store("site").path / ".tmp").iterdir())
