# SPDX-License-Identifier: Apache-2.0
"""One VM's agent, as pvc-agent(7) describes it: the session, its streams, and whether anybody is there.

Nothing that the guest sends is believed. What is no frame, or breaks the rules, ends the session with a reason and
begins another; what is buffered is bounded by credit, and by not reading from a guest whose frames nobody takes.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import pvc
from pvc.channel.frames import (
    FROM_AGENT,
    PROTOCOL,
    Decoder,
    Frame,
    Hello,
    Kind,
    ProtocolError,
    pack,
    pack_hello,
    pack_words,
    parse_credit,
    parse_hello,
    parse_words,
)
from pvc.errors import GuestError

LOG = logging.getLogger(__name__)

CHANNEL = "pvc.agent"
MAX_STREAMS = 256
# More than an agent grants (pvc-agent(7): 1,048,576), so that one that is newer may grant more.
MAX_CREDIT = 1 << 22
_CHUNK = 1 << 18
_MAX_OUT = 16 << 20
_PING_S = 5.0
_SILENT_S = 15.0
_DEAD_S = 60.0
# How long a closed port may be a part of a reset.
_REASON_S = 0.5
_AGAIN_S = 1.0


class Sink(Protocol):
    """Who has opened a stream."""

    def take(self, stream: int, frame: Frame) -> None:
        """A NOTE, DATA, END, CREDIT or CLOSE of the agent; CLOSE is the last."""

    def accept(self, stream: int, words: list[tuple[str, str]]) -> None:
        """The agent has opened ``stream`` for a connection to what this sink listens for."""

    async def ready(self) -> None:
        """Return once more may come; most do at once."""


@dataclass
class _Stream:
    sink: Sink
    granted: int = 0  # what the agent may send
    credit: int = 0  # what it takes
    left: bool = False  # we have sent CLOSE


class Agent:
    """``paused`` tells whether the guest stands still; ``on_change`` is called when the agent comes or goes."""

    def __init__(
        self, name: str, connection: socket.socket, paused: Callable[[], bool], on_change: Callable[[], None]
    ) -> None:
        connection.setblocking(False)
        self.connected = False
        self.since: float | None = None
        self.release = ""
        self.problem = ""
        self._name = name
        self._socket = connection
        self._paused = paused
        self._on_change = on_change
        self._decoder = Decoder()
        self._streams: dict[int, _Stream] = {}
        self._touched: set[Sink] = set()
        self._last = 0
        self._session = secrets.randbits(64) | 1
        self._agent = 0
        self._out: deque[memoryview] = deque()
        self._out_bytes = 0
        self._heard = time.monotonic()
        self._greeting: asyncio.TimerHandle | None = None
        self._gone = False
        self._complained = -_AGAIN_S
        self._roomy = asyncio.Event()
        self._reason: asyncio.TimerHandle | None = None  # a closed port, until it is known why

    async def run(self) -> None:
        """Serve until QEMU closes its end; never raises for what a guest does."""
        loop = asyncio.get_running_loop()
        watch = asyncio.create_task(self._watch())
        self._greet()
        try:
            while data := await self._receive():
                self._heard = time.monotonic()
                self._take(data)
                for sink in self._touched:
                    await sink.ready()
                self._touched.clear()
                # A socket that is never empty would keep the loop for itself.
                await asyncio.sleep(0)
        finally:
            self._gone = True
            watch.cancel()
            if self._greeting is not None:
                self._greeting.cancel()
            loop.remove_writer(self._socket)
            self._out.clear()
            self._end_session(f"{self._name} has ended")
            self._socket.close()

    def open(self, words: Iterable[tuple[str, str]], sink: Sink) -> int:
        """Ask the agent for something; returns the stream's number.

        :raise GuestError: nobody is there to be asked.
        """
        self.check()
        if len(self._streams) >= MAX_STREAMS:
            raise GuestError(f"the agent of {self._name} has {MAX_STREAMS} streams already")
        payload = pack_words(words)
        while True:
            self._last = self._last % (FROM_AGENT - 1) + 1
            if self._last not in self._streams:
                break
        self._streams[self._last] = _Stream(sink)
        self._write(pack(Kind.OPEN, self._last, payload))
        return self._last

    def ask(self, *words: tuple[str, str]) -> None:
        """Ask for something whose answer nobody awaits; if nobody is there, nothing happens."""
        with suppress(GuestError):
            self.open(words, _NOBODY)

    def check(self) -> None:
        """:raise GuestError: the agent does not answer; says why, as far as anybody knows."""
        if self._paused():
            raise GuestError(f"{self._name} is paused", hint=f"let it go on: pvc resume {self._name}")
        if not self.connected:
            why = self.problem or "none has answered yet"
            hint = (
                f"a guest that boots needs a while (pvc status {self._name}); see pvc-agent(7) for what an image needs"
            )
            raise GuestError(f"no agent in {self._name}: {why}", hint=hint)
        if self._out_bytes > _MAX_OUT:
            raise GuestError(f"the agent of {self._name} takes nothing any more")

    def send(self, stream: int, kind: Kind, payload: bytes = b"") -> None:
        """A frame on a stream that was opened; without effect on one that is over.

        :raise ProtocolError: the sender breaks the rules.
        """
        found = self._streams.get(stream)
        if found is None or found.left:
            return
        if kind is Kind.CREDIT:
            found.granted += parse_credit(payload)
            if found.granted > 1 << 30:
                raise ProtocolError("too much CREDIT")
        elif kind is Kind.DATA:
            if len(payload) > found.credit:
                raise ProtocolError("DATA without CREDIT")
            found.credit -= len(payload)
        elif kind is Kind.CLOSE:
            # The agent's own CLOSE, which frees the number, is still to come; its sink hears no more.
            found.left = True
            found.sink = _NOBODY
        elif kind is Kind.NOTE and self._out_bytes > _MAX_OUT:
            raise ProtocolError("more NOTEs than the guest takes")
        self._write(pack(kind, stream, payload))

    async def room(self) -> None:
        """Return once the guest has taken what was sent, all but so much; at once if nobody is there."""
        while self._out_bytes > _MAX_OUT and self.connected:
            self._roomy.clear()
            await self._roomy.wait()

    def on_port(self, *, is_open: bool) -> None:
        """The guest has opened or closed its end (QMP's VSERPORT_CHANGE).

        A machine's reset closes the port first and is told of right after it.
        """
        if not is_open and self.connected and self._reason is None:
            why = f"the agent of {self._name} has ended"
            self._reason = asyncio.get_running_loop().call_later(_REASON_S, self._begin_anew, why)

    def on_reset(self) -> None:
        """The guest boots again, and its agent with it."""
        why = f"{self._name} boots again"
        if self.connected:
            self._begin_anew(why)
        elif self.problem:
            self.problem = why
            self._on_change()

    async def _receive(self) -> bytes:
        with suppress(ConnectionResetError):
            return await asyncio.get_running_loop().sock_recv(self._socket, _CHUNK)
        return b""

    def _take(self, data: bytes) -> None:
        while True:
            try:
                frames = self._decoder.feed(data)
                for frame in frames:
                    self._take_frame(frame)
            except ProtocolError as err:
                self._complain(err)
                self._decoder.lose_step()
                self._begin_anew(f"the agent of {self._name} broke the protocol: {err}")
            else:
                if not frames:
                    return
            # What is left after an error, or behind it, is looked at again.
            data = b""

    def _complain(self, err: ProtocolError) -> None:
        """A guest that does nothing else fills no log."""
        now = time.monotonic()
        if now - self._complained > _AGAIN_S:
            LOG.warning("%s: its agent broke the protocol: %s", self._name, err)
            self._complained = now

    def _take_frame(self, frame: Frame) -> None:
        if frame.kind is Kind.HELLO:
            self._greeted(parse_hello(frame.payload))
        elif not self.connected:
            return
        elif frame.kind is Kind.PING:
            if self._out_bytes < _MAX_OUT:
                self._write(pack(Kind.PONG, 0, frame.payload))
        elif frame.kind is Kind.OPEN:
            self._accept(frame)
        elif frame.kind is not Kind.PONG:
            self._take_stream_frame(frame)

    def _take_stream_frame(self, frame: Frame) -> None:
        found = self._streams.get(frame.stream)
        if found is None:
            raise ProtocolError("a frame on a stream that nobody opened")
        if frame.kind is Kind.DATA:
            found.granted -= len(frame.payload)
            if found.granted < 0:
                raise ProtocolError("DATA without CREDIT")
        elif frame.kind is Kind.CREDIT:
            found.credit += parse_credit(frame.payload)
            if found.credit > MAX_CREDIT:
                raise ProtocolError("too much CREDIT")
        elif frame.kind in (Kind.NOTE, Kind.CLOSE):
            parse_words(frame.payload)
        if frame.kind is Kind.CLOSE:
            del self._streams[frame.stream]
        if not found.left:
            self._touched.add(found.sink)
            found.sink.take(frame.stream, frame)
            if frame.kind is Kind.CLOSE:
                self._write(pack(Kind.CLOSE, frame.stream))

    def _accept(self, frame: Frame) -> None:
        words = parse_words(frame.payload)
        parent = dict(words).get("parent", "")
        found = self._streams.get(int(parent)) if parent.isdecimal() and len(parent) < 11 else None
        if frame.stream < FROM_AGENT or frame.stream in self._streams or found is None:
            raise ProtocolError("a stream that nobody asked for")
        if len(self._streams) >= 2 * MAX_STREAMS:
            raise ProtocolError("too many streams")
        self._streams[frame.stream] = _Stream(found.sink, left=found.left)
        if found.left:
            self._write(pack(Kind.CLOSE, frame.stream))
            return
        self._touched.add(found.sink)
        found.sink.accept(frame.stream, words)

    def _greeted(self, hello: Hello) -> None:
        if hello.protocol != PROTOCOL:
            self._end_session(f"the agent of {self._name} speaks protocol {hello.protocol}, pvc speaks {PROTOCOL}")
        elif hello.session == 0:
            if self.connected or hello.agent != self._agent:
                self._end_session(f"the agent of {self._name} was started again")
                self._session = secrets.randbits(64) | 1
            self._agent = hello.agent
            self._greet()
        elif (hello.session, hello.agent) == (self._session, self._agent) and not self.connected:
            self.connected, self.problem = True, ""
            self.since, self.release = time.time(), hello.release
            LOG.info("%s: agent %s", self._name, hello.release)
            self._on_change()

    def _greet(self) -> None:
        self._greeting = None
        if self._out_bytes < _MAX_OUT and not self._gone:
            self._write(pack_hello(Hello(self._session, self._agent, PROTOCOL, pvc.__version__)))

    def _begin_anew(self, why: str) -> None:
        """Give this session up; a little later there is a HELLO for another one."""
        self._end_session(why)
        self._session = secrets.randbits(64) | 1
        if self._greeting is None and not self._gone:
            self._greeting = asyncio.get_running_loop().call_later(_AGAIN_S, self._greet)

    def _end_session(self, why: str) -> None:
        """Nobody is there any more: all streams are closed with the reason."""
        was, self.connected = self.connected, False
        self._roomy.set()
        if self._reason is not None:
            self._reason.cancel()
            self._reason = None
        self.since = None
        self.problem = why
        streams, self._streams = self._streams, {}
        payload = pack_words([("error", why), ("errno", "ECONNRESET")])
        for number, stream in streams.items():
            if not stream.left:
                stream.sink.take(number, Frame(Kind.CLOSE, number, payload))
        if was:
            LOG.info("%s: no agent: %s", self._name, why)
            self._on_change()

    async def _watch(self) -> None:
        """Look every few seconds whether the guest still answers."""
        while True:
            await asyncio.sleep(_PING_S)
            if self._paused():
                self._heard = time.monotonic()
                continue
            if not self.connected:
                continue
            silent_s = time.monotonic() - self._heard
            if silent_s > _DEAD_S:
                self._begin_anew(f"the guest has said nothing for {silent_s:.0f} s")
                continue
            late = silent_s > _SILENT_S
            if late != bool(self.problem):
                self.problem = "the guest does not answer" if late else ""
                self._on_change()
            if self._out_bytes < _MAX_OUT:
                self._write(pack(Kind.PING))

    def _write(self, data: bytes) -> None:
        if self._gone:
            return
        self._out.append(memoryview(data))
        self._out_bytes += len(data)
        if len(self._out) == 1:
            self._flush()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._out:
                sent = self._socket.send(self._out[0])
                self._out_bytes -= sent
                self._out[0] = self._out[0][sent:]
                if not self._out[0]:
                    self._out.popleft()
        except BlockingIOError:
            if self._out_bytes <= _MAX_OUT:
                self._roomy.set()
            loop.add_writer(self._socket, self._flush)
            return
        except OSError:
            # QEMU is gone; the reader hears of it.
            self._out.clear()
            self._out_bytes = 0
        loop.remove_writer(self._socket)
        self._roomy.set()


class _Nobody:
    """The sink of a stream whose opener has left."""

    def take(self, stream: int, frame: Frame) -> None:
        """Forget it."""

    def accept(self, stream: int, words: list[tuple[str, str]]) -> None:
        """Forget it."""

    async def ready(self) -> None:
        """Always."""


_NOBODY = _Nobody()
