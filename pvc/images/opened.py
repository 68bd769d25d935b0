# SPDX-License-Identifier: Apache-2.0
"""Files of images, kernels and firmware: opened at each start of a VM, and looked at by what QEMU gets.

They are in repositories of others, who may exchange them or write to them at any moment, also while we look. So nothing
rests on an earlier look, and three things together leave no gap:

* A file is opened once, through no link of its repository's owner, and what is checked is that descriptor. QEMU gets
  it as /dev/fdset/N, a kernel as /proc/self/fd/N: no name is resolved again. The format is said, and what each layer
  rests on, too, so QEMU's only reason to open another file is a qcow2's header that names one for its data.
* QEMU reads a header once, when it opens the node, and stands still then (-S). It has to say now whether a header named
  such a file: whatever the owner wrote between our look and QEMU's, no byte has reached the guest, and QEMU ends. No
  option could forbid it beforehand: QEMU refuses a ``data-file`` for an image that has none (block/qcow2.c).
* What is written to the file later are offsets within it: tables and data are read from this descriptor alone.

libvirt opens disks by their names. QEMU must have the very files that we hold, each as often as its disks need it.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pvc.beneath import open_beneath
from pvc.errors import GuestError
from pvc.files import open_own
from pvc.host.qemuimg import is_own
from pvc.images import header
from pvc.images.chain import name_below
from pvc.images.image import Format
from pvc.images.scratch import is_sha256
from pvc.model.vm import Disk, DiskFile, Firmware, VmTemplate

_CHUNK = 4 << 20
HINT = "whoever owns the repository can change its files; look at it: pvc image verify"


@dataclass
class HeldImages:
    """Open files by the paths that the template knows. ``uses``: how many of QEMU's nodes read each inode."""

    fds: dict[str, int] = field(default_factory=dict)
    boot: tuple[str, ...] = ()
    uses: Counter[tuple[int, int]] = field(default_factory=Counter)

    @property
    def layer_fds(self) -> dict[str, int]:
        """All but kernel and initrd."""
        return {path: fd for path, fd in self.fds.items() if path not in self.boot}

    @property
    def boot_fds(self) -> dict[str, int]:
        """Those of kernel and initrd alone."""
        return {path: self.fds[path] for path in self.boot}

    def fill(self, template: VmTemplate, firmware: Firmware | None = None) -> None:
        """Open all that a VM reads and does not own; whatever happens, ``release`` closes it.

        :raise GuestError: a file cannot be opened, or is not what it should be; names it.
        """
        for disk in (template.disk, *(each.base for each in template.disks)):
            if disk is not None:
                self.open_layers(disk)
        if template.boot is not None:
            self.boot = tuple(path for path in (template.boot.kernel, template.boot.initrd) if path is not None)
            for path in self.boot:
                self._open(path)
        if firmware is not None:
            fd = _open_firmware(firmware)
            if firmware.code in self.fds:  # a file that is something else, too
                os.close(self.fds.pop(firmware.code))
            self.fds[firmware.code] = fd
            self.uses[inode_of(fd)] += 1

    def open_layers(self, disk: Disk) -> None:
        """Open the layers of a disk, and look at each header.

        :raise GuestError: as ``fill``.
        """
        below: DiskFile | None = None
        for each in disk.files:
            fd = self._open(each.path)
            self.uses[inode_of(fd)] += 1
            check_layer(fd, each, below)
            below = each

    def _open(self, path: str) -> int:
        if path not in self.fds:
            try:
                self.fds[path] = open_image(path)
            except OSError as err:
                raise GuestError(f"{path} cannot be used on this node: {err.strerror or err}", hint=HINT) from err
        return self.fds[path]

    def release(self) -> None:
        """Close all; QEMU has its own copies."""
        while self.fds:
            os.close(self.fds.popitem()[1])


