"""One VM from its files to its end, as a state machine that tells of every step."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from pvc.errors import GuestError, PvcError
from pvc.model.cluster import ClusterSpec
from pvc.model.vm import Phase, VmStatus
from pvc.plan.qemu import QemuSpec, VmFds, VmPaths, qemu_argv
from pvc.supervisor.console import Console
from pvc.supervisor.ending import Ending, explain_end
from pvc.supervisor.machine import Machine, event_data
from pvc.supervisor.prepare import prepare_vm
from pvc.supervisor.probe import wait_banner
from pvc.supervisor.share import VmShare

LOG = logging.getLogger(__name__)

Report = Callable[["Vm", str | None], None]

_ON_REQUEST = "stopped on request"
_NO_SSH_YET = "runs, no ssh answer yet"
_NO_SSH_PORT = "runs; no port of the node leads to its ssh"
# A guest that QEMU paused because the disk is full goes on once there is room.
_RESUME_S = 10.0
_LASTS_S = 1.0
# QEMU was built without seccomp, or the kernel has none: both messages of softmmu/qemu-seccomp.c and vl.c.
_NO_SANDBOX = ("-sandbox", "seccomp")


class Vm:
    """``report(vm, hint)`` is called after every change of phase or detail."""

    def __init__(self, share: VmShare, report: Report) -> None:
        self.share = share
        self.phase = Phase.WAITING
        self.detail = ""
        self.pinned: tuple[int, ...] = ()
        self.started: float | None = None
        self.reachable: float | None = None
        self.console: Console | None = None
        self._report = report
        self._machine: Machine | None = None
        self._stopping = False
        self._shutdown_reason: str | None = None
        self._paused = False
        self._disk_errors = 0
        self._probe: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._taps = list(share.taps)

    def status(self) -> VmStatus:
        """What is known of the VM now."""
        share = self.share
        return VmStatus(
            rank=share.rank,
            name=share.name,
            template=share.template.name,
            node=share.node,
            phase=self.phase,
            cpus=share.cpus,
            memory_mib=share.memory_mib,
            addresses=tuple(nic.address.partition("/")[0] for nic in share.grant.nics if nic.address is not None),
            ssh_host=share.ssh_host,
            ssh_port=share.ssh_port,
            accel=share.accel.value,
            pinned=self.pinned,
            started=self.started,
            reachable=self.reachable,
            detail=self.detail,
        )

    async def run(self, spec: ClusterSpec, instance_id: str) -> None:
        """Start the VM and return after its end; never raises for what concerns this VM alone."""
        self._change(Phase.NETWORK)
        try:
            paths = prepare_vm(self.share, spec, instance_id)
            ending = await self._run_machine(paths)
        except PvcError as err:
            ending = self._failed(err)
        except (OSError, ValueError) as err:
            error = GuestError(f"cannot start {self.share.name}")
            error.__cause__ = err
            ending = self._failed(error)
        except Exception as err:  # a fault of pvc in one VM must not end its neighbours
            LOG.exception("%s: internal error", self.share.name)
            ending = Ending(Phase.FAILED, f"internal error: {err!r}")
        finally:
            await self._clear()
        self._change(ending.phase, ending.detail, ending.hint)

    async def stop(self, grace_s: float) -> None:
        """End the VM; ``run`` returns soon after. Without effect on one that has ended."""
        self._stopping = True
        if self._machine is not None:
            # A paused guest cannot hear that it should power down.
            await self._machine.stop(0 if self._paused else grace_s)

    def _failed(self, error: PvcError) -> Ending:
        if self._stopping:
            return Ending(Phase.STOPPED, _ON_REQUEST)
        return Ending(Phase.FAILED, str(error), error.find_hint())

    async def _run_machine(self, paths: VmPaths) -> Ending:
        if self._stopping:
            return Ending(Phase.STOPPED, _ON_REQUEST)
        for sandbox in (True, False):
            machine = self._machine = self._start(paths, sandbox=sandbox)
            try:
                await self._boot(machine)
                break
            except GuestError as err:
                await machine.stop(0)
                said = machine.stderr()
                await machine.close()
                if sandbox and any(word in said for word in _NO_SANDBOX):
                    LOG.warning("%s: QEMU runs without its sandbox: %s", self.share.name, said)
                    continue
                raise GuestError(f"QEMU did not start: {said}" if said else str(err)) from None
        status = await machine.wait()
        await machine.drain()
        for event in machine.events.clear():
            self._on_event(machine, str(event["event"]), event_data(event))
        return explain_end(
            status,
            requested=self._stopping,
            reason=self._shutdown_reason,
            stderr=machine.stderr(),
            memory_mib=self.share.memory_mib,
        )

    def _start(self, paths: VmPaths, *, sandbox: bool) -> Machine:
        share = self.share
        qmp, qmp_child = socket.socketpair()
        console, console_child = socket.socketpair()
        with qmp_child, console_child:
            fds = VmFds(qmp_child.fileno(), console_child.fileno(), tuple(self._taps))
            argv = qemu_argv(
                QemuSpec(
                    name=share.name,
                    template=share.template,
                    nics=share.grant.nics,
                    cpus=share.cpus,
                    memory_mib=share.memory_mib,
                    accel=share.accel,
                    paths=paths,
                    fds=fds,
                    sandbox=sandbox,
                )
            )
            machine = Machine.start(argv, qmp, (fds.qmp, fds.console, *fds.taps))
        self.started = time.time()
        self.console = Console(console, share.directory / "console.log")
        self._spawn(self.console.run())
        return machine

    async def _boot(self, machine: Machine) -> None:
        await machine.connect()
        self._spawn(self._follow(machine))
        if self.share.pins:
            try:
                await machine.pin(self.share.pins)
                self.pinned = self.share.pins
            except OSError as err:
                LOG.warning("%s: cannot pin to CPUs %s: %s", self.share.name, self.share.pins, err)
        await machine.execute("cont")
        self._close_taps()
        self._wait_ssh()

    def _wait_ssh(self) -> None:
        """From here on the guest runs; ssh tells when it is up."""
        if self._probe is not None:
            self._probe.cancel()
        share = self.share
        if share.ssh_host is None or share.ssh_port is None:
            self._change(Phase.BOOTING, _NO_SSH_PORT)
            return
        self._change(Phase.BOOTING, _NO_SSH_YET)
        self._probe = self._spawn(self._watch_ssh(share.ssh_host, share.ssh_port))

    async def _watch_ssh(self, host: str, port: int) -> None:
        await wait_banner(host, port)
        self.reachable = time.time()
        self._change(Phase.REACHABLE)

    async def _follow(self, machine: Machine) -> None:
        """Take in what QEMU tells, until its monitor closes."""
        async for event in machine.events:
            self._on_event(machine, str(event["event"]), event_data(event))

    def _on_event(self, machine: Machine, name: str, data: dict[str, object]) -> None:
        LOG.debug("%s: %s %s", self.share.name, name, data)
        if name == "SHUTDOWN":
            self._shutdown_reason = str(data.get("reason"))
        elif name == "RESET" and data.get("guest") and self.phase is Phase.REACHABLE:
            self.reachable = None
            self._wait_ssh()
        elif name == "BLOCK_IO_ERROR" and data.get("action") == "stop":
            # One for each request in flight: the first starts the attempts to go on, the others only count.
            self._disk_errors += 1
            if not self._paused:
                self._paused = True
                reason = data.get("reason", "I/O error")
                self._change(self.phase, f"paused: its disk in {self.share.directory} cannot be written: {reason}")
                self._spawn(self._resume(machine))

    async def _resume(self, machine: Machine) -> None:
        """Let a guest go on that QEMU paused for its disk, again and again until that lasts."""
        while self._paused:
            await asyncio.sleep(_RESUME_S)
            before = self._disk_errors
            with suppress(GuestError):
                await machine.execute("cont")
                await asyncio.sleep(_LASTS_S)
                self._paused = self._disk_errors != before
        self._change(self.phase, self._plain_detail())

    def _plain_detail(self) -> str:
        if self.phase is Phase.REACHABLE:
            return ""
        return _NO_SSH_YET if self.share.ssh_port is not None else _NO_SSH_PORT

    def _change(self, phase: Phase, detail: str = "", hint: str | None = None) -> None:
        if (phase, detail) == (self.phase, self.detail):
            return
        self.phase, self.detail = phase, detail
        self._report(self, hint)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _close_taps(self) -> None:
        """QEMU has its own copies: with it, the last user of a tap is gone."""
        while self._taps:
            os.close(self._taps.pop())

    async def _clear(self) -> None:
        self._close_taps()
        machine, self._machine = self._machine, None
        if machine is not None:
            await machine.stop(0)
            await machine.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
