# SPDX-License-Identifier: Apache-2.0
"""A guest's memory in an open file."""

from __future__ import annotations

from pvc.errors import GuestError
from pvc.supervisor.driver import Machine, Tell
from pvc.supervisor.pauses import PAUSED, Pauses

_WHY_PAUSED = "paused while its memory is written to a file"


async def write_memory(machine: Machine, pauses: Pauses, fd: int, form: str, tell: Tell) -> None:
    """Let QEMU write the guest's memory to a file, which gets ``form`` (elf, kdump-zlib, …); the guest stands still
    meanwhile. ``tell(done, total)`` hears of its progress, in bytes.

    :raise GuestError: it could not be written.
    """
    before, pauses.next_why = pauses.next_why, _WHY_PAUSED
    stood_still = pauses.why is not None
    try:
        await machine.dump(fd, form, tell)
    except GuestError:
        pauses.next_why = before
        raise
    pauses.next_why = before if stood_still else PAUSED
