# SPDX-License-Identifier: Apache-2.0
"""The driver that lets libvirt start QEMU: the job owner's own libvirtd, started with the first VM that wants it.

libvirt's calls block, so they run in threads; its events come in a thread, too, and are handed to the loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from pvc import run
from pvc.errors import GuestError, PvcError
from pvc.plan.domain import DomainPlaces, DomainSpec, Inherited, plan_domain
from pvc.supervisor.driver import Launch
from pvc.supervisor.virtd import Virtd, prepared, running_daemon
from pvc.supervisor.virtexec import FIRST
from pvc.supervisor.virtlog import read_said
from pvc.supervisor.virtmachine import VirtMachine

LOG = logging.getLogger(__name__)

_THREADS = 32
_TRIES = 10
_HOOK_S = 60.0
_JOIN_S = 5.0
_GIVE_UP_S = 10.0
_UCRED = struct.Struct("3i")  # unix(7), SO_PEERCRED: pid, uid, gid


class VirtDriver:
    """A driver (``pvc.supervisor.driver.Driver``). ``hook``: a program of the site that may change a domain's XML."""

    def __init__(self, directory: Path, hook: str | None, exits: AsyncExitStack) -> None:
        self._directory = directory
        self._hook = hook
        self._exits = exits
        self._starting = asyncio.Lock()
        self._virtd: Virtd | None = None
        self._connected: asyncio.Future[libvirt.virConnect] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="libvirt")
        self._machines: dict[str, VirtMachine] = {}  # by the names of their domains

    @property
    def uri(self) -> str | None:
        """For virsh(1), on this node; None: no VM has started."""
        return self._virtd.uri if self._virtd is not None else None

    async def start(self, launch: Launch) -> VirtMachine:
        """Start a domain, paused before its first instruction.

        :raise GuestError: libvirt or QEMU did not start, or the site's hook failed; says with which words.
        """
        virtd, connection = await self._ensure()
        share = launch.share
        with ExitStack() as ends:
            console = _listen(share.directory / "console.sock", ends)
            channels = {name: _listen(share.directory / f"{name}.sock", ends) for name in launch.channels}
            names = tuple(f"{share.name}.{i}" for i in range(len(launch.taps)))
            virtd.taps.update(zip(names, launch.taps, strict=True))
            ends.callback(lambda: [virtd.taps.pop(name) for name in names])
            virtd.files[share.name] = (*launch.inherited, *launch.boot.values())
            xml = await self._plan(virtd, launch, names)
            domain = await self._create(connection, xml, virtd.log_of(share.name))
            try:
                (near, pid), near_ends = _accept_all(console, channels)
            except OSError as err:
                await self._give_up(domain)
                raise GuestError(
                    f"QEMU of {share.name} has not connected its console and channels: {err.strerror}",
                    hint="the site's libvirt-hook must leave them in the domain" if self._hook else None,
                ) from err
        log = virtd.log_of(share.name)
        machine = VirtMachine(domain, self._call, pid, virtd.exit_of(pid), near, near_ends, log)
        self._machines[share.name] = machine
        return machine

    async def _plan(self, virtd: Virtd, launch: Launch, taps: tuple[str, ...]) -> str:
        share = launch.share
        spec = DomainSpec(
            name=share.name,
            uuid=str(uuid.uuid5(uuid.NAMESPACE_URL, f"pvc:{share.node}{share.directory}")),
            hardware=launch.hardware,
            template=share.template,
            paths=launch.paths,
            places=DomainPlaces(
                emulator=virtd.find_emulator(share.template.qemu_bin),
                console=os.fspath(share.directory / "console.sock"),
                # libvirt would give QEMU all of the node's CPUs, not those that this process has.
                cpus=tuple(sorted(share.pins or os.sched_getaffinity(0))),
                taps=taps,
                channels=tuple((name, os.fspath(share.directory / f"{name}.sock")) for name in launch.channels),
                display=share.display,
                inherited=_number(launch),
            ),
        )
        xml = plan_domain(spec)
        if self._hook is not None:
            environ = {**run.BASE_ENV, "PVC_VM": share.name, "PVC_TEMPLATE": share.template.name}
            try:
                xml = await self._call(run.run, [self._hook], stdin=xml, env=environ, timeout_s=_HOOK_S)
            except PvcError as err:
                raise GuestError(f"the site's libvirt-hook refused {share.name}") from err
        (share.directory / "domain.xml").write_text(xml)
        return xml

    async def _create(self, connection: libvirt.virConnect, xml: str, log: Path) -> libvirt.virDomain:
        flags = libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_AUTODESTROY
        creating = asyncio.ensure_future(self._call(connection.createXML, xml, flags))
        try:
            return await asyncio.shield(creating)
        except libvirt.libvirtError as err:
            said = read_said(log)
            raise GuestError(f"QEMU did not start: {said}" if said else "libvirt did not start QEMU") from (
                None if said else err
            )
        except asyncio.CancelledError:
            # A call of libvirt cannot be broken off; what it makes is not wanted any more.
            with suppress(libvirt.libvirtError):
                await self._give_up(await creating)
            raise

    async def _give_up(self, domain: libvirt.virDomain) -> None:
        with suppress(libvirt.libvirtError, TimeoutError):
            async with asyncio.timeout(_GIVE_UP_S):
                await self._call(domain.destroy)

    async def _ensure(self) -> tuple[Virtd, libvirt.virConnect]:
        """The connection, made with the first call; one that is lost comes back as soon as libvirtd runs again."""
        async with self._starting:
            if self._virtd is None:
                try:
                    self._virtd = await self._exits.enter_async_context(prepared(self._directory))
                except OSError as err:
                    raise GuestError(f"cannot make {self._directory}") from err
                libvirt.registerErrorHandler(_be_silent, None)
                self._exits.callback(self._threads.shutdown, wait=False, cancel_futures=True)
                _listen_for_events(self._exits)
            if self._connected is None or self._keeper is None or self._keeper.done():
                self._connected = asyncio.get_running_loop().create_future()
                self._keeper = asyncio.create_task(self._keep(self._virtd))
                self._exits.push_async_callback(_end_task, self._keeper)
        return self._virtd, await asyncio.shield(self._connected)

    async def _keep(self, virtd: Virtd) -> None:
        """Let libvirtd run: one that ends is started again, and takes over the domains that it finds."""
        assert self._connected is not None
        try:
            for _ in range(_TRIES):
                async with running_daemon(virtd) as daemon:
                    connection = await self._open(virtd)
                    for name, machine in list(self._machines.items()):
                        with suppress(libvirt.libvirtError):
                            machine.rebind(await self._call(connection.lookupByName, name))
                    self._connected.set_result(connection)
                    try:
                        code = await asyncio.shield(daemon.ended)
                    finally:
                        await self._close(connection)
                    self._connected = asyncio.get_running_loop().create_future()
                    LOG.error("libvirtd ended with %d and starts again: %s", code, daemon.said())
            raise GuestError(f"libvirtd ended {_TRIES} times")
        except (PvcError, OSError, libvirt.libvirtError) as err:
            error = GuestError("libvirt does not run")
            error.__cause__ = err
            if not self._connected.done():
                self._connected.set_exception(error)
                self._connected.exception()  # nobody may wait for it

    async def _open(self, virtd: Virtd) -> libvirt.virConnect:
        loop = asyncio.get_running_loop()
        connection: libvirt.virConnect = await self._call(libvirt.open, virtd.uri)

        def on_event(
            _: object, domain: libvirt.virDomain, event: str, seconds: int, micros: int, details: str | None, __: object
        ) -> None:
            loop.call_soon_threadsafe(self._take, domain.name(), event, details, seconds, micros)

        def on_life(_: object, domain: libvirt.virDomain, event: int, __: int, ___: object) -> None:
            if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
                loop.call_soon_threadsafe(self._take_end, domain.name())

        await self._call(libvirt_qemu.qemuMonitorEventRegister, connection, None, None, on_event, None)
        await self._call(connection.domainEventRegisterAny, None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, on_life, None)
        return connection

    async def _close(self, connection: libvirt.virConnect) -> None:
        with suppress(libvirt.libvirtError, TimeoutError):
            async with asyncio.timeout(_GIVE_UP_S):
                await self._call(connection.close)

    def _take(self, name: str, event: str, details: str | None, seconds: int, micros: int) -> None:
        if name in self._machines:
            self._machines[name].take(event, details, seconds, micros)

    def _take_end(self, name: str) -> None:
        machine = self._machines.pop(name, None)
        if machine is not None:
            machine.take_end()

    async def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))


