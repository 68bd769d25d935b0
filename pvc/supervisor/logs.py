# SPDX-License-Identifier: Apache-2.0
"""The control port's request ``log``: a VM's console or the supervisor's own journal, and what comes after."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from pvc.errors import GuestError, UsageError
from pvc.host import appended
from pvc.supervisor.console import WATCHER_BYTES
from pvc.supervisor.hooks import LOG_NAME
from pvc.supervisor.journal import Journal
from pvc.supervisor.vm import Vm

_CHUNK = 1 << 16
_MOST = 1 << 20  # of what hooks have said


async def send_log(
    vm: Vm, journal: Journal, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer, then the text: ``source`` console, supervisor or hooks, its last ``lines`` (none: all), and with
    ``follow`` what is said from then on, until the caller leaves or the VM's console ends.

    :raise GuestError: the VM has no console.
    :raise UsageError: no such source, or no such number.
    """
    source, follow = request.get("source", "console"), request.get("follow") is True
    lines = _parse_lines(request.get("lines"))
    ended: asyncio.Future[None] | None = None
    watching: AbstractContextManager[None]
    with ExitStack() as stack:
        if source == "supervisor":
            text = journal.read(vm.share.rank)
            watching = journal.watch(writer, vm.share.rank)
        elif source == "hooks":
            hooks = stack.enter_context(await asyncio.to_thread(_open_hooks, vm))
            text = await asyncio.to_thread(hooks.read)
            watching = _watch_hooks(hooks, vm.share.directory / LOG_NAME, writer)
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
                await _wait_end(reader, ended)
    await writer.drain()


async def _wait_end(reader: asyncio.StreamReader, ended: asyncio.Future[None] | None) -> None:
    left = asyncio.create_task(_wait_left(reader))
    try:
        await asyncio.wait({left, *([ended] if ended else [])}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)


def _open_hooks(vm: Vm) -> FileIO:
    """At the beginning of what is shown of it. The first hook may still be to come."""
    path = vm.share.directory / LOG_NAME
    try:
        stream = FileIO(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except OSError as err:
        raise GuestError(f"{vm.share.name} has not begun to start, so no hook has run") from err
    stream.seek(max(0, os.fstat(stream.fileno()).st_size - _MOST))
    return stream


@contextmanager
def _watch_hooks(stream: FileIO, path: Path, writer: asyncio.StreamWriter) -> Iterator[None]:
    """Send what hooks say from now on; a caller who does not read is cut."""
    loop = asyncio.get_running_loop()

    def send() -> None:
        appended.drain(fd)
        while data := stream.read(_CHUNK):
            writer.write(data)
            if writer.transport.get_write_buffer_size() > WATCHER_BYTES:
                writer.transport.abort()
                return

    with appended.watch_file(path) as fd:
        loop.add_reader(fd, send)
        send()  # what was said before it was watched
        try:
            yield
        finally:
            loop.remove_reader(fd)


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
