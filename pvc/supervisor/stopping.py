# SPDX-License-Identifier: Apache-2.0
"""How a QEMU is ended, whoever started it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from pvc.errors import GuestError
from pvc.supervisor.driver import Machine

_QUIT_S = 3.0
_PRESS_S = 5.0


async def end_machine(machine: Machine, kill: Callable[[], None], grace_s: float) -> None:
    """Ask the guest for ``grace_s`` seconds, then QEMU, then the kernel."""
    if grace_s > 0 and not machine.ended:
        await _power_down(machine, grace_s)
    if not machine.ended:
        with suppress(GuestError, TimeoutError):
            async with asyncio.timeout(_QUIT_S):
                await machine.execute("quit")
            await _wait_s(machine, _QUIT_S)
    if not machine.ended:
        kill()
    await machine.wait()


async def _power_down(machine: Machine, grace_s: float) -> None:
    """Press the power button until the guest is off: one that still boots does not hear the first time."""
    deadline = time.monotonic() + grace_s
    while not machine.ended and (left_s := deadline - time.monotonic()) > 0:
        with suppress(GuestError):
            await machine.execute("system_powerdown")
        await _wait_s(machine, min(left_s, _PRESS_S))


async def _wait_s(machine: Machine, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await machine.wait()
