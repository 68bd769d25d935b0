"""One VM from its files to its end, as a state machine that tells of every step."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from pvc.errors import GuestError, PvcError
from pvc.model.cluster import ClusterSpec
from pvc.model.vm import ENDED, Phase, VmStatus
from pvc.plan.qemu import QemuSpec, VmFds, qemu_argv
from pvc.plan.qemudrives import VmPaths
from pvc.supervisor.console import Console
from pvc.supervisor.ending import Ending, explain_end, plan_restart, read_last_words
from pvc.supervisor.machine import Machine, event_data
from pvc.supervisor.prepare import prepare_vm
from pvc.supervisor.probe import Answer, wait_banner
from pvc.supervisor.share import VmShare

LOG = logging.getLogger(__name__)

Report = Callable[["Vm", str | None], None]
FetchTaps = Callable[[int], Awaitable[Sequence[int]]]

_ON_REQUEST = "stopped on request"
_RESET, _REBOOTED = "was reset", "its guest rebooted"
_NO_SSH_YET = ", no ssh answer yet"
_REFUSED = ", refuses ssh: no sshd listens, or not yet"
_NO_SSH_PORT = "; no port of the node leads to its ssh"
_PAUSED, _PAUSED_ON_REQUEST = "paused", "paused on request"
_DUMPED = "paused while its memory is written to a file"
_DUMP_POLL_S = 0.2
_RUNS = (Phase.BOOTING, Phase.REACHABLE, Phase.PAUSED)
# A guest that QEMU paused because the disk is full goes on once there is room.
_RESUME_S = 10.0
_LASTS_S = 1.0
_LAST_WORDS_S = 1.0
# QEMU was built without seccomp, or the kernel has none: both messages of softmmu/qemu-seccomp.c and vl.c.
_NO_SANDBOX = ("-sandbox", "seccomp")


class Vm:
    """``report(vm, hint)`` is called after every change of phase or detail; ``fetch_taps(rank)`` opens the
    VM's taps again for another start.
    """

    def __init__(self, share: VmShare, report: Report, fetch_taps: FetchTaps) -> None:
        self.share = share
        self.phase = Phase.WAITING
        self.detail = ""
        self.pinned: tuple[int, ...] = ()
        self.started: float | None = None
        self.reachable: float | None = None
        self.console: Console | None = None
        self._report = report
        self._fetch_taps = fetch_taps
        self._machine: Machine | None = None
        self._paths: VmPaths | None = None
        self._taps = list(share.taps)
        self._probe: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # Orders come one after the other; the cluster's end waits for none of them.
        self._orders = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._settled = asyncio.Event()
        self._ended = asyncio.Event()
        self._leaving = False
        self._again: asyncio.TimerHandle | None = None
        self._tries = 0
        self._restarts = 0
        self._forget_life()

    def _forget_life(self) -> None:
        """What is known of one run of QEMU, as it is before it starts."""
        self.pinned = ()
        self.started = self.reachable = None
        self.last_words: tuple[str, ...] = ()
        self._stopping = False
        self._grace_s = 0.0
        self._shutdown_reason: str | None = None
        self._running = (Phase.BOOTING, "")  # how it is while it is not paused
        self._pause: str | None = None
        self._why_paused = _PAUSED
        self._disk_errors = 0
        self._disk_full = False
        self._panicked = False
        self._booted = False
        self._dump_error = ""
        self._hint: str | None = None  # what to do about its end

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
            addresses=share.addresses,
            ssh_host=share.ssh_host,
            ssh_port=share.ssh_port,
            accel=share.accel.value,
            pinned=self.pinned,
            started=self.started,
            reachable=self.reachable,
            detail=self.detail,
            ssh_by_owner=share.ssh_by_owner,
            restarts=self._restarts,
            last_words=self.last_words,
        )

    async def run(self, spec: ClusterSpec, instance_id: str) -> None:
        """Start the VM, again on request, and return after ``leave``; never raises for what concerns this VM alone."""
        while not self._leaving:
            self._wanted.clear()
            ending = self._plan_restart(await self._live(spec, instance_id))
            self._hint = ending.hint
            self._change(ending.phase, ending.detail, ending.hint)
            self._settled.set()
            self._ended.set()
            if not self._leaving:
                await self._wanted.wait()
        if self.phase not in ENDED:  # it was over before it began
            self._close_taps()
            self._change(Phase.STOPPED, _ON_REQUEST)

    def _plan_restart(self, ending: Ending) -> Ending:
        """The ending as it is told, with another start arranged where the template wants one."""
        if self._stopping or self._leaving:
            return ending
        ran_s = time.time() - self.started if self._booted and self.started is not None else None
        again = plan_restart(self.share.template.restart, ending, ran_s=ran_s, tries=self._tries)
        if again is None:
            return ending
        self._tries, pause_s = again
        self._again = asyncio.get_running_loop().call_later(pause_s, self._restart)
        return dataclasses.replace(ending, detail=f"{ending.detail}; starts again in {pause_s:g} s")

    def _restart(self) -> None:
        self._restarts += 1
        self._want()

    def _want(self) -> None:
        """Let ``run`` begin another life."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self._forget_life()
        self._settled.clear()
        self._ended.clear()
        self._change(Phase.WAITING)
        self._wanted.set()

    async def leave(self, grace_s: float) -> None:
        """End the VM for good; ``run`` returns soon after."""
        self._leaving = True
        if self._again is not None:
            self._again.cancel()
        self._wanted.set()
        await self._end_machine(grace_s)

    async def stop(self, grace_s: float) -> None:
        """End the VM, which keeps its disk and what it was granted. Without effect on one that has ended."""
        async with self._orders:
            if self._again is not None:
                self._again.cancel()
                self._again = None
                self._change(Phase.STOPPED, f"{_ON_REQUEST}, before it started again")
            elif self.phase not in ENDED:
                await self._end_machine(grace_s)
                await self._ended.wait()

    async def start(self) -> None:
        """Start a VM that has ended, on the disk that it left; return when QEMU runs. Without effect on one that runs.

        :raise GuestError: it did not start.
        """
        async with self._orders:
            if self.phase not in ENDED:
                return
            if self._leaving:
                raise GuestError(f"{self.share.name} ends with its cluster")
            self._tries = 0
            self._want()
            await self._settled.wait()
            if self.phase in ENDED:
                raise GuestError(f"{self.share.name} did not start: {self.detail}", hint=self._hint)

    async def reset(self) -> None:
        """Press the reset button.

        :raise GuestError: it does not run.
        """
        async with self._orders:
            machine = self.find_machine("reset")
            if self._pause is not None:
                raise GuestError(f"{self.share.name} is paused", hint=f"first: pvc resume {self.share.name}")
            await machine.execute("system_reset")
            self._wait_ssh(_RESET)

    async def pause(self) -> None:
        """Let the processors stand still. Without effect on one that is paused.

        :raise GuestError: it does not run.
        """
        async with self._orders:
            machine = self.find_machine("pause")
            self._disk_full = False  # its end does not let it go on
            self._why_paused = _PAUSED_ON_REQUEST
            await machine.execute("stop")
            self._set_pause(_PAUSED_ON_REQUEST)

    async def resume(self) -> None:
        """Let it go on. Without effect on one that runs.

        :raise GuestError: it does not run.
        """
        async with self._orders:
            machine = self.find_machine("resume")
            await machine.execute("cont")
            if not self._disk_full:
                self._set_pause(None)

    def find_machine(self, order: str) -> Machine:
        """The QEMU that runs now.

        :raise GuestError: none does, so this order cannot be carried out.
        """
        if self._machine is None or self.phase not in _RUNS:
            hint = f"start it with pvc start {self.share.name}" if self.phase in ENDED else None
            raise GuestError(f"cannot {order} {self.share.name}: it is {self.phase.value}", hint=hint)
        return self._machine

    async def dump(self, fd: int, form: str, tell: Callable[[int, int], Awaitable[None]]) -> None:
        """Let QEMU write the guest's memory to a file, which gets ``form`` (elf, kdump-zlib, …); the guest stands still
        meanwhile. ``tell(done, total)`` hears of its progress, in bytes.

        :raise GuestError: it does not run, or the file could not be written.
        """
        machine = self.find_machine("dump")
        self._dump_error = ""
        name = f"dump-{os.urandom(4).hex()}"
        await machine.give_file(name, fd)
        before, self._why_paused = self._why_paused, _DUMPED
        try:
            arguments = {"paging": False, "protocol": f"fd:{name}", "detach": True, "format": form}
            await machine.execute("dump-guest-memory", arguments)
        except GuestError:
            self._why_paused = before
            with suppress(GuestError):
                await machine.execute("closefd", {"fdname": name})
            raise
        while True:
            state = await machine.execute("query-dump")
            await tell(int(state["completed"]), int(state["total"]))
            if state["status"] != "active":
                break
            await asyncio.sleep(_DUMP_POLL_S)
        self._why_paused = _PAUSED if self._pause is None else self._pause
        if state["status"] != "completed":
            raise GuestError(f"the memory of {self.share.name} was not written: {self._dump_error or state['status']}")

    async def _end_machine(self, grace_s: float) -> None:
        self._stopping = True
        if self._machine is not None:
            # A paused guest cannot hear that it should power down.
            self._grace_s = 0.0 if self._pause is not None else grace_s
            await self._machine.stop(self._grace_s)

    async def _live(self, spec: ClusterSpec, instance_id: str) -> Ending:
        """One run of QEMU."""
        self._change(Phase.NETWORK)
        try:
            if self._paths is None:
                self._paths = prepare_vm(self.share, spec, instance_id)
            if len(self._taps) != len(self.share.taps):
                self._taps = list(await self._fetch_taps(self.share.rank))
            return await self._run_machine(self._paths)
        except PvcError as err:
            return self._failed(err)
        except (OSError, ValueError) as err:
            error = GuestError(f"cannot start {self.share.name}")
            error.__cause__ = err
            return self._failed(error)
        except Exception as err:  # a fault of pvc in one VM must not end its neighbours
            LOG.exception("%s: internal error", self.share.name)
            return Ending(Phase.FAILED, f"internal error: {err!r}")
        finally:
            await self._clear()

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
        await self._hear_console_out()
        for event in machine.events.clear():
            self._on_event(machine, str(event["event"]), event_data(event))
        ending = explain_end(
            status,
            requested=self._stopping,
            reason=self._shutdown_reason,
            stderr=machine.stderr(),
            memory_mib=self.share.memory_mib,
            grace_s=self._grace_s,
        )
        if ending.phase is Phase.FAILED and self.console is not None:
            self.last_words = read_last_words(self.console.recent)
        return ending

    async def _hear_console_out(self) -> None:
        """QEMU has closed its end: what is in the socket yet comes at once."""
        if self.console is not None:
            await asyncio.wait({self.console.ended}, timeout=_LAST_WORDS_S)

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
                    devices=share.grant.devices,
                )
            )
            machine = Machine.start([*argv, *share.screen_argv()], qmp, (fds.qmp, fds.console, *fds.taps))
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
        self._wait_ssh("runs")
        self._booted = True
        self._settled.set()

    def _wait_ssh(self, happened: str) -> None:
        """From here on the guest runs; ssh tells when it is up. ``happened`` is why it is not yet."""
        if self._probe is not None:
            self._probe.cancel()
        share = self.share
        self.reachable = None
        if share.ssh_host is None or share.ssh_port is None:
            self._show(Phase.BOOTING, f"{happened}{_NO_SSH_PORT}")
            return
        self._show(Phase.BOOTING, f"{happened}{_NO_SSH_YET}")
        self._probe = self._spawn(self._watch_ssh(share.ssh_host, share.ssh_port, happened))

    async def _watch_ssh(self, host: str, port: int, happened: str) -> None:
        def on_silence(answer: Answer) -> None:
            # For whoever asks; no event, most guests have their network a moment before their sshd.
            if self._pause is None:
                self.detail = f"{happened}{_REFUSED if answer is Answer.REFUSED else _NO_SSH_YET}"

        await wait_banner(host, port, on_silence)
        self.reachable = time.time()
        self._show(Phase.REACHABLE)

    async def _follow(self, machine: Machine) -> None:
        """Take in what QEMU tells, until its monitor closes."""
        async for event in machine.events:
            self._on_event(machine, str(event["event"]), event_data(event))

    def _on_event(self, machine: Machine, name: str, data: dict[str, object]) -> None:
        LOG.debug("%s: %s %s", self.share.name, name, data)
        if name == "SHUTDOWN":
            self._shutdown_reason = str(data.get("reason"))
        elif name == "RESET" and self.phase in _RUNS:
            self._wait_ssh(_REBOOTED if data.get("guest") else _RESET)
        elif name == "DUMP_COMPLETED":
            self._dump_error = str(data.get("error", ""))
        elif name == "GUEST_PANICKED":
            self._panicked = True
        elif name == "STOP" and self.phase in _RUNS and not self._panicked:
            self._set_pause(self._why_paused)
        elif name == "RESUME" and self._pause is not None and not self._disk_full:
            self._set_pause(None)
        elif name == "BLOCK_IO_ERROR" and data.get("action") == "stop":
            # One for each request in flight: the first starts the attempts to go on, the others only count.
            self._disk_errors += 1
            if not self._disk_full:
                self._disk_full = True
                reason = data.get("reason", "I/O error")
                self._set_pause(f"paused: its disk in {self.share.directory} cannot be written: {reason}")
                self._spawn(self._resume(machine))

    async def _resume(self, machine: Machine) -> None:
        """Let a guest go on that QEMU paused for its disk, again and again until that lasts."""
        while self._disk_full:
            await asyncio.sleep(_RESUME_S)
            await self._try_to_go_on(machine)

    async def _try_to_go_on(self, machine: Machine) -> None:
        if not self._disk_full:  # paused on request meanwhile
            return
        before = self._disk_errors
        with suppress(GuestError):
            await machine.execute("cont")
            await asyncio.sleep(_LASTS_S)
            if self._disk_errors == before and self._disk_full:
                self._disk_full = False
                self._set_pause(None)

    def _set_pause(self, why: str | None) -> None:
        """The guest stands still (the reason), or goes on as it was (None)."""
        self._pause = why
        self._why_paused = _PAUSED if why is None else why
        self._show(*self._running)

    def _show(self, phase: Phase, detail: str = "") -> None:
        self._running = (phase, detail)
        if self._pause is not None:
            phase, detail = Phase.PAUSED, self._pause
        self._change(phase, detail)

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
