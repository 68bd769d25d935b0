# SPDX-License-Identifier: Apache-2.0
"""One VM from its files to its end, as a state machine that tells of every step."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Sequence

from pvc.errors import GuestError, PvcError
from pvc.model.cluster import ClusterSpec
from pvc.model.vm import ENDED, AgentStatus, Phase, VmStatus
from pvc.plan.qemudrives import VmPaths
from pvc.supervisor.agent import Agent
from pvc.supervisor.console import Console
from pvc.supervisor.driver import Driver, Machine
from pvc.supervisor.dump import write_memory
from pvc.supervisor.ending import Ending, plan_restart
from pvc.supervisor.life import ON_REQUEST, RESET, Life
from pvc.supervisor.prepare import prepare_vm
from pvc.supervisor.share import VmShare
from pvc.supervisor.state import RUNS, State

LOG = logging.getLogger(__name__)

Report = Callable[["Vm", str | None], None]
FetchTaps = Callable[[int], Awaitable[Sequence[int]]]


class Vm:
    """``report(vm, hint)`` is called after every change of phase or detail; ``fetch_taps(rank)`` opens the
    VM's taps again for another start.
    """

    def __init__(self, share: VmShare, driver: Driver, report: Report, fetch_taps: FetchTaps) -> None:
        self.share = share
        self.state = State(lambda hint: report(self, hint))
        self._driver = driver
        self._fetch_taps = fetch_taps
        self._life = Life(share, driver, self.state)
        self._console: Console | None = None  # of the life before
        self._paths: VmPaths | None = None
        self._taps = list(share.taps)
        # Orders come one after the other; the cluster's end waits for none of them.
        self._orders = asyncio.Lock()
        self.saving = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._settled = asyncio.Event()
        self._ended = asyncio.Event()
        self._leaving = False
        self._again: asyncio.TimerHandle | None = None
        self._tries = 0
        self._restarts = 0
        self._hint: str | None = None  # what to do about its end

    @property
    def phase(self) -> Phase:
        """How far it has come."""
        return self.state.phase

    @property
    def detail(self) -> str:
        """More about that."""
        return self.state.detail

    @property
    def last_words(self) -> tuple[str, ...]:
        """Of a failed VM: the last lines of its console."""
        return self._life.last_words

    @property
    def console(self) -> Console | None:
        """Its console, the last one's between two starts; None: it has never started."""
        return self._life.console or self._console

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
            pinned=self._life.pinned,
            started=self._life.started,
            reachable=self._life.reach.at,
            detail=self.detail,
            ssh_by_owner=share.ssh_by_owner,
            restarts=self._restarts,
            last_words=self.last_words,
            libvirt_uri=self._driver.uri,
            since=self.state.since,
            hint=self.state.hint,
            agent=self._agent_status(),
        )

    def _agent_status(self) -> AgentStatus:
        agent = self._life.agent
        if agent is None or self.phase in ENDED:
            return AgentStatus()
        return AgentStatus(agent.connected, agent.release, agent.since, agent.problem)

    async def run(self, spec: ClusterSpec, instance_id: str) -> None:
        """Start the VM, again on request, and return after ``leave``; never raises for what concerns this VM alone."""
        while not self._leaving:
            self._wanted.clear()
            ending = self._plan_restart(await self._live(spec, instance_id))
            self._hint = ending.hint
            self.state.change(ending.phase, ending.detail, ending.hint)
            self._settled.set()
            self._ended.set()
            if not self._leaving:
                await self._wanted.wait()
        if self.phase not in ENDED:  # it was over before it began
            self._close_taps()
            self.state.change(Phase.STOPPED, ON_REQUEST)

    def _plan_restart(self, ending: Ending) -> Ending:
        """The ending as it is told, with another start arranged where the template wants one."""
        if self._life.stopping or self._leaving:
            return ending
        life = self._life
        ran_s = time.time() - life.started if life.booted and life.started is not None else None
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
        self._console = self.console
        self._life = Life(self.share, self._driver, self.state)
        self._hint = None
        self._settled.clear()
        self._ended.clear()
        self.state.change(Phase.WAITING)
        self._wanted.set()

    async def leave(self, grace_s: float, limit_s: float = math.inf) -> None:
        """End the VM for good; ``run`` returns soon after. See ``Life.stop``."""
        self._leaving = True
        if self._again is not None:
            self._again.cancel()
        self._wanted.set()
        await self._life.stop(grace_s, limit_s)

    async def stop(self, grace_s: float) -> None:
        """End the VM, which keeps its disk and what it was granted. Without effect on one that has ended."""
        async with self._orders:
            if self._again is not None:
                self._again.cancel()
                self._again = None
                self.state.change(Phase.STOPPED, f"{ON_REQUEST}, before it started again")
            elif self.phase not in ENDED:
                await self._life.stop(grace_s)
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
            if self._life.pauses.why is not None:
                raise GuestError(f"{self.share.name} is paused", hint=f"first: pvc resume {self.share.name}")
            await machine.execute("system_reset")
            self._life.reach.begin(RESET)

    async def pause(self) -> None:
        """Let the processors stand still. Without effect on one that is paused.

        :raise GuestError: it does not run.
        """
        async with self._orders:
            await self._life.pauses.pause(self.find_machine("pause"))

    async def resume(self) -> None:
        """Let it go on. Without effect on one that runs.

        :raise GuestError: it does not run.
        """
        async with self._orders:
            await self._life.pauses.resume(self.find_machine("resume"))

    def find_machine(self, order: str) -> Machine:
        """The QEMU that runs now.

        :raise GuestError: none does, so this order cannot be carried out.
        """
        machine = self._life.machine
        if machine is None or self.phase not in RUNS:
            hint = f"start it with pvc start {self.share.name}" if self.phase in ENDED else None
            raise GuestError(f"cannot {order} {self.share.name}: it is {self.phase.value}", hint=hint)
        return machine

    @property
    def agent(self) -> Agent | None:
        """The way to its agent; None: it has never started."""
        return self._life.agent

    def find_agent(self) -> Agent:
        """The way to its agent, whether that answers or not.

        :raise GuestError: it does not run.
        """
        self.find_machine("reach the agent of")
        if self._life.agent is None:
            raise GuestError(f"{self.share.name} has only begun to start")
        return self._life.agent

    async def dump(self, fd: int, form: str, tell: Callable[[int, int], Awaitable[None]]) -> None:
        """Let QEMU write the guest's memory to a file, as ``write_memory`` does.

        :raise GuestError: it does not run, or the file could not be written.
        """
        await write_memory(self.find_machine("dump"), self._life.pauses, fd, form, tell)

    async def _live(self, spec: ClusterSpec, instance_id: str) -> Ending:
        """One run of QEMU."""
        self.state.change(Phase.NETWORK)
        try:
            if self._paths is None:
                self._paths = prepare_vm(self.share, spec, instance_id)
            if len(self._taps) != len(self.share.taps):
                self._taps = list(await self._fetch_taps(self.share.rank))
            return await self._life.run(spec, self._paths, tuple(self._taps), self._on_running)
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
            self._close_taps()

    def _on_running(self) -> None:
        self._close_taps()
        self._settled.set()

    def _failed(self, error: PvcError) -> Ending:
        if self._life.stopping:
            return Ending(Phase.STOPPED, ON_REQUEST)
        return Ending(Phase.FAILED, str(error), error.find_hint())

    def _close_taps(self) -> None:
        """QEMU has its own copies: with it, the last user of a tap is gone."""
        while self._taps:
            os.close(self._taps.pop())
