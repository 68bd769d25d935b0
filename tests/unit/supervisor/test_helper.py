# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path

import pytest

from pvc.errors import GuestError
from pvc.supervisor.helper import running
from pvc.supervisor.machine import QemuMachine

pytestmark = pytest.mark.allow_run(reason="a helper is a process")


def test_it_is_there_while_the_block_runs(tmp_path: Path) -> None:
    fifo = tmp_path / "ready"
    os.mkfifo(fifo)

    async def main() -> tuple[int, str, int]:
        async with running("helper", ["sh", "-c", f"echo hello; echo > {fifo}; exec sleep 60"]) as helper:
            await helper.wait_ready(lambda: asyncio.to_thread(lambda: fifo.read_text() and None), 30)
            assert not helper.ended.done()
            said = helper.said()
        return helper.pid, said, helper.ended.result()

    pid, said, code = asyncio.run(main())
    assert (said, code) == ("hello", -15)
    assert not Path(f"/proc/{pid}").exists()


def test_one_that_fails_says_why() -> None:
    async def main() -> None:
        async with running("helper", ["sh", "-c", "echo no such device >&2; exit 3"]) as helper:
            await helper.wait_ready(lambda: asyncio.sleep(60), 30)

    with pytest.raises(GuestError, match=r"^helper ended with 3: no such device$"):
        asyncio.run(main())


def test_one_that_is_never_ready() -> None:
    async def main() -> None:
        async with running("helper", ["sleep", "60"]) as helper:
            await helper.wait_ready(lambda: asyncio.sleep(60), 0.1)

    with pytest.raises(GuestError, match=r"^helper was not ready within 0.1 s$"):
        asyncio.run(main())


def test_one_that_nobody_can_watch_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def open_nothing(pid: int, flags: int = 0) -> int:
        del flags
        started.append(pid)
        raise OSError(errno.EMFILE, "Too many open files")

    async def main() -> None:
        async with running("helper", ["sleep", "60"]):
            pass

    async def start_machine() -> None:
        near, far = socket.socketpair()
        with near, far:
            QemuMachine.start(["sleep", "60"], near, near, {}, [far.fileno()])

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "pidfd_open", open_nothing)
    for start in (main, start_machine):
        with pytest.raises(OSError, match="Too many open files"):
            asyncio.run(start())
    assert len(started) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)
    assert len(os.listdir("/proc/self/fd")) == before
