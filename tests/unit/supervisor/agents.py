# SPDX-License-Identifier: Apache-2.0
"""The agent as a process beside a test, its port a socket, under the sanitizers; and the supervisor's side of it."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pvc.channel.frames import WINDOW, Frame, Kind, pack_credit, parse_words
from pvc.supervisor.agent import Agent

SOURCES = Path(__file__).parents[3] / "agent"


def build_agent(directory: Path) -> Path:
    """The agent under ASan and UBSan, built once for a checkout."""
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    # Another checkout's tests have the same temporary directory.
    directory = directory / hashlib.sha256(os.fsencode(SOURCES)).hexdigest()[:16]
    target = directory / "build" / "pvc-agent-checked"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        argv = ["make", "-s", "-C", os.fspath(SOURCES), f"BUILD={directory}", os.fspath(target)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return target


def build_hostile_agent(directory: Path, changes: Mapping[str, tuple[str, str]]) -> Path:
    """The same from changed sources: for each file a text that is in it once, and what stands there instead."""
    sources = directory / "agent"
    shutil.copytree(SOURCES, sources, ignore=shutil.ignore_patterns("build", "pvc-agent"))
    for name, (old, new) in changes.items():
        text = (sources / name).read_text()
        assert text.count(old) == 1, (name, old)
        (sources / name).write_text(text.replace(old, new))
    program = directory / "hostile"
    argv = ["gcc", "-std=c11", "-D_GNU_SOURCE", '-DPVC_RELEASE="0"', "-o", program, *sources.glob("*.c")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


@dataclass(eq=False)
class Call:
    """What came on one stream."""

    agent: Agent
    window: int = WINDOW
    stream: int = 0
    out: bytearray = field(default_factory=bytearray)
    err: bytearray = field(default_factory=bytearray)
    notes: list[dict[str, str]] = field(default_factory=list)
    accepted: list[Call] = field(default_factory=list)
    ended: bool = False
    result: dict[str, str] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, stream: int, frame: Frame) -> None:
        """As ``Sink``."""
        for child in self.accepted:
            if child.stream == stream:
                child.take(stream, frame)
                return
        match frame.kind:
            case Kind.DATA:
                if frame.flags:
                    self.err += frame.payload
                else:
                    self.out += frame.payload
                self.agent.send(stream, Kind.CREDIT, pack_credit(len(frame.payload)))
            case Kind.NOTE:
                self.notes.append(dict(parse_words(frame.payload)))
            case Kind.END:
                self.ended = True
            case Kind.CLOSE:
                self.result = dict(parse_words(frame.payload))
            case _:
                pass
        self.changed.set()

    def accept(self, stream: int, words: list[tuple[str, str]]) -> None:
        """As ``Sink``."""
        child = Call(self.agent, stream=stream)
        child.notes.append(dict(words))
        self.accepted.append(child)
        self.agent.send(stream, Kind.CREDIT, pack_credit(self.window))
        self.changed.set()

    async def ready(self) -> None:
        """As ``Sink``."""

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Say something on it."""
        self.agent.send(self.stream, kind, payload)

    async def until(self, true: object, timeout_s: float = 60.0) -> None:
        """Return once ``true()`` holds."""
        assert callable(true)
        async with asyncio.timeout(timeout_s):
            while not true():
                self.changed.clear()
                await self.changed.wait()

    async def wait(self, timeout_s: float = 60.0) -> dict[str, str]:
        """The result."""
        await self.until(lambda: self.result is not None, timeout_s)
        assert self.result is not None
        return self.result


def call(agent: Agent, *words: tuple[str, str], window: int = WINDOW) -> Call:
    """Open a stream."""
    found = Call(agent, window)
    found.stream = agent.open(words, found)
    if window:
        found.send(Kind.CREDIT, pack_credit(window))
    return found


def command(agent: Agent, *argv: str, window: int = WINDOW, **more: str) -> Call:
    """Run a command."""
    words = [("op", "exec"), *(("arg", word) for word in argv), *more.items()]
    return call(agent, *words, window=window)


@asynccontextmanager
async def guest(program: Path, directory: Path) -> AsyncIterator[tuple[Agent, subprocess.Popen[bytes]]]:
    """An agent that is connected."""
    place = directory / "port"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(place))
        listener.listen()
        listener.settimeout(60)
        with (directory / "stderr").open("wb") as stderr:
            process = subprocess.Popen([program, "--port", place], stderr=stderr)
        connection, _ = await asyncio.to_thread(listener.accept)
    changed = asyncio.Event()
    agent = Agent("vm0", connection, lambda: False, changed.set)
    task = asyncio.create_task(agent.run())
    try:
        async with asyncio.timeout(60):
            await changed.wait()
        yield agent, process
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        process.terminate()
        process.wait()
        complaints = (directory / "stderr").read_text()
        assert "ERROR" not in complaints, complaints
        assert "runtime error" not in complaints, complaints
