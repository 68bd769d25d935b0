# SPDX-License-Identifier: Apache-2.0
"""Disks of running VMs as images: what a guest wrote is there for the next cluster, over a chain of three."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import HYPERVISORS, Console
from savers import SIZE, Saver, make_base, quiet, read_whole, started, write

from pvc.errors import UsageError
from pvc.images.verify import verify_store
from pvc.model.vm import ExtraDisk
from pvc.ops.save import Wish, save
from pvc.plan.qemumemory import ENVIRONMENT
from tests.waits import PATIENCE_S

pytestmark = pytest.mark.vm


def test_saves_on_saves(tmp_path: Path) -> None:
    where = make_base(tmp_path)
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
        # The speed is that of what is copied, however large the disk is.
        with ThreadPoolExecutor(1) as one:
            full = one.submit(saver.save, "alone", full=True, speed=SIZE // 1000).result(PATIENCE_S)
        assert saver.is_clean()
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


@pytest.mark.parametrize("hypervisor", HYPERVISORS)
def test_one_moment_and_more_disks(tmp_path: Path, hypervisor: str) -> None:
    where = make_base(tmp_path)
    extra = ExtraDisk(None, 32 << 20)
    with started(tmp_path / "a", where, "base", extra, hypervisor=hypervisor) as saver, saver.shell() as console:
        check_environment(saver)
        check_moment(saver, console, tmp_path)
        check_more_disks(saver, console, tmp_path)


def check_environment(saver: Saver) -> None:
    """What keeps QEMU's memory together is in it, whoever has started it."""
    (pid,) = saver.cluster.qemu_pids()
    words = Path(f"/proc/{pid}/environ").read_text().split("\0")
    assert {f"{name}={value}" for name, value in ENVIRONMENT.items()} <= set(words)


def check_moment(saver: Saver, console: Console, base: Path) -> None:
    """A guest that counts at the end of its disk, then at the start: no moment has a start that is ahead."""
    console.send(b"dd if=/dev/urandom of=/dev/vda bs=1M seek=1 count=32 conv=notrunc,fsync; echo FIL''LED\n")
    console.wait(b"FILLED", 120)
    count = "for at in 62 0; do echo N$i. | dd of=/dev/vda bs=1M seek=$at conv=notrunc,fsync 2>/dev/null; done"
    # Not by kill and wait: the shell of BusyBox 1.35 waits for ever, at times, for a job that a signal has ended.
    loop = f"while [ ! -e /stop ]; do i=$((i+1)); {count}; [ $i = 100005 ] && echo COUN''TING; done"
    console.send(f"(i=100000; {loop}; echo STOP''PED) &\n".encode())
    console.wait(b"COUNTING")
    found = saver.save("moment", speed=16 << 20).found
    console.send(b"touch /stop\n")
    console.wait(b"STOPPED")
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
    # Enough for a save that takes its time, so that it tells how far it is.
    console.send(b"dd if=/dev/urandom of=/dev/vdc bs=1M seek=8 count=2 conv=notrunc,fsync; echo MO''RE\n")
    console.wait(b"MORE")
    told: list[tuple[str, int]] = []
    wish = Wish("vm0", 0, disk=1, image="slow", speed=1 << 20)
    save(saver.control, saver.endpoint, wish, saver.where, "me", lambda what, _, total: told.append((what, total)))
    # A speed is that of what the disk has: its holes are no bytes.
    assert [total for what, total in told if what.startswith("disk")][-1] < 4 << 20
