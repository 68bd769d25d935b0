# SPDX-License-Identifier: Apache-2.0
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
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from qemu.qmp import EventListener

from pvc.errors import GuestError, HostError, UsageError
from pvc.host.reserve import release_space, reserve_space
from pvc.images.opened import HeldImages
from pvc.model.vm import Disk, SavedDisk
from pvc.plan.qemudrives import plan_backing
from pvc.plan.saving import plan_backup, plan_saved
from pvc.supervisor.driver import Machine, Tell
from pvc.supervisor.freeze import Freeze, frozen
from pvc.supervisor.layers import check_nodes
from pvc.supervisor.prepare import overlay_path
from pvc.supervisor.threads import outlast
from pvc.supervisor.vm import Vm

LOG = logging.getLogger(__name__)

_TICK_S = 0.25
_WORD_S = 5.0
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


async def save_disk(vm: Vm, request: dict[str, Any], tell: Tell) -> bool:
    """Write ``disk`` into the empty qcow2 file ``path``: all of it (``full``), or what its overlay holds.

    ``speed``: how many bytes a second QEMU copies, 0: as fast as it can. Returns whether the guest's file systems were
    frozen at that moment, as they are if its agent answers; else what it has not written is not in the file, as after a
    power failure. The disks of a VM are saved one after another, for QEMU's memory for it is the job's.

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
    vm.find_machine("save")
    base = _find_base(vm, number)
    fd = _open_target(vm, path)
    held = HeldImages()
    try:
        async with _turn(vm.saving, tell):
            await outlast(_reserve, vm, number, base if full else None, fd, path)
            if base is not None:
                await outlast(held.open_layers, base)
            freeze = await _save_open(vm, number, Target(fd, base, held, full, speed), tell)
            await outlast(_finish, fd, path)
    finally:
        held.release()
        os.close(fd)
    return freeze is not None and freeze.done


@asynccontextmanager
async def _turn(lock: asyncio.Lock, tell: Tell) -> AsyncIterator[None]:
    """Hold a lock; whoever waits for it hears meanwhile that nothing is done yet, and is heard if it leaves."""
    waiting = asyncio.ensure_future(lock.acquire())
    try:
        while not (await asyncio.wait({waiting}, timeout=_WORD_S))[0]:
            await tell(0, 0)
        yield
    finally:
        if waiting.cancel() or waiting.cancelled():
            await asyncio.wait({waiting})
        else:
            lock.release()


async def _save_open(vm: Vm, number: int, target: Target, tell: Tell) -> Freeze | None:
    machine = vm.find_machine("save")
    try:
        device = await machine.find_disk(number)
        return await _back_up(machine, device, target, tell, lambda: frozen(vm.share.name, vm.agent))
    except GuestError:
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await machine.wait()
            raise GuestError(f"{vm.share.name} ended while its disk was saved") from None
        raise


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
    facts = os.fstat(fd)
    problem = None
    if not stat.S_ISREG(facts.st_mode):
        problem = "is not a file"
    elif facts.st_uid != os.geteuid() or facts.st_mode & 0o022 or facts.st_nlink != 1:
        # The owner of a repository can exchange it for one whose header names a file of yours: QEMU would write there.
        problem = "is not a new file that is yours alone"
    if problem is not None:
        os.close(fd)
        raise UsageError(f"{path} {problem}")
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


@dataclass(frozen=True)
class Target:
    """The open file that a disk goes to; ``base``: what the disk rests on, whose files ``held`` has opened.

    ``full``: the file gets that, too, and needs nobody else's then. ``speed``: bytes a second that are copied, 0: all
    that can be.
    """

    fd: int
    base: Disk | None
    held: HeldImages
    full: bool
    speed: int


async def _back_up(
    machine: Machine,
    device: str,
    target: Target,
    tell: Tell,
    freezing: Callable[[], AbstractAsyncContextManager[Freeze | None]],
) -> Freeze | None:
    """Copy a disk to an open file; nothing of it is left in QEMU, whatever happens.

    The disk is saved as it is when QEMU has taken the job: so long ``freezing`` holds. What the disk itself rests on
    is no guest's to change, and follows as a second job: only of that one may the file be slow, for what a guest
    overwrites meanwhile waits for the file in the first.
    """
    name = f"save-{os.urandom(4).hex()}"
    async with AsyncExitStack() as shared:
        filename = await _share(machine, target.fd, shared)
        images = {path: await _share(machine, fd, shared) for path, fd in target.held.fds.items()}
        backing = None if target.base is None else plan_backing(target.base, images, name)
        await machine.execute("object-add", {"qom-type": "throttle-group", "id": name})
        shared.push_async_callback(_remove_object, machine, name)
        await machine.execute("blockdev-add", plan_saved(name, filename, backing))
        try:
            await check_nodes(machine, {**images, "the new file": filename})
            job = {"job-id": name, "auto-dismiss": False}
            with machine.listener("JOB_STATUS_CHANGE") as changes:
                async with freezing() as freeze:
                    await machine.execute("blockdev-backup", {**plan_backup(device, name, target.speed), **job})
                done = await _follow(machine, name, changes, tell)
                if target.full and target.base is not None:
                    await _limit(machine, name, target.speed)
                    await machine.execute("block-stream", {**job, "device": name})
                    await _follow(machine, name, changes, lambda more, total: tell(done + more, done + total))
                return freeze
        finally:
            try:
                await machine.execute("blockdev-del", {"node-name": name})
            except GuestError as err:
                LOG.warning("%s stays in QEMU: %s", name, err)


async def _limit(machine: Machine, group: str, speed: int) -> None:
    """Nothing but what is written counts, unlike with the speed of a job, which spends it on holes, too."""
    limits = {"path": f"/objects/{group}", "property": "limits", "value": {"bps-write": speed}}
    await machine.execute("qom-set", limits)


async def _remove_object(machine: Machine, name: str) -> None:
    with suppress(GuestError):
        await machine.execute("object-del", {"id": name})


async def _share(machine: Machine, fd: int, shared: AsyncExitStack) -> str:
    """What QEMU calls a copy of an open file, until ``shared`` unwinds."""
    fdset = await machine.share_file(fd)

    async def remove() -> None:
        with suppress(GuestError):
            await machine.execute("remove-fd", {"fdset-id": fdset})

    shared.push_async_callback(remove)
    return f"/dev/fdset/{fdset}"


async def _follow(machine: Machine, name: str, changes: EventListener, tell: Tell) -> int:
    """How many bytes it has copied, once the job is done; what breaks off, ends it."""
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
    return int(job["total-progress"])


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
