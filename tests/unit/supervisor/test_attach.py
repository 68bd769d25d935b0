# SPDX-License-Identifier: Apache-2.0
"""The supervisor's side of pvc-node's socket, against a server in this process."""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pvc import codec
from pvc.errors import ConfigError, HostError, JobError, PvcError, StateError
from pvc.model.node import NodeGrant
from pvc.supervisor import attach as module
from pvc.supervisor.attach import SOCKET, attach, attach_vm, find_socket

pytestmark = pytest.mark.allow_sockets  # a Unix socket in the test's own directory

GRANT = NodeGrant(12, "n1", "10.0.0.1", "/var/tmp/pvc/12", ())
Answer = Callable[[socket.socket], None]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Listens for as many clients as there are functions given, and lets each answer one."""
    listener = socket.socket(socket.AF_UNIX)
    threads: list[threading.Thread] = []

    def start(*answers: Answer, **more: int) -> Path:
        path = tmp_path / "sock"
        listener.bind(os.fspath(path))
        listener.listen()

        def run() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection, connection.makefile("rb") as stream:
                    assert json.loads(stream.readline()) == {"op": "attach", "job": 12} | more
                    answer(connection)

        threads.append(threading.Thread(target=run))
        threads[0].start()
        return path

    yield start
    for thread in threads:
        thread.join(5)
    listener.close()


def say(connection: socket.socket, answer: dict[str, Any]) -> None:
    connection.sendall(json.dumps(answer).encode() + b"\n")


def send_fds(connection: socket.socket, fds: list[int]) -> None:
    connection.sendmsg([b"F"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


@pytest.mark.parametrize("count", [0, 1, 200, 450])
def test_descriptors_arrive_in_order(serve: Callable[[Answer], Path], tmp_path: Path, count: int) -> None:
    files = []
    for i in range(count):
        fd = os.open(tmp_path / f"tap{i}", os.O_CREAT | os.O_RDWR)
        files.append(fd)

    def answer(connection: socket.socket) -> None:
        say(connection, {"ok": True, "grant": codec.to_data(GRANT), "fds": count})
        for first in range(0, count, 200):
            send_fds(connection, files[first : first + 200])

    attached = asyncio.run(attach(serve(answer), 12))
    try:
        assert attached.grant == GRANT
        assert [os.fstat(fd).st_ino for fd in attached.taps] == [os.fstat(fd).st_ino for fd in files]
        assert not any(os.get_inheritable(fd) for fd in attached.taps)
    finally:
        for fd in (*files, *attached.taps):
            os.close(fd)


def test_the_taps_of_one_vm(serve: Callable[..., Path], tmp_path: Path) -> None:
    def answer(connection: socket.socket) -> None:
        say(connection, {"ok": True, "grant": codec.to_data(GRANT), "fds": 1})
        with open(tmp_path / "tap", "wb") as tap:
            send_fds(connection, [tap.fileno()])

    (fd,) = asyncio.run(attach_vm(serve(answer, vm=3), 12, 3))
    assert os.fstat(fd).st_ino == (tmp_path / "tap").stat().st_ino
    os.close(fd)


@pytest.mark.parametrize(
    ("code", "kind"), [(3, ConfigError), (4, JobError), (5, StateError), (6, HostError), (1, PvcError), (99, PvcError)]
)
def test_a_refusal_keeps_text_hint_and_code(serve: Callable[[Answer], Path], code: int, kind: type[PvcError]) -> None:
    refusal = {"ok": False, "exit_code": code, "error": "etcd does not answer", "hint": "start it"}
    with pytest.raises(PvcError, match="etcd does not answer") as caught:
        asyncio.run(attach(serve(lambda connection: say(connection, refusal)), 12))
    assert type(caught.value) is kind
    assert caught.value.hint == "start it"
    assert caught.value.exit_code == code


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "broke: closed before"),
        (b'{"ok":tr', "broke: closed before"),
        (b"[]\n", "not understood"),
        (b"nonsense\n", "not understood"),
        (b'{"ok":true,"grant":{},"fds":0}\n', "not understood"),
        (b'{"ok":false}\n', "not understood"),
        (codec.dumps({"ok": True, "grant": GRANT, "fds": 2}).encode() + b"\n", "broke: closed before"),
    ],
)
def test_bad_answers(serve: Callable[[Answer], Path], data: bytes, message: str) -> None:
    with pytest.raises(HostError, match=message):
        asyncio.run(attach(serve(lambda connection: connection.sendall(data)), 12, retry_s=0))


def test_a_server_that_ends_in_the_middle_is_asked_again(serve: Callable[..., Path]) -> None:
    answers: list[Answer] = [
        lambda connection: connection.sendall(b'{"ok":tr'),
        lambda connection: say(connection, {"ok": True, "grant": codec.to_data(GRANT), "fds": 0}),
    ]
    assert asyncio.run(attach(serve(*answers), 12)).grant == GRANT


@pytest.fixture
def on_pause(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What is done, one each time, when ``attach`` pauses before it tries again."""
    found: list[Callable[[], None]] = []
    sleep = asyncio.sleep

    async def pause(pause_s: float) -> None:
        if found:
            found.pop(0)()
        await sleep(pause_s)

    monkeypatch.setattr(module.asyncio, "sleep", pause)
    return found


def test_nobody_listens(tmp_path: Path, on_pause: list[Callable[[], None]]) -> None:
    told: list[str] = []
    on_pause.append(lambda: told.append("again"))
    with pytest.raises(HostError, match=r"does not answer at .*sock") as caught:
        asyncio.run(attach(tmp_path / "sock", 12, retry_s=0.2))
    assert told == ["again"]
    assert "pvc-node" in (caught.value.hint or "")


def test_it_waits_for_a_server_that_restarts(
    serve: Callable[[Answer], Path], tmp_path: Path, on_pause: list[Callable[[], None]]
) -> None:
    (tmp_path / "sock").touch()  # what a dead server leaves is refused, not absent

    def restart() -> None:
        (tmp_path / "sock").unlink()
        serve(lambda connection: say(connection, {"ok": True, "grant": codec.to_data(GRANT), "fds": 0}))

    on_pause.append(restart)
    assert asyncio.run(attach(tmp_path / "sock", 12)).grant == GRANT
    assert not on_pause


def test_where_it_listens() -> None:
    assert find_socket({}) == SOCKET
    assert find_socket({"PVC_NODE_SOCKET": "/x"}) == Path("/x")
