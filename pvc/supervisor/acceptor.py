# SPDX-License-Identifier: Apache-2.0
"""Taking connections in, in the event loop, for as long as the machine has descriptors and memory for them.

Where it has not, the listener stays readable: who asks again at once has no time for those who are in.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

LOG = logging.getLogger(__name__)

# Taken in at a time, so that callers who are in are served meanwhile.
_AT_ONCE = 64
_PAUSE_S = 0.5


class Acceptor:
    """Accepts at ``listener``, which must not block; ``take`` gets each connection and its address, and owns it."""

    def __init__(self, listener: socket.socket, what: str, take: Callable[[socket.socket, Any], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._what = what
        self._take = take
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Accept no more, and close the listener."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, address = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as err:
                LOG.info("%s: cannot take anybody in for a moment: %s", self._what, err)
                self._loop.remove_reader(self._listener)
                self._pause = self._loop.call_later(_PAUSE_S, self._loop.add_reader, self._listener, self._accept)
                return
            self._take(connection, address)
