# SPDX-License-Identifier: Apache-2.0
"""Who is there is not taken for lost; a network that drops, where others are, is in tests/slurm/test_reach.py."""

from __future__ import annotations

import socket
from contextlib import suppress

import pytest

from pvc.host.peer import is_lost, keep_alive

pytestmark = pytest.mark.allow_sockets


def fill(connection: socket.socket) -> None:
    with suppress(BlockingIOError):
        while connection.send(bytes(1 << 16)):
            pass


def test_who_is_there_is_not_lost() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        far, _ = server.accept()
        with far:
            keep_alive(near)
            assert near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            near.setblocking(False)
            # Until the other end, which does not read, has no room
            fill(near)
            assert not is_lost(near)
            assert not is_lost(far)
    assert not is_lost(near)


def test_what_is_no_tcp_connection_is_never_lost() -> None:
    here, there = socket.socketpair()
    with here, there:
        keep_alive(here)
        assert not is_lost(here)
    keep_alive(None)
    assert not is_lost(None)
