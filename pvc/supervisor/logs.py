"""The control port's request ``log``: a VM's console or the supervisor's own journal, and what comes after."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from pvc.errors import GuestError, UsageError
from pvc.supervisor.hooks import LOG_NAME
from pvc.supervisor.journal import Journal
from pvc.supervisor.vm import Vm

_CHUNK = 1 << 16
_MOST = 1 << 20  # of what hooks have said


async def send_log(
    vm: Vm, journal: Journal, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer, then the text: ``source`` console, supervisor or hooks, its last ``lines`` (none: all), and with
    ``follow`` what is said from then on, until the caller leaves or the VM's console ends; of hooks nothing more.

    :raise GuestError: the VM has no console.
    :raise UsageError: no such source, or no such number.
    """
    source, follow = request.get("source", "console"), request.get("follow") is True
    lines = _parse_lines(request.get("lines"))
    ended: asyncio.Future[None] | None = None
    watching: AbstractContextManager[None]
    if source == "supervisor":
        text = journal.read(vm.share.rank)
        watching = journal.watch(writer, vm.share.rank)
    elif source == "hooks":
        text = await asyncio.to_thread(_read_hooks, vm)
        watching = nullcontext()
    elif source == "console":
        if vm.console is None:
            raise GuestError(f"{vm.share.name} has not started, so it has no console")
        text, ended = vm.console.read_log(), vm.console.ended
        watching = vm.console.watch(writer, replay=False)
    else:
        raise UsageError(f"the supervisor keeps no log {source!r}")
    # One step for the loop: what comes meanwhile is neither lost nor sent twice.
    writer.write(json.dumps({"ok": True}).encode() + b"\n" + last_lines(text, lines))
    if follow:
        with watching:
            left = asyncio.create_task(_wait_left(reader))
            try:
                await asyncio.wait({left, *([ended] if ended else [])}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                left.cancel()
                await asyncio.gather(left, return_exceptions=True)
    await writer.drain()


def _read_hooks(vm: Vm) -> bytes:
    try:
        with (vm.share.directory / LOG_NAME).open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _MOST))
            return stream.read(_MOST)
    except OSError:
        return b""


def last_lines(text: bytes, count: int | None) -> bytes:
    """The last ``count`` lines of a text; an unfinished last one counts."""
    if count is None:
        return text
    end = len(text)
    if text.endswith(b"\n"):
        end -= 1
    for _ in range(count):
        end = text.rfind(b"\n", 0, end)
        if end < 0:
            return text
    return text[end + 1 :] if count else b""


def _parse_lines(value: object) -> int | None:
    if value is None:
        return None
    if type(value) is int and 0 <= value <= 1 << 30:
        return value
    raise UsageError("lines is a number")


async def _wait_left(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(_CHUNK):
            pass
    except OSError:
        return
