# SPDX-License-Identifier: Apache-2.0
"""A VM's serial console on this terminal."""

from __future__ import annotations

import os
import select
import ssl
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pvc.errors import HostError
from pvc.model.cluster import NodeEndpoint
from pvc.ops.control import Control, close_quietly, send_request

ESCAPE = 0x1D  # Ctrl-]
_CONNECT_S = 20.0


def attach(control: Control, endpoint: NodeEndpoint, rank: int) -> None:
    """Copy between the terminal and the console until Ctrl-] is typed or the VM ends.

    :raise PvcError: the VM has no console, or its supervisor does not answer.
    """
    connection = control.connect(endpoint, _CONNECT_S)
    try:
        _, first = send_request(connection, {"op": "console", "vm": rank}, endpoint.node)
        connection.setblocking(False)
        with raw_terminal():
            _write(first)
            _copy(connection)
    finally:
        close_quietly(connection)


@contextmanager
def raw_terminal() -> Iterator[None]:
    """Every key goes to the VM, Ctrl-C too; a pipe or file stays what it is."""
    fd = sys.stdin.fileno()
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        # A terminal whose window was closed is set to nothing any more.
        with suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _copy(connection: ssl.SSLSocket) -> None:
    stdin: int | None = sys.stdin.fileno()
    while True:
        watched = [connection.fileno()] if stdin is None else [connection.fileno(), stdin]
        ready, _, _ = select.select(watched, [], [])
        if connection.fileno() in ready and not _receive(connection):
            return
        if stdin is not None and stdin in ready:
            typed = os.read(stdin, 4096)
            if not typed:
                stdin = None
            elif ESCAPE in typed and os.isatty(stdin):
                _send(connection, typed[: typed.index(ESCAPE)])
                return
            else:
                _send(connection, typed)


def _receive(connection: ssl.SSLSocket) -> bool:
    """Show what has come; False at the console's end."""
    while True:
        try:
            data = connection.recv(1 << 16)
        except ssl.SSLWantReadError:
            return True
        except OSError as err:
            raise HostError("the console's supervisor stopped answering") from err
        if not data:
            return False
        _write(data)
        if not connection.pending():
            return True


def _send(connection: ssl.SSLSocket, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[connection.send(left) :]
        except ssl.SSLWantWriteError:
            select.select([], [connection.fileno()], [], 1.0)
        except ssl.SSLWantReadError:
            select.select([connection.fileno()], [], [], 1.0)
        except OSError as err:
            raise HostError("the console's supervisor stopped answering") from err


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]
