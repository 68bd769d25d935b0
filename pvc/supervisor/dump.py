"""A guest's memory in an open file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress

from pvc.errors import GuestError
from pvc.supervisor.driver import Machine, event_data
from pvc.supervisor.pauses import PAUSED, Pauses

_WHY_PAUSED = "paused while its memory is written to a file"
_POLL_S = 0.2
_TOLD_S = 1.0


async def write_memory(
    machine: Machine, pauses: Pauses, fd: int, form: str, tell: Callable[[int, int], Awaitable[None]]
) -> None:
    """Let QEMU write the guest's memory to a file, which gets ``form`` (elf, kdump-zlib, …); the guest stands still
    meanwhile. ``tell(done, total)`` hears of its progress, in bytes.

    :raise GuestError: it could not be written.
    """
    name = f"dump-{os.urandom(4).hex()}"
    await machine.give_file(name, fd)
    with machine.listener("DUMP_COMPLETED") as told:
        before, pauses.next_why = pauses.next_why, _WHY_PAUSED
        try:
            arguments = {"paging": False, "protocol": f"fd:{name}", "detach": True, "format": form}
            await machine.execute("dump-guest-memory", arguments)
        except GuestError:
            pauses.next_why = before
            with suppress(GuestError):
                await machine.execute("closefd", {"fdname": name})
            raise
        while True:
            state = await machine.execute("query-dump")
            await tell(int(state["completed"]), int(state["total"]))
            if state["status"] != "active":
                break
            await asyncio.sleep(_POLL_S)
        pauses.next_why = PAUSED if pauses.why is None else pauses.why
        if state["status"] != "completed":
            error = str(state["status"])
            with suppress(TimeoutError):
                async with asyncio.timeout(_TOLD_S):
                    error = str(event_data(await told.get()).get("error", error))
            raise GuestError(f"the guest's memory was not written: {error}")