def check_layer(fd: int, layer: DiskFile, below: DiskFile | None) -> None:
    """:raise GuestError: the open file is not the disk that the template says, or names other files."""
    backing = None if below is None else header.Backing(_name_of(below.path), Format(below.format))
    try:
        head = os.pread(fd, header.PROBE_SIZE, 0)
        header.parse_header(head, os.fstat(fd).st_size, Format(layer.format), backing=backing)
    except (header.HeaderError, OSError) as err:
        raise GuestError(f"{layer.path} is refused: {err}", hint=HINT) from None


def _name_of(path: str) -> str:
    name = Path(path).name
    return name_below(name) if is_sha256(name) else path


def open_image(path: str) -> int:
    """Open a file of a repository through no link of its owner's, or another image; a regular file it must be.

    A file of the user's own in a repository of somebody else's may be a second name of a private one, where
    fs.protected_hardlinks is off: files of repositories are for all to read.

    :raise OSError: it cannot be opened, or leads elsewhere.
    """
    place = Path(path)
    inside = ("data", place.name[:2], place.name)
    if is_sha256(place.name) and place.parts[-3:] == inside:
        base, name = place.parents[2], "/".join(inside)
    else:
        base, name = place.parent, place.name
    directory = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = open_beneath(directory, name)
        try:
            facts, owner = os.fstat(fd), os.fstat(directory).st_uid
            if not stat.S_ISREG(facts.st_mode):
                raise PermissionError(f"{path} is no file")
            if facts.st_uid == os.geteuid() and owner not in {0, facts.st_uid} and not facts.st_mode & 0o004:
                raise PermissionError(f"{path} is a private file of yours, in a directory of uid {owner}")
            os.set_blocking(fd, True)
        except BaseException:
            os.close(fd)
            raise
    finally:
        os.close(directory)
    return fd


def private_layers(disk: Disk, directory: Path, exits: ExitStack) -> list[tuple[int, str]]:
    """The layers of a disk, open and with their formats, for a program that cannot be asked what it has opened.

    A qcow2 to which others can write is copied into ``directory``, and the copy is looked at.

    :raise GuestError: one cannot be opened, or is not what it should be.
    :raise OSError: there is no room for a copy.
    """
    held = HeldImages()
    exits.callback(held.release)
    held.open_layers(disk)
    found, below = [], None
    for each in disk.files:
        fd = held.fds[each.path]
        if each.format == Format.QCOW2 and not is_own(fd):
            fd = _copy(fd, directory, exits)
            check_layer(fd, each, below)
        found.append((fd, each.format))
        below = each
    return found


def open_file(path: Path, exits: ExitStack) -> int:
    """Open a file of one's own until ``exits`` unwinds.

    :raise OSError: it cannot be opened, or is not.
    """
    fd = open_own(path)
    exits.callback(os.close, fd)
    return fd


def _copy(source: int, directory: Path, exits: ExitStack) -> int:
    copy = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - it is there until ``exits`` unwinds
    exits.enter_context(copy)
    with os.fdopen(os.dup(source), "rb") as stream:
        stream.seek(0)
        shutil.copyfileobj(stream, copy, _CHUNK)
    copy.flush()
    return copy.fileno()


def _open_firmware(firmware: Firmware) -> int:
    """Firmware is the node's, by links of its distribution's: nobody else may write to it."""
    try:
        fd = open_image(os.path.realpath(firmware.code))
    except OSError as err:
        raise GuestError(f"firmware {firmware.code} cannot be opened") from err
    try:
        facts = os.fstat(fd)
        if facts.st_uid not in {0, os.geteuid()} or facts.st_mode & 0o002:
            raise GuestError(f"firmware {firmware.code}: others can write to it")
        if firmware.format == "qcow2":
            check_layer(fd, DiskFile(firmware.code, firmware.format), None)
    except BaseException:
        os.close(fd)
        raise
    return fd


def inode_of(fd: int) -> tuple[int, int]:
    """What tells an open file from all others of this node."""
    facts = os.fstat(fd)
    return facts.st_dev, facts.st_ino
