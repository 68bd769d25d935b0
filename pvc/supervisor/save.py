"""A running VM's disk in a file, as it was at one moment, while the guest goes on.

QEMU's backup job: what the guest overwrites meanwhile is copied first. The file is an empty qcow2 that the caller has
made, in a repository or anywhere; the supervisor opens it with its user's rights, QEMU gets the descriptor.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

from qemu.qmp import EventListener

from pvc.errors import GuestError, HostError, UsageError
from pvc.host.reserve import release_space, reserve_space
from pvc.model.vm import Disk, SavedDisk
from pvc.plan.qemudrives import plan_backing
from pvc.supervisor.driver import Machine
from pvc.supervisor.freeze import Freeze, frozen
from pvc.supervisor.prepare import overlay_path
from pvc.supervisor.threads import outlast
from pvc.supervisor.vm import Vm

LOG = logging.getLogger(__name__)

_TICK_S = 0.25
_CANCEL_S = 30.0
# What QEMU did not answer may be because it has just ended.
_END_S = 1.0
# Tables of the new file, and what the guest writes between our look at its disk and the start of the job.
_EXTRA_BYTES = 4 << 20
_ENDED = ("concluded", "null")


def list_disks(vm: Vm) -> list[SavedDisk]:
    """The disks of a VM that can be saved."""
    template = vm.share.template
    found = []
    if template.disk is not None:
        found.append(_describe(0, template.disk, template.disk.size))
    found += [_describe(i, each.base, each.size) for i, each in enumerate(template.disks, start=1)]
    return found


def _describe(number: int, base: Disk | None, size: int) -> SavedDisk:
    return SavedDisk(number, size, base.image if base else "", base.path if base else "")


async def save_disk(vm: Vm, request: dict[str, Any], tell: Callable[[int, int], Awaitable[None]]) -> bool:
    """Write ``disk`` into the empty qcow2 file ``path``: all of it (``full``), or what its overlay holds.

    ``speed``: how many bytes a second QEMU copies, 0: as fast as it can. Returns whether the guest's file systems were
    frozen at that moment, as they are if its agent answers; else what it has not written is not in the file, as after a
    power failure.

    :raise UsageError: the request is not one.
    :raise GuestError: the VM does not run, has no such disk, or QEMU failed.
    :raise HostError: the file cannot be written, or there is no room for it; the guest has noticed nothing then.
    """
    number, path, full = request.get("disk", 0), request.get("path"), request.get("full", False)
    speed = request.get("speed", 0)
    if type(number) is not int or type(full) is not bool or type(speed) is not int or not 0 <= speed < 1 << 50:
        raise UsageError("a save has the number of a disk, perhaps full (true or false) and a speed (bytes a second)")
    if not isinstance(path, str) or not os.path.isabs(path) or "\0" in path:
        raise UsageError("a disk is saved in a file with an absolute path")
    machine = vm.find_machine("save")
    base = _find_base(vm, number)
    fd = _open_target(vm, path)
    try:
        await outlast(_reserve, vm, number, base if full else None, fd, path)
        backing = None if full or base is None else plan_backing(base)
        job = {"device": await machine.find_disk(number), "speed": speed}
        try:
            freeze = await _back_up(machine, job, fd, backing, tell, lambda: frozen(vm.share.name, vm.agent))
        except GuestError:
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_S):
                    await machine.wait()
                raise GuestError(f"{vm.share.name} ended while its disk was saved") from None
            raise
        await outlast(_finish, fd, path)
    finally:
        os.close(fd)
    return freeze is not None and freeze.done


def _find_base(vm: Vm, number: int) -> Disk | None:
    template = vm.share.template
    if number == 0 and template.disk is not None:
        return template.disk
    if 0 < number <= len(template.disks):
        return template.disks[number - 1].base
    raise GuestError(f"{vm.share.name} has no disk {number}", hint=f"its template is {template.name}")


def _open_target(vm: Vm, path: str) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as err:
        hint = "image repositories must be on a file system that every node mounts at the same place"
        raise HostError(f"cannot write {path} on {vm.share.node}", hint=hint) from err
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UsageError(f"{path} is not a file")
    return fd


def _reserve(vm: Vm, number: int, base: Disk | None, fd: int, path: str) -> None:
    """Take the room first: once the job runs, a write of the guest's waits for its copy, and fails with it."""
    try:
        paths = [os.fspath(overlay_path(vm.share, number)), *(each.path for each in (base.files if base else ()))]
        needed = sum(os.stat(each).st_blocks * 512 for each in paths)
        reserve_space(fd, needed + needed // 64 + _EXTRA_BYTES)
    except OSError as err:
        raise _explain(path, err) from err


def _explain(path: str, err: OSError) -> HostError:
    full = err.errno in {errno.ENOSPC, errno.EDQUOT}
    hint = "free space there, delete images (pvc image delete), or save into another repository" if full else None
    return HostError(f"cannot write the disk to {os.path.dirname(path)}", hint=hint)


def _finish(fd: int, path: str) -> None:
    try:
        release_space(fd)
        os.fsync(fd)
    except OSError as err:
        raise _explain(path, err) from err


async def _back_up(
    machine: Machine,
    wanted: dict[str, Any],
    fd: int,
    backing: dict[str, Any] | None,
    tell: Callable[[int, int], Awaitable[None]],
    freezing: Callable[[], AbstractAsyncContextManager[Freeze | None]],
) -> Freeze | None:
    """Run the job that is ``wanted`` on an open file; nothing of it is left in QEMU, whatever happens.

    The disk is saved as it is when QEMU has taken the job: so long ``freezing`` holds.
    """
    name = f"save-{os.urandom(4).hex()}"
    fdset = await machine.share_file(fd)
    try:
        file = {"driver": "file", "filename": f"/dev/fdset/{fdset}", "locking": "off"}
        node = {"driver": "qcow2", "node-name": name, "file": file, "backing": backing, "discard": "unmap"}
        await machine.execute("blockdev-add", node)
        try:
            with machine.listener("JOB_STATUS_CHANGE") as changes:
                job = {**wanted, "job-id": name, "target": name, "auto-dismiss": False}
                async with freezing() as freeze:
                    await machine.execute("blockdev-backup", {**job, "sync": "full" if backing is None else "top"})
                await _follow(machine, name, changes, tell)
                return freeze
        finally:
            try:
                await machine.execute("blockdev-del", {"node-name": name})
            except GuestError as err:
                LOG.warning("%s stays in QEMU: %s", name, err)
    finally:
        with suppress(GuestError):
            await machine.execute("remove-fd", {"fdset-id": fdset})


async def _follow(
    machine: Machine, name: str, changes: EventListener, tell: Callable[[int, int], Awaitable[None]]
) -> None:
    """Return when the job is done; what breaks off, ends it."""
    try:
        while True:
            job = await _find_job(machine, name)
            if job["status"] in _ENDED:
                break
            await tell(int(job["current-progress"]), int(job["total-progress"]))
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await changes.get()
    except BaseException:
        with suppress(GuestError, TimeoutError):
            async with asyncio.timeout(_CANCEL_S):
                await _cancel(machine, name, changes)
        raise
    await machine.execute("job-dismiss", {"id": name})
    if "error" in job:
        hint = "free space in the repository, or save into another one" if "No space" in job["error"] else None
        raise HostError(f"the disk was not saved: {job['error']}", hint=hint)


async def _find_job(machine: Machine, name: str) -> dict[str, Any]:
    for job in await machine.execute("query-jobs"):
        if job["id"] == name:
            return dict(job)
    raise GuestError("QEMU has forgotten the job that saves the disk")


async def _cancel(machine: Machine, name: str, changes: EventListener) -> None:
    with suppress(GuestError):  # it may have ended just now
        await machine.execute("job-cancel", {"id": name})
    while (await _find_job(machine, name))["status"] not in _ENDED:
        await changes.get()
    await machine.execute("job-dismiss", {"id": name})
