# SPDX-License-Identifier: Apache-2.0
"""Consoles over socket pairs: no address is opened."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pvc.supervisor import console as module
from pvc.supervisor.console import Console
from tests.waits import until

pytestmark = pytest.mark.allow_sockets  # pairs only


class Transport(asyncio.WriteTransport):
    """Counts what a watcher has not read."""

    def __init__(self) -> None:
        super().__init__()
        self.queued = 0
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.queued

    def abort(self) -> None:
        self.aborted = True


class Watching:
    """A watcher that keeps what it is sent."""

    def __init__(self) -> None:
        self.data = b""
        self.transport = Transport()

    def write(self, data: bytes) -> None:
        self.data += data


def with_console(tmp_path: Path, use: Callable[[Console, socket.socket], Awaitable[None]]) -> Console:
    """Run ``use`` with a console and QEMU's end of it; returns the console after QEMU's end."""

    async def main() -> Console:
        ours, qemu = socket.socketpair()
        qemu.setblocking(False)
        console = Console(ours, tmp_path / "console.log")
        reading = asyncio.create_task(console.run())
        with qemu:
            await use(console, qemu)
        await reading
        return console

    return asyncio.run(main())


async def say(console: Console, qemu: socket.socket, data: bytes) -> None:
    """Return once the console has taken it; what is said twice in a row must differ."""
    await asyncio.get_running_loop().sock_sendall(qemu, data)
    await until(lambda: console.recent.endswith(data))


def test_watchers_hear_the_same_and_late_ones_get_a_replay(tmp_path: Path) -> None:
    first, late = Watching(), Watching()

    async def use(console: Console, qemu: socket.socket) -> None:
        with console.watch(first):
            await say(console, qemu, b"boot ")
            with console.watch(late):
                await say(console, qemu, b"login: ")
            await say(console, qemu, b"bye")

    console = with_console(tmp_path, use)
    assert first.data == b"boot login: bye"
    assert late.data == b"boot login: "
    assert console.read_log() == b"boot login: bye"
    assert console.ended.done()


def test_replay_is_bounded(tmp_path: Path) -> None:
    watcher = Watching()

    async def use(console: Console, qemu: socket.socket) -> None:
        for i in range(20):
            await say(console, qemu, bytes([65 + i]) * 10_000)
        with console.watch(watcher):
            pass

    with_console(tmp_path, use)
    assert len(watcher.data) == module.REPLAY_BYTES
    assert watcher.data.endswith(b"T" * 10_000)


def test_typing_reaches_qemu_and_is_harmless_after_its_end(tmp_path: Path) -> None:
    async def use(console: Console, qemu: socket.socket) -> None:
        await console.send(b"root\n")
        assert await asyncio.get_running_loop().sock_recv(qemu, 100) == b"root\n"
        qemu.close()
        await console.ended
        await console.send(b"anybody?\n")

    with_console(tmp_path, use)


def test_a_watcher_that_does_not_read_is_dropped(tmp_path: Path) -> None:
    stuck, good = Watching(), Watching()

    async def use(console: Console, qemu: socket.socket) -> None:
        with console.watch(stuck), console.watch(good):
            stuck.transport.queued = module.WATCHER_BYTES + 1
            await say(console, qemu, b"one")
            stuck.transport.queued = 0
            await say(console, qemu, b"two")

    with_console(tmp_path, use)
    assert stuck.transport.aborted
    assert stuck.data == b""
    assert good.data == b"onetwo"


def test_the_log_is_bounded_and_keeps_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_HALF_BYTES", 1000)

    async def use(console: Console, qemu: socket.socket) -> None:
        for i in range(50):
            await say(console, qemu, b"%099d\n" % i)

    console = with_console(tmp_path, use)
    log = console.read_log()
    assert 1000 <= len(log) <= 2200
    assert log.endswith(b"%099d\n" % 49)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == len(log)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_without_a_writable_disk_the_last_output_is_still_there(tmp_path: Path) -> None:
    async def use(console: Console, qemu: socket.socket) -> None:
        await say(console, qemu, b"hello")

    assert with_console(tmp_path / "missing", use).read_log() == b"hello"
