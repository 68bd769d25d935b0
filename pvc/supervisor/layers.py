# SPDX-License-Identifier: Apache-2.0
"""QEMU is asked, before its guest runs, whether it has opened the files that were looked at and no other."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress

from pvc.errors import GuestError
from pvc.images.opened import HINT, HeldImages, inode_of
from pvc.plan.qemudrives import find_moved
from pvc.supervisor.driver import Machine


async def check_nodes(machine: Machine, images: Mapping[str, str]) -> None:
    """Ask QEMU, which has read all headers by now, whether one of them made it open another file.

    ``images``: what QEMU calls the files of images that it has as descriptors, by their paths.

    :raise GuestError: one did; the guest must not run.
    """
    moved = find_moved(await machine.execute("query-named-block-nodes", {"flat": True}))
    if moved is not None:
        path = next((path for path, name in images.items() if name == moved), moved)
        raise GuestError(f"{path} is refused: its header was changed, and names another file for its data", hint=HINT)


async def check_files(machine: Machine, held: HeldImages) -> None:
    """QEMU has opened its disks by their names: it must have the files that were looked at.

    :raise GuestError: a name meant another file meanwhile; the guest must not run.
    """
    found = await asyncio.to_thread(_count_files, machine.pid, held.uses)
    lacking = {inode for inode, count in held.uses.items() if found[inode] < count}
    if lacking:
        paths = ", ".join(path for path, fd in held.fds.items() if inode_of(fd) in lacking)
        raise GuestError(f"{paths} was exchanged while the VM started: QEMU has opened another file", hint=HINT)


def _count_files(pid: int, wanted: Iterable[tuple[int, int]]) -> Counter[tuple[int, int]]:
    wanted, found = set(wanted), Counter[tuple[int, int]]()
    directory = f"/proc/{pid}/fd"
    try:
        names = os.listdir(directory)
    except OSError as err:
        raise GuestError(f"cannot see which files QEMU has opened ({directory})") from err
    for name in names:
        with suppress(OSError):
            facts = os.stat(f"{directory}/{name}")
            if (facts.st_dev, facts.st_ino) in wanted:
                found[facts.st_dev, facts.st_ino] += 1
    return found
