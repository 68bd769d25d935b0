# SPDX-License-Identifier: Apache-2.0
"""Strangers at the control port of a real process, over real TLS: what they cost, and whether its owner gets in."""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from pvc.channel.doorword import find_door_word
from pvc.model.cluster import ClusterKeys
from pvc.ops.control import client_context, is_turned_away
from pvc.ops.jobdir import JobDir
from pvc.ops.keys import KeyMaker
from pvc.supervisor import control, door
from tests.unit.supervisor.doors import BEGINNING, Port, served, strangers

pytestmark = [pytest.mark.allow_run, pytest.mark.allow_sockets]
# The listener, and the event loop's own pair.
OWN = 4


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[JobDir, ClusterKeys]:
    """A cluster's fresh keys, and the directory that holds them."""
    jobdir = JobDir(tmp_path_factory.mktemp("keys"))
    keys = KeyMaker(jobdir.path, "test").finish()
    jobdir.write_keys(keys)
    return jobdir, keys


@pytest.fixture(scope="module")
def port(pair: tuple[JobDir, ClusterKeys]) -> Iterator[Port]:
    with served(*pair) as found:
        yield found


def test_the_owner_is_served(port: Port) -> None:
    answer = port.ask()
    assert abs(answer.pop("now") - time.time()) < 60
    assert answer == {"ok": True, "vms": []}


@pytest.mark.parametrize("said", [b"", BEGINNING, BEGINNING + b"\0" * 400, b"GET / HTTP/1.0\r\n\r\n"])
def test_strangers_are_few_whatever_they_say(port: Port, said: bytes) -> None:
    with strangers(port.number, 400, said):
        assert port.ask()["ok"] is True
        assert port.count_sockets() <= OWN + door.MAX_WAITING
        # All are of one address.
        assert port.count_sockets() <= OWN + door.MAX_OF_ADDRESS + 1
    assert port.ask()["ok"] is True


def test_the_owner_gets_in_while_strangers_come_and_come(port: Port) -> None:
    ending = threading.Event()
    made = [0, 0, 0]

    def rush(place: int) -> None:
        said = (b"", BEGINNING, b"x" * 5000)[place]
        links: list[socket.socket] = []
        while not ending.is_set():
            with suppress(OSError):
                links.append(socket.create_connection(("127.0.0.1", port.number), timeout=60))
                links[-1].sendall(said)
                made[place] += 1
            if len(links) > 300:
                links.pop(0).close()
        for link in links:
            link.close()

    threads = [threading.Thread(target=rush, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    try:
        while min(made) < 200:
            assert port.ask()["ok"] is True
        for _ in range(20):
            assert port.ask()["ok"] is True
            assert port.count_sockets() <= OWN + door.MAX_WAITING + 1
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def test_a_word_in_pieces_is_understood(port: Port, pair: tuple[JobDir, ClusterKeys]) -> None:
    context, coming, going = client_context(pair[0]), ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(coming, going, server_hostname=find_door_word(pair[1].tls_key))
    with socket.create_connection(("127.0.0.1", port.number), timeout=60) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = going.read()
        for start in range(0, len(hello), 40):
            link.sendall(hello[start : start + 40])
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                coming.write(link.recv(1 << 16))
        tls.write(b'{"op":"status"}\n')
        link.sendall(going.read())
        answer = b""
        while b"\n" not in answer:
            coming.write(link.recv(1 << 16))
            with suppress(ssl.SSLWantReadError):
                answer += tls.read(1 << 16)
    assert json.loads(answer)["ok"] is True


def test_the_word_alone_opens_nothing(port: Port, pair: tuple[JobDir, ClusterKeys]) -> None:
    word = find_door_word(pair[1].tls_key).encode()
    with strangers(port.number, 2 * control.MAX_HANDSHAKES, BEGINNING + word):
        assert port.count_sockets() <= OWN + control.MAX_HANDSHAKES + door.MAX_OF_ADDRESS
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    heard = b""
    plain = socket.create_connection(("127.0.0.1", port.number), timeout=60)
    with plain, suppress(OSError), context.wrap_socket(plain, server_hostname=word) as link:
        link.sendall(b'{"op":"status"}\n')
        heard = link.recv(100)
    assert heard == b""
    assert port.ask()["ok"] is True


def test_who_has_no_word_is_told_nothing(port: Port) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    said: OSError | None = None
    with socket.create_connection(("127.0.0.1", port.number), timeout=60) as plain:
        try:
            context.wrap_socket(plain)
        except OSError as err:
            said = err
    assert said is not None
    assert is_turned_away(said)


def test_half_closed_and_reset_connections_leave_nothing(port: Port) -> None:
    for said in (b"", BEGINNING):
        with strangers(port.number, 3, said) as links:
            for link in links:
                link.shutdown(socket.SHUT_WR)
                with suppress(ConnectionResetError):
                    assert link.recv(1000) == b""
    for _ in range(100):  # what the tests before have left may still be going
        assert port.ask()["ok"] is True
        if port.count_sockets() <= OWN:
            break
    assert port.count_sockets() <= OWN


def test_the_word_does_not_show_the_key() -> None:
    key = os.urandom(32).hex()
    assert find_door_word(key) == find_door_word(f" {key}\n")
    assert find_door_word(key) != find_door_word(key + "0")
    assert len(find_door_word(key)) < 64  # a label of a host name
