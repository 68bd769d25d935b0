# SPDX-License-Identifier: Apache-2.0
"""Streams to the agents of VMs: one TLS connection to a node carries those of all its VMs, as pvc-agent(7) says."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from pvc import codec
from pvc.channel.frames import WINDOW, ProtocolError
from pvc.channel.mux import Accepted, Arrived, Closed, Ended, Event, Mux, Noted
from pvc.errors import GuestError, HostError
from pvc.host.peer import LOOK_S, is_lost, keep_alive
from pvc.model.cluster import NodeEndpoint
from pvc.model.failure import CONNECTION, Failure
from pvc.ops.agents import raise_closed
from pvc.ops.control import Control, is_turned_away, raise_refusal

_CONNECT_S = 20.0
_CHUNK = 1 << 18
_PAUSE_S = 0.1


class Stream:
    """One stream: what it is for was said when it was opened."""

    def __init__(self, channel: Channel, number: int) -> None:
        self.number = number
        self.accepted: asyncio.Queue[Stream] = asyncio.Queue()
        self.closed: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
        self._channel = channel
        self._moved = asyncio.Event()
        self._arrived = asyncio.Event()
        self._pieces: deque[Arrived] = deque()
        self._ended = False
        self._unsent = 0  # when it was closed
        self._notes: asyncio.Queue[dict[str, str]] = asyncio.Queue()

    async def read(self) -> bytes | None:
        """The next piece (one frame's bytes), None: there will be none."""
        while not self._pieces:
            if self._ended or self.closed.done():
                return None
            self._arrived.clear()
            await self._arrived.wait()
        piece = self._pieces.popleft()
        self._channel.mux.taken(self.number, len(piece.data))
        self._channel.flush()
        return piece.data

    async def write(self, data: bytes) -> None:
        """Send all of it, as the receiver has room for it.

        :raise GuestError: the stream is over.
        """
        if self.closed.done():
            raise GuestError(self._closed_text)
        self._channel.mux.send(self.number, data)
        await self._channel.drain()
        while not self.closed.done() and self._channel.mux.pending(self.number):
            self._moved.clear()
            await self._moved.wait()
            await self._channel.drain()
        if self._unsent:
            raise GuestError(self._closed_text)

    @property
    def _closed_text(self) -> str:
        return self.closed.result().get("error", "the other side has closed the stream")

    async def write_datagram(self, data: bytes) -> None:
        """Send it as one frame, once there is room for it; when the stream is over it is lost, as datagrams are."""
        while not self.closed.done() and not self._channel.mux.send_datagram(self.number, data):
            self._moved.clear()
            await self._moved.wait()
        await self._channel.drain()

    async def note(self) -> dict[str, str]:
        """The next NOTE.

        :raise GuestError: the stream was closed instead, with an error or without.
        """
        waiting = asyncio.ensure_future(self._notes.get())
        try:
            await asyncio.wait({waiting, self.closed}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
        finally:
            waiting.cancel()
        raise_closed(self.closed.result())
        raise GuestError("the stream was closed at once")

    def end(self) -> None:
        """No more will be written."""
        self._channel.mux.end(self.number)
        self._channel.flush()

    def close(self) -> None:
        """Let go of the stream; what is behind it ends."""
        self._channel.forget(self)

    def take(self, event: Event) -> None:
        """For ``Channel``: something has come."""
        match event:
            case Arrived():
                self._pieces.append(event)
            case Noted():
                self._notes.put_nowait(event.words)
            case Ended():
                self._ended = True
            case Closed() if not self.closed.done():
                self._unsent = event.unsent
                self.closed.set_result(event.words)
        self._arrived.set()
        self._moved.set()


@dataclass
class Channel:
    """One connection to one node; ``ended`` is done when it is over."""

    node: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    mux: Mux = field(default_factory=Mux)
    ended: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    _streams: dict[int, Stream] = field(default_factory=dict)
    _task: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, control: Control, endpoint: NodeEndpoint) -> Channel:
        """A connection to the supervisor of a node.

        :raise EndedError: the cluster has ended.
        :raise HostError: it does not answer.
        :raise PvcError: it refuses.
        """
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, writer = await _connect(control, endpoint)
                writer.write(json.dumps({"op": "agent"}).encode() + b"\n")
                answer = codec.read_json(await reader.readline())
                raise_refusal(answer, endpoint.node)
        except (OSError, TimeoutError, ssl.SSLError, ValueError, AttributeError) as err:
            if writer is not None:
                writer.transport.abort()
            await asyncio.to_thread(control.check_running)
            raise HostError(f"the supervisor on {endpoint.node} does not answer") from err
        channel = cls(endpoint.node, reader, writer)
        keep_alive(writer.get_extra_info("socket"))
        channel._task = asyncio.create_task(channel._run())
        return channel

    def open(self, rank: int, words: Iterable[tuple[str, str]], window: int = WINDOW) -> Stream:
        """A stream to the agent of a VM; ``words`` are those of pvc-agent(7), "Requests".

        :raise HostError: the connection is over.
        """
        if self.ended.done():
            raise HostError(self._lost_text)
        number = self.mux.open([("vm", str(rank)), *words], window)
        stream = self._streams[number] = Stream(self, number)
        self.flush()
        return stream

    def flush(self) -> None:
        """Hand over what is to be sent."""
        for frame in self.mux.take_output():
            if not self.ended.done():
                self.writer.write(frame)

    async def drain(self) -> None:
        """Hand over what is to be sent, and wait while the other end does not take it."""
        self.flush()
        if not self.ended.done():
            with suppress(OSError):  # the reader hears of it, too
                await self.writer.drain()

    def forget(self, stream: Stream) -> None:
        """Close a stream from this side."""
        self.mux.close(stream.number)
        self._streams.pop(stream.number, None)
        self.flush()
        stream.take(Closed(stream.number, {}))

    async def close(self) -> None:
        """End the connection; the streams with it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def _lost_text(self) -> str:
        return f"the connection to the supervisor on {self.node} was lost"

    async def _look(self) -> None:
        """Until the supervisor's machine is gone."""
        while not is_lost(self.writer.get_extra_info("socket")):
            await asyncio.sleep(LOOK_S)
        self.writer.transport.abort()

    async def _run(self) -> None:
        looking = asyncio.create_task(self._look())
        try:
            while data := await self.reader.read(_CHUNK):
                while events := self.mux.receive(data):
                    data = b""
                    for event in events:
                        self._tell(event)
                self.flush()
        except (OSError, ProtocolError, ssl.SSLError):
            pass
        finally:
            looking.cancel()
            self.ended.set_result(None)
            for event in self.mux.lose(dict(Failure(HostError.exit_code, self._lost_text).words(CONNECTION))):
                self._tell(event)
            self.writer.transport.abort()

    def _tell(self, event: Event) -> None:
        if isinstance(event, Accepted):
            parent = self._streams.get(event.parent)
            if parent is None:
                self.mux.close(event.stream)
                return
            child = self._streams[event.stream] = Stream(self, event.stream)
            parent.accepted.put_nowait(child)
            return
        stream = self._streams.get(event.stream)
        if stream is not None:
            stream.take(event)
            if isinstance(event, Closed):
                del self._streams[event.stream]


async def _connect(control: Control, endpoint: NodeEndpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """As ``Control.connect``, until the caller's time is over."""
    while True:
        try:
            return await asyncio.open_connection(
                endpoint.host, endpoint.port, ssl=control.tls, server_hostname=control.door_word
            )
        except OSError as err:
            if not is_turned_away(err):
                raise
        await asyncio.sleep(_PAUSE_S)
