# SPDX-License-Identifier: Apache-2.0
"""Who is let in at a port that anybody can reach, before anything is spent on them.

A stranger costs one socket and a row here, and only a few of them at a time: the port tells the cluster's own
callers by the word in their first bytes (``channel.doorword``), which it looks at in the kernel's buffer. So no flood
of strangers takes the places of those who have the word, even from the same address.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from pvc.supervisor.acceptor import Acceptor

LOG = logging.getLogger(__name__)

# Strangers at a time, and of one address.
MAX_WAITING, MAX_OF_ADDRESS = 64, 8
# From the first byte to the word: callers send it in one piece.
WORD_S = 3.0
# TLS' first message, with the longest keys of today (post-quantum ones), which come behind the name.
_LOOK = 4096
_HEAD = 5
_BACKLOG = 256
_TELL_S = 60.0
_DEFER_S = 1


class Door:
    """Listens; ``admit`` gets each connection whose first bytes hold ``word``, and owns it."""

    def __init__(self, word: str, admit: Callable[[socket.socket], None]) -> None:
        self._word = word.encode()
        self._admit = admit
        self._loop = asyncio.get_running_loop()
        self._acceptor: Acceptor | None = None
        self._waiting: dict[socket.socket, _Guest] = {}
        self._turned_away = 0
        self._told = -_TELL_S

    def open(self, host: str) -> int:
        """Listen at ``host`` and return the port.

        :raise OSError: the address is not this node's.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.setblocking(False)
            # Whoever says nothing stays with the kernel, where a connection is some 300 bytes and nobody's memory.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _DEFER_S)
            listener.bind((host, 0))
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        self._acceptor = Acceptor(listener, "control", self._take_in)
        port: int = listener.getsockname()[1]
        return port

    def close(self) -> None:
        """Listen no more, and turn away who waits."""
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None
        for guest in list(self._waiting.values()):
            self._turn_away(guest)

    def _take_in(self, connection: socket.socket, address: tuple[str, int]) -> None:
        connection.setblocking(False)
        guest = _Guest(connection, address[0])
        if not self._look(guest):
            self._wait_for(guest)

    def _wait_for(self, guest: _Guest) -> None:
        held = Counter(each.address for each in self._waiting.values())
        if held[guest.address] >= MAX_OF_ADDRESS:
            self._make_room(guest.address)
        elif len(self._waiting) >= MAX_WAITING:
            self._make_room(held.most_common(1)[0][0])
        self._waiting[guest.connection] = guest
        guest.timer = self._loop.call_later(WORD_S, self._turn_away, guest)
        self._loop.add_reader(guest.connection, self._look, guest)

    def _make_room(self, address: str) -> None:
        """The one from ``address`` who has waited for longest goes; but its word may just have come."""
        guest = next(each for each in self._waiting.values() if each.address == address)
        if not self._look(guest):
            self._turn_away(guest)

    def _look(self, guest: _Guest) -> bool:
        """Whether it need not wait any more: it has said the word, or never will."""
        connection = guest.connection
        try:
            said = connection.recv(_LOOK, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            said = b""
        if self._word in said:
            self._forget(guest)
            with suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            self._admit(connection)
            return True
        # No byte more than last time: the other end has closed its side.
        if len(said) <= guest.said or len(said) >= _LOOK or not _may_go_on(said):
            self._turn_away(guest)
            return True
        guest.said = len(said)
        # Told again only when there is more, for what was looked at is still there to be read.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, guest.said + 1)
        return False

    def _turn_away(self, guest: _Guest) -> None:
        self._forget(guest)
        guest.connection.close()
        self._turned_away += 1
        if self._loop.time() - self._told >= _TELL_S:
            LOG.info(
                "control: turned away %d connections of strangers, now one from %s", self._turned_away, guest.address
            )
            self._told = self._loop.time()
            self._turned_away = 0

    def _forget(self, guest: _Guest) -> None:
        if self._waiting.pop(guest.connection, None) is not None:
            self._loop.remove_reader(guest.connection)
        if guest.timer is not None:
            guest.timer.cancel()


class _Guest:
    """A connection that has not said the word yet; ``said`` is how many bytes it has sent."""

    __slots__ = ("address", "connection", "said", "timer")

    def __init__(self, connection: socket.socket, address: str) -> None:
        self.connection = connection
        self.address = address
        self.said = 0
        self.timer: asyncio.TimerHandle | None = None


def _may_go_on(said: bytes) -> bool:
    """Whether it is the beginning of TLS' first record (type 22, version 3.x: RFC 8446, 5.1), and not all of it."""
    return b"\x16\x03".startswith(said[:2]) and (len(said) < _HEAD or len(said) < _HEAD + int.from_bytes(said[3:_HEAD]))
