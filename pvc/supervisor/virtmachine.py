# SPDX-License-Identifier: Apache-2.0
"""One QEMU that libvirt has started: monitor and events go through libvirt, its end is the supervisor's to see."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
from qemu.qmp import EventListener
from qemu.qmp.message import Message

from pvc.errors import GuestError
from pvc.host.secrecy import openable
from pvc.model.vm import DUMP_FORMATS
from pvc.supervisor.driver import COMMAND_S, Tell
from pvc.supervisor.stopping import end_machine
from pvc.supervisor.virtlog import read_said

LOG = logging.getLogger(__name__)

_DRAIN_S = 5.0
_POLL_S = 0.2
_DUMP = "dump-guest-memory"

Call = Callable[..., Awaitable[Any]]


class VirtMachine:
    """A running QEMU (``pvc.supervisor.driver.Machine``); ``call`` runs a function of libvirt in a thread."""

    def __init__(
        self,
        domain: libvirt.virDomain,
        call: Call,
        pid: int,
        exited: asyncio.Future[int],
        console: socket.socket,
        channels: Mapping[str, socket.socket],
        log: Path,
    ) -> None:
        self.console = console
        self.channels = channels
        self.events = EventListener()
        self._domain = domain
        self._call = call
        self._pid = pid
        self._exited = exited
        self._log = log
        self._listeners = [self.events]
        self._heard: asyncio.Queue[Message | None] = asyncio.Queue()
        self._hearing = asyncio.create_task(self._hear())
        self._silent = asyncio.Event()

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._pid

    @property
    def ended(self) -> bool:
        """Whether QEMU is gone."""
        return self._exited.done()

    def rebind(self, domain: libvirt.virDomain) -> None:
        """It is this domain of another libvirtd, which has taken it over."""
        self._domain = domain

    def stderr(self) -> str:
        """The last that QEMU wrote, in one line."""
        return read_said(self._log)

    @contextmanager
    def listener(self, *names: str) -> Iterator[EventListener]:
        """Events of these names, from now on."""
        found = EventListener(names)
        self._listeners.append(found)
        try:
            yield found
        finally:
            self._listeners.remove(found)

    def take(self, event: str, details: str | None, seconds: int, micros: int) -> None:
        """An event of QEMU's monitor."""
        told: dict[str, object] = {"event": event, "timestamp": {"seconds": seconds, "microseconds": micros}}
        if details:
            told["data"] = json.loads(details)
        self._heard.put_nowait(Message(told))

    def take_end(self) -> None:
        """Libvirt says that the domain is gone: it will tell nothing more."""
        self._heard.put_nowait(None)

    async def _hear(self) -> None:
        while (message := await self._heard.get()) is not None:
            for each in list(self._listeners):
                if each.accept(message):
                    await each.put(message)
        self._silent.set()

    async def wait(self) -> int:
        """QEMU's exit code, or minus the number of the signal that killed it."""
        return await asyncio.shield(self._exited)

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_s: float = COMMAND_S
    ) -> Any:
        """Run a QMP command.

        :raise GuestError: QEMU refused, ended, or did not answer.
        """
        return await self._execute(command, arguments or {}, (), timeout_s)

    async def _execute(
        self, command: str, arguments: Mapping[str, object], fds: Sequence[int], timeout_s: float = COMMAND_S
    ) -> Any:
        if command == _DUMP or str(arguments.get("command-line", "")).split()[:1] == [_DUMP]:
            raise GuestError("libvirt 9.0 would not survive a dump that it did not make", hint="use pvc dump")
        request = json.dumps({"execute": command, **({"arguments": dict(arguments)} if arguments else {})})
        try:
            async with asyncio.timeout(timeout_s):
                if fds:
                    text, _ = await self._call(
                        libvirt_qemu.qemuMonitorCommandWithFiles, self._domain, request, list(fds), 0
                    )
                else:
                    text = await self._call(libvirt_qemu.qemuMonitorCommand, self._domain, request, 0)
        except libvirt.libvirtError as err:
            raise GuestError(f"QEMU refused {command!r}") from err
        except TimeoutError:
            raise GuestError(f"QEMU did not answer {command!r} within {timeout_s:g} s") from None
        answer = json.loads(text)
        if "error" in answer:
            raise GuestError(f"QEMU refused {command!r}") from ValueError(answer["error"].get("desc", ""))
        return answer["return"]

    async def dump(self, fd: int, form: str, tell: Tell) -> None:
        """Write the guest's memory to an open file, while it stands still; ``tell(done, total)`` hears of it, in bytes.

        By libvirt's own call, for libvirt 9.0 dies of QEMU's event DUMP_COMPLETED when it did not ask for the dump.

        :raise GuestError: QEMU refused, ended, or could not write.
        """
        # libvirtd opens it: it runs as this user, too
        with openable(fd) as path:
            await self._dump(path, form, tell)
        size = os.fstat(fd).st_size
        await tell(size, size)

    async def _dump(self, path: str, form: str, tell: Tell) -> None:
        flags = libvirt.VIR_DUMP_MEMORY_ONLY
        writing = asyncio.ensure_future(
            self._call(self._domain.coreDumpWithFormat, path, DUMP_FORMATS.index(form), flags)
        )
        writing.add_done_callback(lambda done: done.cancelled() or done.exception())
        while not writing.done():
            await asyncio.wait({writing}, timeout=_POLL_S)
            with suppress(libvirt.libvirtError):
                stats = await self._call(self._domain.jobStats)
                if stats.get("memory_total"):
                    await tell(int(stats["memory_processed"]), int(stats["memory_total"]))
        try:
            writing.result()
        except libvirt.libvirtError as err:
            raise GuestError("the guest's memory was not written") from err

    async def share_file(self, fd: int) -> int:
        """Give QEMU a copy of a descriptor that it may open as /dev/fdset/NUMBER; returns the number.

        :raise GuestError: QEMU refused, ended, or did not answer.
        """
        return int((await self._execute("add-fd", {}, (fd,)))["fdset-id"])

    async def find_disk(self, number: int) -> str:
        """The node of a disk in QEMU's block graph, which libvirt names.

        :raise GuestError: QEMU did not answer, or has no such disk.
        """
        for device in await self.execute("query-block"):
            if f"ua-disk{number}" in str(device.get("qdev")).split("/"):
                return str(device["inserted"]["node-name"])
        raise GuestError(f"QEMU has no disk {number}")

    async def pin(self, cpus: Sequence[int]) -> None:
        """Pin vCPU i to cpus[i]; QEMU's other threads were started on all of them.

        :raise OSError: libvirt or the kernel refuses one of the CPUs.
        """
        try:
            for i, cpu in enumerate(cpus):
                wanted = tuple(each == cpu for each in range(max(cpus) + 1))
                await self._call(self._domain.pinVcpu, i, wanted)
        except libvirt.libvirtError as err:
            raise OSError(str(err)) from err

    async def stop(self, grace_s: float) -> None:
        """End QEMU: ask the guest for ``grace_s`` seconds, then QEMU, then the kernel."""
        await end_machine(self, self._kill, grace_s)

    def _kill(self) -> None:
        if not self.ended:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    async def drain(self) -> None:
        """After QEMU's end: return once all that it said is in ``events``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await self._silent.wait()

    async def close(self) -> None:
        """Hear no more; QEMU has ended."""
        self._hearing.cancel()
        await asyncio.gather(self._hearing, return_exceptions=True)
