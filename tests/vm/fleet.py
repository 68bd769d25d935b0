# SPDX-License-Identifier: Apache-2.0
"""Many agents without VMs: each is the real program, its port a socket; before them the supervisor's real classes."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness import make_keys

from pvc.channel.frames import ProtocolError
from pvc.errors import GuestError
from pvc.model.cluster import ClusterRecord, NodeEndpoint, NodeShare, Placement, VmGroup
from pvc.model.request import Size
from pvc.ops.control import Control
from pvc.ops.execute import Command, Outcome, Runner
from pvc.ops.jobdir import JobDir
from pvc.supervisor.agent import Agent
from pvc.supervisor.agentrelay import Relay
from pvc.supervisor.control import server_context
from tests.waits import until


class Fleet:
    """``count`` agents of one node; the supervisor's side runs in a thread."""

    def __init__(self, program: Path, base: Path, count: int) -> None:
        self.agents: list[Agent] = []
        self.paused: set[int] = set()
        self._base = base
        self._count = count
        self._up = threading.Event()
        self._port = 0
        self.keys = make_keys(base / "keys")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._leave = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.error: BaseException | None = None
        place = base / "port"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(place))
        self._listener.listen(count)
        self.processes = [subprocess.Popen([program, "--port", place]) for _ in range(count)]
        self._thread.start()
        if not self._up.wait(120):
            self.close()
            raise AssertionError(f"not all agents have come: {self.error!r}")
        endpoint = NodeEndpoint("n1", "127.0.0.1", self._port)
        placement = Placement((Size(count, 1),), (NodeShare("n1", 0, count),))
        record = ClusterRecord(
            1, "fleet", "tiny", time.time(), "here", os.getpid(), placement, (VmGroup("tiny", 0, count),), (endpoint,)
        )
        jobdir = JobDir(base / "job")
        jobdir.path.mkdir()
        jobdir.write_keys(self.keys)
        self.jobdir = jobdir
        self.control = Control(record, jobdir)

    async def _serve(self) -> None:
        tasks = self._tasks
        try:
            loop = asyncio.get_running_loop()
            self._listener.setblocking(False)
            for rank in range(self._count):
                connection, _ = await loop.sock_accept(self._listener)
                agent = Agent(f"vm{rank}", connection, lambda rank=rank: rank in self.paused, lambda: None)  # type: ignore[misc]
                self.agents.append(agent)
                tasks.append(asyncio.create_task(agent.run()))
            server = await asyncio.start_server(self._relay, "127.0.0.1", 0, ssl=server_context(self.keys))
            self._port = server.sockets[0].getsockname()[1]
            await until(lambda: all(agent.connected for agent in self.agents))
            self._up.set()
            await self._leave.wait()
            server.close()
        except BaseException as err:
            self.error = err
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.append(task)
        await reader.readline()
        writer.write(b'{"ok": true}\n')
        try:
            await Relay(reader, writer, self._find).run()
        except (OSError, ProtocolError):
            pass
        finally:
            writer.close()

    def _find(self, rank: int) -> Agent:
        if rank < len(self.agents):
            return self.agents[rank]
        raise GuestError(f"no VM {rank!r} runs on this node")

    def call(self, function: object, *arguments: object) -> None:
        """Call something in the supervisor's thread."""
        assert callable(function)
        self._loop.call_soon_threadsafe(function, *arguments)

    def run(
        self, *argv: str, ranks: Sequence[int] | None = None, timeout_s: float | None = 60, stdin_fd: int | None = None
    ) -> tuple[list[Outcome], dict[tuple[int, bool], bytes]]:
        """``pvc exec``, and what was said by VM."""
        said: dict[tuple[int, bool], bytes] = {}

        def take(rank: int, data: bytes, second: bool) -> None:
            said[rank, second] = said.get((rank, second), b"") + data

        command = Command(argv, stdin=stdin_fd is not None)
        wanted = tuple(range(self._count)) if ranks is None else tuple(ranks)
        return Runner(self.control, command, take, stdin_fd).run(wanted, timeout_s, ()), said

    def close(self) -> None:
        """End all of it."""
        if self._loop.is_running():
            self._loop.call_soon_threadsafe(self._leave.set)
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()
        self._thread.join(30)
        self._listener.close()
        if not self._loop.is_running():
            self._loop.close()


@contextmanager
def fleet(program: Path, base: Path, count: int) -> Iterator[Fleet]:
    """Agents that answer."""
    found = Fleet(program, base, count)
    try:
        yield found
    finally:
        found.close()
