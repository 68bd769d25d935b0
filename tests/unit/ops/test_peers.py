# SPDX-License-Identifier: Apache-2.0
"""Whose sockets speak over loopback."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pvc.ops.peers import find_peer_uid

pytestmark = pytest.mark.allow_sockets("the kernel's own tables of them")


def test_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, peer = server.accept()
        with accepted:
            assert find_peer_uid("tcp", peer, accepted.getsockname()) == os.getuid()
        assert peer == client.getsockname()
        assert find_peer_uid("tcp", (peer[0], 1), server.getsockname()) is None


def test_who_has_left_is_not_root() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as client:
            client.sendall(b"an order, and nobody to answer for it")
        accepted, peer = server.accept()
        with accepted:
            while accepted.recv(1000):
                pass
            uid = find_peer_uid("tcp", peer, accepted.getsockname())
    # A kernel that still knows tells who it was.
    assert uid is None or uid == os.getuid() != 0


@pytest.mark.parametrize("bound", ["", "127.0.0.1"])
@pytest.mark.parametrize("connected", [True, False])
def test_udp(bound: str, connected: bool) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        server.bind(("127.0.0.1", 0))
        client.bind((bound, 0))
        if connected:
            client.connect(server.getsockname())
            client.send(b"x")
        else:
            client.sendto(b"x", server.getsockname())
        _, peer = server.recvfrom(10)
        assert find_peer_uid("udp", peer, server.getsockname()) == os.getuid()


def test_another_user(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text(
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1\n"
        "   1: 0100007F:A000 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1001        0 2 1\n"
    )
    assert find_peer_uid("tcp", ("127.0.0.1", 40960), ("127.0.0.1", 8080), tmp_path) == 1001
    assert find_peer_uid("udp", ("127.0.0.1", 40960), ("127.0.0.1", 8080), tmp_path) is None
