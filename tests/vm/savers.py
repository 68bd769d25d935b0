# SPDX-License-Identifier: Apache-2.0
"""A cluster whose disks are saved, as its owner's command sees it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from guests import build_guest
from harness import NODE, Console, guest_template, supervised

from pvc.images.repository import FoundImage, Repositories
from pvc.images.transfer import Incoming
from pvc.model.cluster import ClusterRecord, NodeEndpoint
from pvc.model.event import EventKind
from pvc.model.site import Repository
from pvc.model.vm import Disk, DiskFile, ExtraDisk, Phase
from pvc.ops.control import Control
from pvc.ops.jobdir import JobDir
from pvc.ops.save import Saved, Wish, save

SIZE = 64 << 20


def quiet(*_: object) -> None:
    """Progress for nobody."""


def make_base(base: Path, size: int = SIZE) -> Repositories:
    """A repository "site" with a raw image "base", which has a mark at its start."""
    found = Repositories([Repository("site", os.fspath(base / "site"))], home=base)
    disk = base / "base.raw"
    disk.write_bytes(b"MARK-0 of the base".ljust(510, b".") + b"\x55\xaa")
    os.truncate(disk, size)
    guest = build_guest()
    found.import_file(Incoming(disk, "base", kernel=guest.kernel, initrd=guest.initrd, append=guest.append), quiet)
    return found


class Saver:
    """A cluster of one VM, started from an image, and what its owner's commands see of it."""

    def __init__(
        self,
        base: Path,
        where: Repositories,
        image: str,
        *extra: ExtraDisk,
        cpus: int = 1,
        **changes: Any,
    ) -> None:
        base.mkdir()
        self.where = where
        found = where.locate(image)
        where.verify(found)
        store = where.store(found.repository)
        files = [DiskFile(os.fspath(store.blob_path(each.blob)), each.format.value) for each in found.image.layers]
        disk = Disk(files[-1].path, files[-1].format, found.image.size, tuple(files[:-1]), found.uri)
        template = guest_template(build_guest(), disk, disks=extra, **changes)
        self._stack = ExitStack()
        self.cluster = self._stack.enter_context(supervised(base, template, cpus=cpus))
        listening = self.cluster.wait_event(EventKind.LISTENING)
        assert listening.host is not None
        assert listening.port is not None
        self.endpoint = NodeEndpoint(NODE, listening.host, listening.port)
        jobdir = JobDir(base / "job")
        jobdir.path.mkdir()
        jobdir.write_keys(self.cluster.keys)
        spec = self.cluster.spec
        record = ClusterRecord(12, "test", "tiny", 0.0, "here", 1, spec.placement, spec.groups, (self.endpoint,))
        self.control = Control(record, jobdir)
        self.cluster.wait_phase(0, Phase.BOOTING)
        # Of its own images, which it was given as open files.
        self._sets = self.ask_qemu("query-fdsets")

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

    def ask_qemu(self, command: str, **arguments: Any) -> Any:
        """What QEMU answers."""
        asked = {"execute": command, **({"arguments": arguments} if arguments else {})}
        return self.cluster.ask(op="monitor", vm=0, qmp=asked)["return"]

    def is_clean(self) -> bool:
        """Whether QEMU has nothing left of a save, and runs the guest."""
        nodes = [each["node-name"] for each in self.ask_qemu("query-named-block-nodes")]
        running = self.ask_qemu("query-status")["status"] == "running"
        nothing = not self.ask_qemu("query-jobs") and self.ask_qemu("query-fdsets") == self._sets
        names = [*nodes, *(each["name"] for each in self.ask_qemu("qom-list", path="/objects"))]
        return running and nothing and not any(name.startswith("save-") for name in names)

    def close(self) -> None:
        """End it."""
        self._stack.close()


@contextmanager
def started(
    base: Path, where: Repositories, image: str, *extra: ExtraDisk, cpus: int = 1, **changes: Any
) -> Iterator[Saver]:
    """``changes``: to the small guest's template."""
    saver = Saver(base, where, image, *extra, cpus=cpus, **changes)
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