def _listen_for_events(exits: AsyncExitStack) -> None:
    """Run libvirt's event loop in a thread until ``exits`` unwinds."""
    leaving = threading.Event()
    libvirt.virEventRegisterDefaultImpl()

    def run_loop() -> None:
        while not leaving.is_set():
            libvirt.virEventRunDefaultImpl()

    def leave() -> None:
        leaving.set()
        libvirt.virEventAddTimeout(0, lambda *_: None, None)  # wakes it
        thread.join(_JOIN_S)

    thread = threading.Thread(target=run_loop, name="libvirt-events", daemon=True)
    thread.start()
    exits.callback(leave)


def _number(launch: Launch) -> Inherited:
    """Its descriptors by the numbers that QEMU will have."""
    numbers = {fd: FIRST + i for i, fd in enumerate((*launch.inherited, *launch.boot.values()))}
    return Inherited(
        drives=tuple(replace(each, fd=numbers[each.fd]) for each in launch.drives),
        tpm=None if launch.tpm is None else numbers[launch.tpm],
        shares=tuple(numbers[fd] for fd in launch.shares),
        boot={path: numbers[fd] for path, fd in launch.boot.items()},
    )


async def _end_task(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _be_silent(_: object, __: object) -> None:
    """Libvirt would print each error besides raising it."""


def _listen(path: Path, ends: ExitStack) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = ends.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(os.fspath(path))
    ends.callback(path.unlink, missing_ok=True)
    listener.listen(1)
    listener.setblocking(False)
    return listener


def _accept_all(
    console: socket.socket, channels: Mapping[str, socket.socket]
) -> tuple[tuple[socket.socket, int], dict[str, socket.socket]]:
    """Near ends of all, and QEMU's process id.

    :raise OSError: it has not connected one, or no descriptor is left.
    """
    with ExitStack() as ends:
        first = _accept(console)
        ends.callback(first[0].close)
        others: dict[str, socket.socket] = {}
        for name, listener in channels.items():
            others[name] = ends.enter_context(_accept(listener)[0])
        ends.pop_all()
    return first, others


def _accept(listener: socket.socket) -> tuple[socket.socket, int]:
    """QEMU's connection and its process id: it has connected before its monitor answered."""
    near, _ = listener.accept()
    pid, _, _ = _UCRED.unpack(near.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return near, pid
