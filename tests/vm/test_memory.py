# SPDX-License-Identifier: Apache-2.0
"""What QEMU needs besides its guest's memory stays what Slurm was asked for, however long the day."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from savers import Saver, make_base, started

from pvc.images.repository import Repositories
from pvc.model.site import Repository
from pvc.model.vm import Accel, Mount
from pvc.plan.qemumemory import SUPERVISOR_OVERHEAD_MIB, guest_memory_mib
from tests.waits import wait_until

pytestmark = pytest.mark.vm
MIB = 1024
SAVES = 12
DISK_MIB = 192


def read_beyond_kib(pid: int, guest_mib: int) -> int:
    """What a process has written to of its own, without the guest's memory: all that cannot be given back."""
    total, guest_kib = 0, guest_mib * MIB
    for block in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{pid}/smaps").read_text()):
        size, own = (int(re.findall(rf"^{key}: +(\d+) kB", block, re.MULTILINE)[0]) for key in ("Size", "Anonymous"))
        if guest_kib and guest_kib <= size < guest_kib + 4 * MIB:
            guest_kib = 0
            continue
        total += own
    assert guest_kib == 0, "the guest's memory is not found"
    return total


class Watch:
    """The most that QEMU has had beyond its guest's memory."""

    def __init__(self, pid: int, guest_mib: int) -> None:
        self.most_kib = 0
        self._pid, self._guest_mib = pid, guest_mib
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._end.wait(0.1):
            self.most_kib = max(self.most_kib, read_beyond_kib(self._pid, self._guest_mib))

    @contextmanager
    def looking(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._end.set()
            self._thread.join()


def write_without_end(at_mib: int, count: int) -> bytes:
    """A guest that writes as much at a time as its disk takes: what a save has to copy first."""
    write = f"dd if=/dev/zero of=/dev/vda bs=4M seek={at_mib // 4} count={count} oflag=direct conv=notrunc"
    return f"(while [ ! -e /stop ]; do {write}; done 2>/dev/null; echo STOP''PED) &\n".encode()


@contextmanager
def behind_bindfs(place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A directory whose file server can be made to stand still; ``place`` is where it is seen."""
    behind = place.with_name(f"{place.name}-behind")
    for each in (place, behind):
        each.mkdir()
    with subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", "bindfs", "-f", behind, place]) as server:
        try:
            wait_until(lambda: os.path.ismount(place) or server.poll() is not None, lack="bindfs has mounted nothing")
            assert server.poll() is None, "bindfs has ended"
            yield server
        finally:
            server.send_signal(signal.SIGCONT)
            subprocess.run(["umount", "-l", place], check=False)
            server.kill()


def test_a_long_day_takes_no_more_than_was_asked_for(tmp_path: Path) -> None:
    """Saves, two at once, resets, a directory over 9p and pictures of the screen, beside a guest that writes."""
    make_base(tmp_path, DISK_MIB << 20)
    repositories = [Repository(name, str(tmp_path / name / ("images" * (name == "slow")))) for name in ("site", "slow")]
    where = Repositories(repositories, home=tmp_path)
    shared = tmp_path / "shared"
    shared.mkdir()
    mounts = (Mount(str(shared), "/data", tag="pvc0"),)
    with (
        behind_bindfs(tmp_path / "slow") as server,
        started(tmp_path / "a", where, "base", cpus=2, mounts=mounts, remote_display="vnc") as saver,
    ):
        allocated = saver.cluster.spec.memory_mib[0]
        guest_mib = guest_memory_mib(allocated, Accel.TCG, disks=True)
        (pid,) = saver.cluster.qemu_pids()
        watch = Watch(pid, guest_mib)
        with watch.looking():
            for number in range(2):
                work(saver, number)
            daily_mib = watch.most_kib / MIB
            stand_still(saver, server, watch)
        assert saver.cluster.qemu_pids() == [pid]
    print(f"{daily_mib:.0f} MiB beyond the guest's at most, {watch.most_kib / MIB:.0f} with a server that stands still")
    assert watch.most_kib / MIB <= allocated - guest_mib - SUPERVISOR_OVERHEAD_MIB


def work(saver: Saver, number: int) -> None:
    """One life of the guest: half of all saves, and whatever else QEMU does for it."""
    with saver.shell() as console:
        files = "for i in 1 2 3; do dd if=/dev/zero of=/data/$i bs=1M count=16; cat /data/$i; done >/dev/null"
        console.send(f"mkdir -p /data; mount -t 9p -o trans=virtio,msize=524288 pvc0 /data; {files}\n".encode())
        for at in (4, 20, 36, 52):
            console.send(write_without_end(at, 2))
        console.send(b"echo BE''GUN\n")
        console.wait(b"BEGUN", 300)
        for each in range(SAVES // 2 - 2):
            saver.save(f"day-{number}", full=bool(each % 2))
        with ThreadPoolExecutor(2) as both:
            slow, fast = (both.submit(saver.save, f"day-{number}-{at}", speed=at) for at in (16 << 20, 0))
            assert {slow.result().found.image.revision, fast.result().found.image.revision} == {1}
        assert saver.cluster.ask(op="screenshot", vm=0)["ok"]
        console.send(b"touch /stop\n")
        console.wait(b"STOPPED", 120)
        console.data = b""
        saver.ask_qemu("system_reset")
        console.wait_prompt()


def stand_still(saver: Saver, server: subprocess.Popen[bytes], watch: Watch) -> None:
    """Two saves whose file server does not answer for a while, beside a guest that goes on writing."""
    saver.save("slow:first")
    with saver.shell() as console, ThreadPoolExecutor(2) as both:
        write = f"dd if=/dev/zero of=/dev/vda bs=4M seek=1 count={DISK_MIB // 4 - 2} conv=notrunc,fsync"
        console.send(f"{write}; echo FIL''LED\n".encode())
        console.wait(b"FILLED", 300)
        saves = [both.submit(saver.save, f"slow:{name}", speed=16 << 20) for name in ("one", "two")]
        try:
            wait_until(lambda: len(list((Path(saver.where.store("slow").path) / ".tmp").iterdir())) >= 2)
            wait_until(lambda: saver.ask_qemu("query-jobs"))
            server.send_signal(signal.SIGSTOP)
            for at in (4, 20, 36, 52):
                console.send(write_without_end(at, 2))
            wait_steady(watch)
        finally:
            server.send_signal(signal.SIGCONT)
        for each in saves:
            each.result()
        console.send(b"touch /stop\n")
        console.wait(b"STOPPED", 120)


def wait_steady(watch: Watch) -> None:
    """Until QEMU's memory has not grown for some looks, a quarter of a second each."""
    seen: list[int] = []

    def is_steady() -> bool:
        seen.append(watch.most_kib)
        return len(seen) > 24 and seen[-1] - seen[-24] < MIB

    wait_until(is_steady, lack="QEMU's memory grows without end")
