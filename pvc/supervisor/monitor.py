# SPDX-License-Identifier: Apache-2.0
"""A VM's own monitor and memory, for the owner of its cluster."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pvc.errors import GuestError, UsageError
from pvc.model.vm import DUMP_FORMATS
from pvc.supervisor.threads import outlast
from pvc.supervisor.vm import Vm

# A command like savevm, which does not return before it is done, keeps QEMU's monitor for itself.
_COMMAND_S = 600.0


async def run_command(vm: Vm, request: dict[str, Any]) -> Any:
    """What a command of QEMU's monitor returns: ``qmp`` is an object of QMP, ``hmp`` a line for people.

    :raise UsageError: it is neither.
    :raise GuestError: the VM does not run, or QEMU refused.
    """
    line, command = request.get("hmp"), request.get("qmp")
    if isinstance(line, str) and command is None:
        command = {"execute": "human-monitor-command", "arguments": {"command-line": line}}
    if not isinstance(command, dict) or not isinstance(command.get("execute"), str):
        raise UsageError('a command of QMP is an object: {"execute": NAME, "arguments": {…}}')
    arguments = command.get("arguments", {})
    if not isinstance(arguments, dict) or command.keys() - {"execute", "arguments"}:
        raise UsageError('a command of QMP has "execute", perhaps "arguments" (an object), and nothing else')
    return await vm.find_machine("ask").execute(command["execute"], arguments, timeout_s=_COMMAND_S)


async def dump_memory(vm: Vm, request: dict[str, Any], tell: Callable[[int, int], Awaitable[None]]) -> int:
    """Write the guest's memory to the file ``path`` of this node; returns its size.

    Nothing of it stays when that fails. The supervisor makes the file, with its user's rights; QEMU gets a
    descriptor.

    :raise UsageError: the request is not one, or the file exists and ``force`` is not set.
    :raise GuestError: it could not be written.
    """
    text, form, force = request.get("path"), request.get("format", DUMP_FORMATS[0]), request.get("force", False)
    if not isinstance(text, str) or not os.path.isabs(text) or "\0" in text or type(force) is not bool:
        raise UsageError("a dump goes to a file with an absolute path")
    if form not in DUMP_FORMATS:
        raise UsageError(f"{form!r} is none of {', '.join(DUMP_FORMATS)}")
    vm.find_machine("dump")
    target = Path(text)
    if not force and os.path.lexists(target):
        raise UsageError(f"{target} exists already", hint="--force replaces it")
    partial = target.with_name(f".{target.name[:200]}.{os.urandom(4).hex()}.partial")
    try:
        # QEMU itself seeks in it, and kdump's formats are read again.
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            await vm.dump(fd, form, tell)
            await outlast(os.fsync, fd)
            size = os.fstat(fd).st_size
        finally:
            os.close(fd)
        _publish(partial, target, force=force)
    except OSError as err:
        raise GuestError(
            f"cannot write {target} on {vm.share.node}", hint="its directory must be there on the VM's node, too"
        ) from err
    finally:
        with suppress(OSError):
            partial.unlink()
    return size


def find_display(vm: Vm) -> dict[str, str]:
    """Where on this node the VM's screen is served, and how: ``protocol`` (vnc or spice) and ``socket``.

    :raise GuestError: it has no screen, or does not run.
    """
    vm.find_machine("see")
    if vm.share.display is None:
        raise _no_screen(vm)
    return {"protocol": vm.share.template.remote_display, "node": vm.share.node, "socket": vm.share.display}


async def take_screenshot(vm: Vm) -> bytes:
    """What the VM's screen shows, as PNG.

    :raise GuestError: it has no screen, or does not run.
    """
    machine = vm.find_machine("see")
    path = vm.share.directory / f"screen-{os.urandom(4).hex()}.png"
    try:
        await machine.execute("screendump", {"filename": os.fspath(path), "format": "png"})
        return await asyncio.to_thread(path.read_bytes)
    except GuestError:
        if vm.share.display is None:
            raise _no_screen(vm) from None
        raise
    except OSError as err:
        raise GuestError(f"QEMU made no picture of the screen of {vm.share.name}") from err
    finally:
        with suppress(OSError):
            path.unlink()


def _no_screen(vm: Vm) -> GuestError:
    hint = f"say remote-display: vnc in template {vm.share.template.name}; pvc console shows its serial console"
    return GuestError(f"{vm.share.name} has no screen", hint=hint)


def _publish(partial: Path, target: Path, *, force: bool) -> None:
    if force:
        partial.replace(target)
        return
    try:
        os.link(partial, target)  # unlike rename(2), it replaces nothing that came meanwhile
    except OSError as err:
        if err.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}:
            raise
        partial.rename(target)  # a file system without hard links
