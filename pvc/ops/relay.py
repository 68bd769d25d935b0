# SPDX-License-Identifier: Apache-2.0
"""The way of ssh to a VM: by the agent in its guest, else by a port of its node, through its supervisor."""

from __future__ import annotations

import os
import select
import ssl
import sys

from pvc.errors import GuestError, HostError, PvcError
from pvc.model.failure import Failure, is_lost
from pvc.ops.agents import Agents, Stream, raise_closed
from pvc.ops.control import Control, close_quietly, send_request
from pvc.ops.loop import Loop
from pvc.ops.status import find_endpoint

_CONNECT_S = 20.0
_CHUNK = 1 << 16
# ssh is read no faster than the guest takes it.
_PENDING = 1 << 18


def carry(control: Control, rank: int) -> None:
    """Copy between standard input and output and a VM's ssh, until either side ends.

    :raise HostError: the VM's supervisor does not answer, or stopped to.
    :raise GuestError: neither an agent nor a port leads there.
    """
    no_agent = _carry_by_agent(control, rank)
    if no_agent is None:
        return
    try:
        _carry_by_port(control, rank)
    except GuestError as err:
        raise GuestError(f"no way leads to the ssh of vm{rank}: {err}; {no_agent}", hint=err.find_hint()) from None


class _Carried(Stream):
    """A connection to the ssh server; ``connected`` once it answered."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.connected = False
        self._loop = loop

    def on_note(self, words: dict[str, str]) -> None:
        self.connected = "connected" in words
        self._watch()

    def on_data(self, data: bytes, second: bool) -> None:
        del second
        _write(data)

    def on_moved(self) -> None:
        self._watch()

    def _watch(self) -> None:
        fd, wanted = sys.stdin.fileno(), self.pending < _PENDING
        self._loop.watch(fd, self._on_stdin, read=wanted and not self.closed, write=False)

    def _on_stdin(self) -> None:
        data = os.read(sys.stdin.fileno(), _CHUNK)
        if not data:
            self._loop.remove(sys.stdin.fileno())
            self.close()  # ssh has left, so nobody wants more
            return
        self.send(data)
        self._watch()


def _carry_by_agent(control: Control, rank: int) -> PvcError | None:
    """Why it could not be done, None: it was.

    :raise HostError: the connection to the supervisor was lost.
    """
    with Loop((), lambda _: None) as loop, Agents(control, loop, connect_s=_CONNECT_S) as agents:
        stream = _Carried(loop)
        agents.open(rank, [("op", "connect"), ("net", "tcp"), ("host", "127.0.0.1"), ("port", "22")], stream)
        if not loop.run_until(lambda: stream.connected or stream.closed, timeout_s=_CONNECT_S):
            return GuestError(f"the agent of vm{rank} does not answer")
        if not stream.connected:
            failure = Failure.of_words(stream.result or {})
            return failure.rebuild() if failure is not None else GuestError("the stream was closed at once")
        loop.run_until(lambda: stream.closed)
        words = stream.result or {}
        if is_lost(words):
            control.check_running()
            raise_closed(words)
    return None


def _carry_by_port(control: Control, rank: int) -> None:
    endpoint = find_endpoint(control.record, rank)
    connection = control.connect(endpoint, _CONNECT_S)
    try:
        _, first = send_request(connection, {"op": "ssh", "vm": rank}, endpoint.node)
        _write(first)
        # TLS reads whole records: what is decrypted already is not seen by select(2).
        connection.settimeout(None)
        _copy(connection)
    except (OSError, ssl.SSLError) as err:
        raise HostError(f"the supervisor on {endpoint.node} stopped answering") from err
    finally:
        close_quietly(connection)


def _copy(connection: ssl.SSLSocket) -> None:
    stdin, peer = sys.stdin.fileno(), connection.fileno()
    while True:
        ready = [peer] if connection.pending() else select.select([stdin, peer], [], [])[0]
        if peer in ready:
            data = connection.recv(_CHUNK)
            if not data:
                return
            _write(data)
        if stdin in ready:
            typed = os.read(stdin, _CHUNK)
            if not typed:
                return
            connection.sendall(typed)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]
