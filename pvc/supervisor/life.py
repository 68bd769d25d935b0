# SPDX-License-Identifier: Apache-2.0
"""One run of a VM: QEMU with all that belongs to it, from its start to an explained end."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar

from pvc.errors import GuestError, PvcError
from pvc.model.cluster import ClusterSpec
from pvc.model.vm import Phase
from pvc.plan.lastwords import read_last_words
from pvc.plan.qemu import channel_alias
from pvc.plan.qemudrives import VmPaths
from pvc.supervisor.agent import CHANNEL, Agent
from pvc.supervisor.companions import Companions
from pvc.supervisor.console import Console
from pvc.supervisor.driver import Driver, Launch, Machine, event_data
from pvc.supervisor.drives import HeldDrives, hold_drives
from pvc.supervisor.ending import Ending, explain_end
from pvc.supervisor.hooks import HookRunner
from pvc.supervisor.pauses import Pauses
from pvc.supervisor.prepare import find_helpers
from pvc.supervisor.reach import Reach
from pvc.supervisor.settle import Settler
from pvc.supervisor.share import VmShare
from pvc.supervisor.state import RUNS, State

LOG = logging.getLogger(__name__)

ON_REQUEST = "stopped on request"
# The template's custom-args may have added others.
_PORT_IDS = (CHANNEL, channel_alias(CHANNEL))
# A guest that hears its power button is off by then, or on its way.
_BUTTON_S = 3.0
RESET = "was reset"
_REBOOTED = "its guest rebooted"
_LAST_WORDS_S = 1.0
# For guests that write to persistent drives, before they are switched off.
DRIVES_GRACE_S = 20.0


_Result = TypeVar("_Result")


class Life:
    """``run`` is called once; another start is another life."""

    def __init__(self, share: VmShare, driver: Driver, state: State) -> None:
        self.pinned: tuple[int, ...] = ()
        self.started: float | None = None
        self.last_words: tuple[str, ...] = ()
        self.booted = False
        self.stopping = False
        self.machine: Machine | None = None
        self.console: Console | None = None
        self.agent: Agent | None = None
        self._share = share
        self._driver = driver
        self._state = state
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting: asyncio.Future[Any] | None = None
        self._hooks: HookRunner | None = None
        self._settler: Settler | None = None
        self._settled: float | None = None  # when the agent came that was told last
        self._ending: Ending | None = None
        self._grace_s = 0.0
        self._shutdown_reason: str | None = None
        self._panicked = False
        self.pauses = Pauses(state, share, self._spawn)
        self.reach = Reach(share, state, self.pauses, self._spawn)

    async def run(
        self, spec: ClusterSpec, paths: VmPaths, taps: tuple[int, ...], on_running: Callable[[], None]
    ) -> Ending:
        """Start QEMU and return when it has ended. ``on_running``: the guest runs, QEMU has its own copies of ``taps``.

        :raise GuestError: it did not start.
        """
        async with AsyncExitStack() as exits:
            exits.push_async_callback(self._end_tasks)
            self._hooks = hooks = HookRunner(self._share, spec)
            if await self._unless_stopped(hooks.require("before-start")) is None:
                return Ending(Phase.STOPPED, ON_REQUEST)
            exits.push_async_callback(self._after_stop, hooks)
            self.reach.on_answer = lambda: self._spawn(self._tell_reachable(hooks))
            # Programs beside QEMU (``helper.running``), there before it and until it is gone, enter ``exits`` here.
            held = await self._hold_drives(spec, exits)
            companions = Companions()
            await companions.start(find_helpers(self._share), self._share.directory, exits)
            launch = Launch(
                self._share,
                paths,
                taps,
                (CHANNEL,),
                drives=held.fds,
                inherited=(*held.inherited, *companions.fds),
                tpm=companions.tpm,
                shares=companions.shares,
            )
            if self.stopping:
                return Ending(Phase.STOPPED, ON_REQUEST)
            try:
                machine = await self._start(launch, spec, exits)
            except GuestError:
                explained = companions.explain()
                if explained is None:
                    raise
                raise explained from None
            if machine is None:
                return Ending(Phase.STOPPED, ON_REQUEST)
            companions.let_go()
            await self._boot(machine)
            self._spawn(companions.watch(machine, self._state))
            on_running()
            return await self._wait_end(machine)

    async def _hold_drives(self, spec: ClusterSpec, exits: AsyncExitStack) -> HeldDrives:
        """Its persistent drives, until QEMU is gone; file systems may take their time."""
        holding = asyncio.ensure_future(asyncio.to_thread(hold_drives, self._share, spec))
        try:
            held = await asyncio.shield(holding)
        except asyncio.CancelledError:
            with suppress(PvcError):
                (await holding).release()
            raise
        exits.push_async_callback(asyncio.to_thread, held.release)
        return held

    async def stop(self, grace_s: float, limit_s: float = math.inf) -> None:
        """End it; ``run`` returns soon after. A guest with persistent drives has time to power down in any case.

        ``limit_s``: after so long Slurm would end all.
        """
        self.stopping = True
        if self._share.template.drives:
            grace_s = max(grace_s, DRIVES_GRACE_S)
        grace_s = min(grace_s, limit_s)
        if self._starting is not None:
            self._starting.cancel()
        if self.machine is not None:
            machine = self.machine
            # A paused guest cannot hear that it should power down.
            self._grace_s = 0.0 if self.pauses.why is not None else grace_s
            if self._grace_s > 0 and self._hooks is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if math.isinf(limit_s) else limit_s):
                        await self._hooks.run("before-stop")
            if self._grace_s > 0:
                self._spawn(self._ask_agent_off(machine))
            await machine.stop(self._grace_s)

    async def _ask_agent_off(self, machine: Machine) -> None:
        """Where nobody hears the power button, the guest's init may hear its agent."""
        with suppress(TimeoutError):
            async with asyncio.timeout(min(_BUTTON_S, self._grace_s / 2)):
                await machine.wait()
                return
        if self.agent is not None:
            self.agent.ask(("op", "power"), ("how", "off"))

    async def _start(self, launch: Launch, spec: ClusterSpec, exits: AsyncExitStack) -> Machine | None:
        """None: an end was wanted meanwhile."""
        machine = await self._unless_stopped(self._driver.start(launch))
        if machine is None:
            return None
        self.machine = machine
        exits.push_async_callback(self._end_machine, machine)
        self.started = time.time()
        self._open_channels(machine, spec)
        return machine

    async def _unless_stopped(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result | None:
        """What it returns; None: an end was wanted meanwhile, and it was cancelled."""
        starting: asyncio.Future[_Result] = asyncio.ensure_future(coroutine)
        self._starting = starting
        try:
            return await starting
        except asyncio.CancelledError:
            if self.stopping and starting.cancelled():
                return None
            raise
        finally:
            self._starting = None

    async def _tell_reachable(self, hooks: HookRunner) -> None:
        wrong = await hooks.run("reachable")
        if wrong is not None:
            self._state.lack(wrong, hooks.hint)

    async def _after_stop(self, hooks: HookRunner) -> None:
        """QEMU is gone, if it was ever there."""
        if self.started is not None:
            ending = self._ending
            await hooks.run("after-stop", None if ending is None else f"{ending.phase.value}: {ending.detail}")

    def _open_channels(self, machine: Machine, spec: ClusterSpec) -> None:
        """Hand on QEMU's channels; whoever reads one closes it."""
        self.console = Console(machine.console, self._share.directory / "console.log")
        self._spawn(self.console.run())
        agent = Agent(self._share.name, machine.channels[CHANNEL], lambda: self.pauses.why is not None, self._on_agent)
        self.agent = agent
        self._settler = Settler(self._share, spec, agent)
        self._spawn(agent.run())

    def _on_agent(self) -> None:
        """The agent has come, gone, or is silent."""
        if self.agent is not None and self.agent.connected and self.agent.since != self._settled:
            self._settled = self.agent.since
            if self._settler is not None:
                self._settler.begin()

    async def _boot(self, machine: Machine) -> None:
        self._spawn(self._follow(machine))
        try:
            if self._share.pins:
                await self._pin(machine)
            await machine.execute("cont")
        except GuestError as err:
            await machine.stop(0)
            said = machine.stderr()
            raise GuestError(f"QEMU did not start: {said}" if said else str(err)) from None
        self.reach.begin("runs")
        self.booted = True

    async def _pin(self, machine: Machine) -> None:
        try:
            await machine.pin(self._share.pins)
            self.pinned = self._share.pins
        except OSError as err:
            LOG.warning("%s: cannot pin to CPUs %s: %s", self._share.name, self._share.pins, err)

    async def _wait_end(self, machine: Machine) -> Ending:
        status = await machine.wait()
        await machine.drain()
        await self._hear_console_out()
        for event in machine.events.clear():
            self._on_event(machine, str(event["event"]), event_data(event))
        ending = explain_end(
            status,
            requested=self.stopping,
            reason="guest-panic" if self._panicked else self._shutdown_reason,
            stderr=machine.stderr(),
            memory_mib=self._share.memory_mib,
            grace_s=self._grace_s,
        )
        if ending.phase is Phase.FAILED and self.console is not None:
            self.last_words = read_last_words(self.console.recent)
        self._ending = ending
        return ending

    async def _hear_console_out(self) -> None:
        """QEMU has closed its end: what is in the socket yet comes at once."""
        if self.console is not None:
            await asyncio.wait({self.console.ended}, timeout=_LAST_WORDS_S)

    async def _follow(self, machine: Machine) -> None:
        """Take in what QEMU tells, until its monitor closes."""
        async for event in machine.events:
            self._on_event(machine, str(event["event"]), event_data(event))

    def _on_event(self, machine: Machine, name: str, data: dict[str, object]) -> None:
        LOG.debug("%s: %s %s", self._share.name, name, data)
        if name == "SHUTDOWN":
            # The first one is the reason; another tells how QEMU itself was ended after that.
            self._shutdown_reason = self._shutdown_reason or str(data.get("reason"))
        elif name == "RESET" and self._state.phase in RUNS:
            self.reach.begin(_REBOOTED if data.get("guest") else RESET)
            if self.agent is not None:
                self.agent.on_reset()
        elif name == "GUEST_PANICKED":
            self._panicked = True
        elif name == "STOP" and self._state.phase in RUNS and not (self._panicked or self._shutdown_reason):
            self.pauses.on_stop()
        elif name == "RESUME":
            self.pauses.on_resume()
        elif name == "VSERPORT_CHANGE" and self.agent is not None and data.get("id") in _PORT_IDS:
            self.agent.on_port(is_open=bool(data.get("open")))
        elif name == "BLOCK_IO_ERROR":
            self.pauses.on_disk_error(machine, data)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _end_machine(self, machine: Machine) -> None:
        self.machine = None
        await machine.stop(0)
        await machine.close()

    async def _end_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)
