"""Streams to the agents of VMs: one TLS connection to a node carries those of all its VMs, as pvc-agent(7) says."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from pvc.channel.frames import (
    CLIENT_BUDGET,
    MAX_PAYLOAD,
    WINDOW,
    Decoder,
    Frame,
    Kind,
    ProtocolError,
    pack,
    pack_credit,
    pack_words,
    parse_credit,
    parse_words,
    printable,
)
from pvc.errors import GuestError, HostError
from pvc.model.cluster import NodeEndpoint
from pvc.ops.control import Control, raise_refusal

_CONNECT_S = 20.0
_CHUNK = 1 << 18
# Below that, a grant is not worth a frame.
_LEAST_GRANT = 1 << 14


class Stream:
    """One stream: what it is for was said when it was opened."""

    def __init__(self, channel: Channel, number: int, window: int) -> None:
        self.number = number
        self.accepted: asyncio.Queue[Stream] = asyncio.Queue()
        self.outstanding = 0
        self.window = window
        self._channel = channel
        self._credit = 0
        self._granted = asyncio.Event()
        self._arrived = asyncio.Event()
        self._frames: deque[Frame] = deque()
        self._ended = False
        self._notes: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self.closed: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()

    @property
    def unread(self) -> int:
        """Bytes that have come and were not read."""
        return sum(len(frame.payload) for frame in self._frames)

    async def read(self) -> tuple[int, bytes] | None:
        """The next piece (flag and bytes: one frame's), None: there will be none."""
        while not self._frames:
            if self._ended or self.closed.done():
                return None
            self._arrived.clear()
            await self._arrived.wait()
        frame = self._frames.popleft()
        self.outstanding -= len(frame.payload)
        self._channel.release(len(frame.payload), self)
        return frame.flags, frame.payload

    async def write(self, data: bytes) -> None:
        """Send all of it, as the receiver has room for it.

        :raise GuestError: the stream is over.
        """
        left = memoryview(data)
        while left:
            await self._wait_credit(1)
            part = left[: min(self._credit, MAX_PAYLOAD)]
            self._credit -= len(part)
            await self._channel.send(Kind.DATA, self.number, bytes(part))
            left = left[len(part) :]

    async def write_datagram(self, data: bytes) -> None:
        """Send it as one frame; without room for it, it is lost, as datagrams are."""
        if len(data) <= min(self._credit, MAX_PAYLOAD) and not self.closed.done():
            self._credit -= len(data)
            await self._channel.send(Kind.DATA, self.number, data)

    async def _wait_credit(self, count: int) -> None:
        while self._credit < count:
            if self.closed.done():
                raise GuestError(self.closed.result().get("error", "the other side has closed the stream"))
            self._granted.clear()
            await self._granted.wait()

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

    async def end(self) -> None:
        """No more will be written."""
        if not self.closed.done():
            await self._channel.send(Kind.END, self.number)

    async def close(self) -> None:
        """Let go of the stream; what is behind it ends."""
        await self._channel.forget(self)

    def take(self, frame: Frame) -> None:
        """A frame of the other side."""
        if frame.kind is Kind.DATA:
            self._frames.append(frame)
        elif frame.kind is Kind.CREDIT:
            self._credit += parse_credit(frame.payload)
        elif frame.kind is Kind.NOTE:
            self._notes.put_nowait(dict(parse_words(frame.payload)))
        elif frame.kind is Kind.END:
            self._ended = True
        elif frame.kind is Kind.CLOSE and not self.closed.done():
            self.closed.set_result(dict(parse_words(frame.payload)))
        self._arrived.set()
        self._granted.set()


@dataclass
class Channel:
    """One connection to one node; ``ended`` is done when it is over."""

    node: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    ended: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    _streams: dict[int, Stream] = field(default_factory=dict)
    _last: int = 0
    _budget: int = CLIENT_BUDGET
    _task: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, control: Control, endpoint: NodeEndpoint) -> Channel:
        """A connection to the supervisor of a node.

        :raise HostError: it does not answer.
        :raise PvcError: it refuses.
        """
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=control.tls)
                writer.write(json.dumps({"op": "agent"}).encode() + b"\n")
                answer = json.loads(await reader.readline())
                raise_refusal(answer, endpoint.node)
        except (OSError, TimeoutError, ssl.SSLError, ValueError, AttributeError) as err:
            if writer is not None:
                writer.transport.abort()
            raise HostError(f"the supervisor on {endpoint.node} does not answer") from err
        channel = cls(endpoint.node, reader, writer)
        channel._task = asyncio.create_task(channel._run())
        return channel

    async def open(self, rank: int, words: Iterable[tuple[str, str]], window: int = WINDOW) -> Stream:
        """A stream to the agent of a VM; ``words`` are those of pvc-agent(7), "Requests".

        :raise HostError: the connection is over.
        """
        self._last += 1
        while self._last in self._streams:
            self._last += 1
        stream = self._streams[self._last] = Stream(self, self._last, window)
        await self.send(Kind.OPEN, stream.number, pack_words([("vm", str(rank)), *words]))
        self._grant(stream)
        return stream

    async def send(self, kind: Kind, number: int, payload: bytes = b"") -> None:
        """:raise HostError: the connection is over."""
        if self.ended.done():
            raise HostError(f"the connection to the supervisor on {self.node} was lost")
        self.writer.write(pack(kind, number, payload))
        with suppress(OSError):  # the reader hears of it, too
            await self.writer.drain()

    def release(self, count: int, stream: Stream) -> None:
        """The reader of ``stream`` has taken so many bytes."""
        self._budget += count
        if not stream.closed.done():
            self._grant(stream)

    async def forget(self, stream: Stream) -> None:
        """Close a stream from this side."""
        if self._streams.pop(stream.number, None) is not None:
            self._give_back(stream)
            if not self.ended.done() and not stream.closed.done():
                self.writer.write(pack(Kind.CLOSE, stream.number))
        if not stream.closed.done():
            stream.closed.set_result({})

    async def close(self) -> None:
        """End the connection; the streams with it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _grant(self, stream: Stream) -> None:
        wanted = min(stream.window - stream.outstanding, self._budget)
        if wanted >= min(_LEAST_GRANT, stream.window) and not self.ended.done():
            stream.outstanding += wanted
            self._budget -= wanted
            self.writer.write(pack(Kind.CREDIT, stream.number, pack_credit(wanted)))

    def _give_back(self, stream: Stream) -> None:
        """What was granted and not used; those that wait for room get it."""
        self._budget += stream.outstanding
        stream.outstanding = 0
        for each in self._streams.values():
            if not each.outstanding:
                self._grant(each)

    async def _run(self) -> None:
        decoder = Decoder(in_step=True)
        try:
            while data := await self.reader.read(_CHUNK):
                while frames := decoder.feed(data):
                    for frame in frames:
                        self._take(frame)
                    data = b""
        except (OSError, ProtocolError, ssl.SSLError):
            pass
        finally:
            self.ended.set_result(None)
            lost = pack_words([("error", f"the connection to the supervisor on {self.node} was lost")])
            for stream in list(self._streams.values()):
                stream.take(Frame(Kind.CLOSE, stream.number, lost))
            self._streams.clear()
            self.writer.transport.abort()

    def _take(self, frame: Frame) -> None:
        if frame.kind is Kind.PING:
            self.writer.write(pack(Kind.PONG, 0, frame.payload))
            return
        if frame.kind is Kind.OPEN:
            words = dict(parse_words(frame.payload))
            parent = self._streams.get(int(words["parent"])) if words.get("parent", "").isdecimal() else None
            if parent is None:
                self.writer.write(pack(Kind.CLOSE, frame.stream))
                return
            child = self._streams[frame.stream] = Stream(self, frame.stream, parent.window)
            self._grant(child)
            parent.accepted.put_nowait(child)
            return
        stream = self._streams.get(frame.stream)
        if stream is None:
            return
        stream.take(frame)
        if frame.kind is Kind.CLOSE:
            del self._streams[frame.stream]
            self._budget += max(0, stream.outstanding - stream.unread)
            stream.outstanding = stream.unread


def raise_closed(words: Mapping[str, str]) -> None:
    """:raise GuestError: the words of a CLOSE tell of an error."""
    if "error" in words:
        hint = words.get("hint") if words.get("from") == "supervisor" else None
        raise GuestError(printable(words["error"]), hint=hint)
