# SPDX-License-Identifier: Apache-2.0
"""Why a guest stands still and what it is when it does not: two things, of which its owner sees one.

STOP and RESUME of QMP tell of every pause, whoever asked for it: an order, the monitor, a dump, a full disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

from pvc.errors import GuestError
from pvc.model.vm import Phase
from pvc.plan.qemudrives import find_drive
from pvc.supervisor.driver import Machine
from pvc.supervisor.share import VmShare
from pvc.supervisor.state import State

PAUSED = "paused"
_ON_REQUEST = "paused on request"
# A guest that QEMU paused because a disk is full, or a quota reached, goes on once there is room.
_RESUME_S = 10.0
_LASTS_S = 1.0


class Pauses:
    """Of one run of QEMU; ``spawn`` runs a coroutine until the run's end."""

    def __init__(
        self, state: State, share: VmShare, spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    ) -> None:
        self.why: str | None = None  # it stands still
        self.next_why = PAUSED  # what the next STOP means
        self._running = (Phase.BOOTING, "")  # how it is while it does not
        self._state = state
        self._share = share
        self._spawn = spawn
        self._disk_errors = 0
        self._disk_full = False

    def show(self, phase: Phase, detail: str = "") -> None:
        """How the guest is, as soon as it goes on."""
        self._running = (phase, detail)
        if self.why is not None:
            phase, detail = Phase.PAUSED, self.why
        self._state.change(phase, detail)

    async def pause(self, machine: Machine) -> None:
        """Let the processors stand still.

        :raise GuestError: QEMU refused.
        """
        self._disk_full = False  # its end does not let it go on
        self.next_why = _ON_REQUEST
        await machine.execute("stop")
        self._set(_ON_REQUEST)

    async def resume(self, machine: Machine) -> None:
        """Let them go on.

        :raise GuestError: QEMU refused.
        """
        await machine.execute("cont")
        if not self._disk_full:
            self._set(None)

    def on_stop(self) -> None:
        """QEMU says that the guest stands still."""
        self._set(self.next_why)

    def on_resume(self) -> None:
        """QEMU says that it goes on."""
        if self.why is not None and not self._disk_full:
            self._set(None)

    def on_disk_error(self, machine: Machine, data: Mapping[str, object]) -> None:
        """QEMU says that a disk could not be written: one event for each request in flight."""
        if data.get("action") != "stop":
            return
        # The first one starts the attempts to go on, the others only count.
        self._disk_errors += 1
        if not self._disk_full:
            self._disk_full = True
            reason = data.get("reason", "I/O error")
            self._set(f"paused: {self._name_disk(data)} cannot be written: {reason}")
            self._spawn(self._go_on(machine))

    def _name_disk(self, data: Mapping[str, object]) -> str:
        number = find_drive(str(data.get("node-name")))
        drives = self._share.template.drives
        if number is not None and number <= len(drives):
            return f"its persistent drive {drives[number - 1].path}"
        return f"its disk in {self._share.directory}"

    async def _go_on(self, machine: Machine) -> None:
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
                self._set(None)

    def _set(self, why: str | None) -> None:
        self.why = why
        self.next_why = PAUSED if why is None else why
        self.show(*self._running)
