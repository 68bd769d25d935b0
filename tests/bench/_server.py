# SPDX-License-Identifier: Apache-2.0
"""A file system of its own as the file server, which counts what is read from it; and starts of VMs that read."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pvc.images.cache import NodeCache, Outcome

_CHUNK = 1 << 20


@dataclass
class FileServer:
    """Where it is mounted, and its block device."""

    path: Path
    device: str

    def read_bytes(self) -> int:
        """Bytes that its disk was asked for: Documentation/block/stat.rst, sectors of 512."""
        return int(Path(f"/sys/block/{self.device}/stat").read_text().split()[2]) * 512


@contextmanager
def file_server(scratch: Path, size: int) -> Iterator[FileServer]:
    """An ext4 of ``size`` bytes on a loop device."""
    image, mount = scratch / "server.img", scratch / "server"
    with image.open("wb") as stream:
        stream.truncate(size)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", image], check=True)
    mount.mkdir()
    found = subprocess.run(["losetup", "--find", "--show", image], check=True, capture_output=True, text=True)
    device = found.stdout.strip()
    try:
        subprocess.run(["mount", device, mount], check=True)
        try:
            yield FileServer(mount, os.path.basename(device))
        finally:
            subprocess.run(["umount", mount], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def put_image(server: FileServer, data: bytes) -> Path:
    """An image as a repository has it."""
    path = server.path / hashlib.sha256(data).hexdigest()
    path.write_bytes(data)
    forget(path)
    return path


def forget(path: Path) -> None:
    """As on a node whose memory others have used meanwhile."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass
class Starts:
    """Jobs that start VMs on one node: each VM reads the first ``read`` bytes of an image."""

    image: Path
    read: int
    cache: NodeCache | None
    outcomes: list[Outcome] = field(default_factory=list)
    fill_s: list[float] = field(default_factory=list)

    def wave(self, jobs: int, vms: int) -> float:
        """So many jobs with so many VMs at once; until all VMs have read: seconds."""
        fillers = [threading.Thread(target=self._fill) for _ in range(jobs if self.cache is not None else 0)]
        held = None if self.cache is None else self.cache.hold(self.image.name, self.image.stat().st_size)
        path = self.image if held is None or self.cache is None else self.cache.path_of(self.image.name)
        readers = [threading.Thread(target=self._boot, args=[path]) for _ in range(jobs * vms)]
        begin = time.perf_counter()
        for thread in (*(fillers if held is None else ()), *readers):
            thread.start()
        for thread in readers:
            thread.join()
        end = time.perf_counter()
        for thread in fillers if held is None else ():
            thread.join()
        if held is not None:
            os.close(held)
        return end - begin

    def _boot(self, path: Path) -> None:
        with path.open("rb", buffering=0) as stream:
            left = self.read
            while left > 0:
                left -= len(stream.read(_CHUNK))

    def _fill(self) -> None:
        assert self.cache is not None
        begin = time.perf_counter()
        self.outcomes.append(self.cache.fill(self.image, self.image.name, lambda: False))
        if self.outcomes[-1] is Outcome.FILLED:
            self.fill_s.append(time.perf_counter() - begin)
