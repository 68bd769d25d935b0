# SPDX-License-Identifier: Apache-2.0
"""One VM's serial console: a single reader of QEMU's end, a bounded log, any number of watchers."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

REPLAY_BYTES = 16 << 10
# A guest that prints for days must not fill the run directory: two files of this size are kept.
LOG_HALF_BYTES = 4 << 20
# A watcher that stopped reading is dropped, so that it costs no memory and delays nobody.
WATCHER_BYTES = 1 << 20
_CHUNK = 1 << 16


class Watcher(Protocol):
    """Where console output goes: an asyncio.StreamWriter is one."""

    def write(self, data: bytes) -> None:
        """Queue ``data``."""

    @property
    def transport(self) -> asyncio.WriteTransport:
        """What tells how much is queued."""


class Console:
    """Reads all that QEMU writes, whether somebody watches or not: a full socket would stop the guest."""

    def __init__(self, connection: socket.socket, log: Path) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._log = log
        self._log_fd = -1
        self._log_size = 0
        self._recent = bytearray()
        self._watchers: set[Watcher] = set()
        self._send_lock = asyncio.Lock()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def old_log(self) -> Path:
        """The older half of the log."""
        return self._log.with_name(f"{self._log.name}.old")

    async def run(self) -> None:
        """Copy output until QEMU closes its end."""
        loop = asyncio.get_running_loop()
        try:
            with suppress(ConnectionResetError):
                while data := await loop.sock_recv(self._connection, _CHUNK):
                    self._take(data)
        finally:
            self._connection.close()
            self._close_log()
            if not self.ended.done():
                self.ended.set_result(None)

    async def send(self, data: bytes) -> None:
        """Type ``data`` into the guest's serial port; without effect once QEMU is gone."""
        async with self._send_lock:
            with suppress(OSError):
                await asyncio.get_running_loop().sock_sendall(self._connection, data)

    @contextmanager
    def watch(self, watcher: Watcher, *, replay: bool = True) -> Iterator[None]:
        """Replay the last bytes to ``watcher``, then send it all that comes, until the block ends."""
        if replay and self._recent:
            watcher.write(self.recent)
        self._watchers.add(watcher)
        try:
            yield
        finally:
            self._watchers.discard(watcher)

    def read_log(self) -> bytes:
        """The log's kept part, oldest first; what could not be written to disk is missing."""
        found = b""
        for path in (self.old_log, self._log):
            with suppress(OSError):
                found += path.read_bytes()
        return found or bytes(self._recent)

    @property
    def recent(self) -> bytes:
        """The last that came."""
        return bytes(self._recent[-REPLAY_BYTES:])

    def _take(self, data: bytes) -> None:
        self._recent += data
        if len(self._recent) > 4 * REPLAY_BYTES:
            del self._recent[:-REPLAY_BYTES]
        self._write_log(data)
        for watcher in list(self._watchers):
            if watcher.transport.get_write_buffer_size() > WATCHER_BYTES:
                self._watchers.discard(watcher)
                watcher.transport.abort()
            else:
                watcher.write(data)

    def _write_log(self, data: bytes) -> None:
        # A full disk costs lines of the log, not the guest's run.
        with suppress(OSError):
            if self._log_fd < 0:
                self._log_fd = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                self._log_size = os.fstat(self._log_fd).st_size
            self._log_size += os.write(self._log_fd, data)
            if self._log_size >= LOG_HALF_BYTES:
                self._close_log()
                self._log.replace(self.old_log)

    def _close_log(self) -> None:
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1
