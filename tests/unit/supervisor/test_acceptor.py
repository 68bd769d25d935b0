# SPDX-License-Identifier: Apache-2.0
"""Listeners when the machine has no descriptor left: they wait, and go on."""

from __future__ import annotations

import ast
import asyncio
import errno
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pvc.node import daemon
from pvc.node.context import Context, NodeName
from pvc.supervisor.acceptor import Acceptor
from tests.unit.test_layers import modules
from tests.waits import until, wait_until

pytestmark = pytest.mark.allow_sockets
# Where one connection is expected and nobody else comes, there is nothing to repeat.
LOOPS = {"pvc.node.daemon", "pvc.supervisor.acceptor"}
ONCE = {"pvc.supervisor.virt", "pvc.supervisor.virtmachine"}
STREAMS = {"pvc.supervisor.agent"}


class Poor(socket.socket):
    """A listener of a process that has no descriptor left, until ``rich``."""

    def __init__(self, path: Path) -> None:
        super().__init__(socket.AF_UNIX)
        self.tries = 0
        self.rich = False
        self.bind(os.fspath(path))
        self.listen()
        self.setblocking(False)

    def accept(self) -> tuple[socket.socket, Any]:
        self.tries += 1
        if not self.rich:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


def call(path: Path) -> socket.socket:
    caller = socket.socket(socket.AF_UNIX)
    caller.settimeout(60)
    caller.connect(os.fspath(path))
    return caller


def test_a_loop_has_time_for_others_while_nobody_can_be_taken_in(tmp_path: Path) -> None:
    async def main() -> None:
        taken: list[socket.socket] = []
        with Poor(tmp_path / "s") as listener:
            acceptor = Acceptor(listener, "here", lambda connection, _: taken.append(connection))
            with call(tmp_path / "s"):
                await until(lambda: listener.tries)
                for _ in range(1000):
                    await asyncio.sleep(0)
                assert listener.tries < 100
                listener.rich = True
                await until(lambda: taken)
                taken.pop().close()
            listener.rich = False
            tries = listener.tries
            with call(tmp_path / "s"):
                await until(lambda: listener.tries > tries)
                acceptor.close()  # in the pause
        await asyncio.sleep(0)

    asyncio.run(main())


def test_pvc_node_does_not_ask_again_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    serving = daemon.Daemon(Context(tmp_path, tmp_path / "state", tmp_path / "run"), NodeName("n1"))
    near, far = socket.socketpair()
    with Poor(tmp_path / "roots") as roots, Poor(tmp_path / "users") as users, near, far:
        thread = threading.Thread(target=serving._accept, args=(roots, users, near))
        thread.start()
        try:
            with call(tmp_path / "users") as caller:
                wait_until(lambda: users.tries)
                time.sleep(0.3)
                assert users.tries < 20
                assert "cannot take a caller in for a moment: [Errno 24] Too many open files" in caplog.text
                users.rich = True
                caller.sendall(b'{"op":"attach","job":1}\n')
                assert b"no virtual cluster" in caller.recv(1000)
        finally:
            serving._ending.set()
            far.send(b"x")
            thread.join()


def test_loops_that_accept_are_known() -> None:
    found = {
        name
        for name, module in modules().items()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "accept"
    }
    assert found == LOOPS | ONCE | STREAMS
