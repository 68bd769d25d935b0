"""A client of the agents in a cluster's guests: one connection a node, any number of streams, one loop.

``Agents.open`` begins a stream (the requests are those of pvc-agent(7)); a ``Stream`` is told what comes by its
methods, which a subclass overrides.
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress

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
from pvc.errors import GuestError, PvcError
from pvc.model.cluster import NodeEndpoint
from pvc.ops.control import Control, close_quietly, in_parallel, send_request
from pvc.ops.loop import Loop
from pvc.ops.status import find_endpoint, find_node

_CHUNK = 1 << 17
_CONNECT_S = 30.0
# Connections are looked at in turns.
_READS = 16

Words = Sequence[tuple[str, str]]


class Stream:
    """One stream to a guest. What comes is handed to the ``on_…`` methods; CREDIT is given back as they return.

    ``pending``: bytes that were given to ``send`` and that the guest has not taken yet.
    """

    def __init__(self) -> None:
        self.rank = -1
        self.result: dict[str, str] | None = None
        self.pending = 0
        self._link: Link | None = None
        self._number = 0
        self._credit = 0
        self._queue: deque[memoryview] = deque()
        self._ends = False
        self._closed = False
        self._datagrams = False

    @property
    def name(self) -> str:
        """The VM's."""
        return f"vm{self.rank}"

    @property
    def closed(self) -> bool:
        """Whether it is over."""
        return self._closed

    def on_note(self, words: dict[str, str]) -> None:
        """``pid``, ``connected`` and so on."""

    def on_data(self, data: bytes, second: bool) -> None:
        """Bytes; ``second``: of standard error."""

    def on_end(self) -> None:
        """No more bytes will come."""

    def on_sendable(self) -> None:
        """All that was given to ``send`` is on its way."""

    def on_accept(self, words: dict[str, str]) -> Stream | None:
        """The guest has a connection to what this stream listens for; None: it is refused."""
        del words
        return None

    def on_close(self, words: dict[str, str]) -> None:
        """It is over; ``words`` (also ``result``) say how."""

    def send(self, data: bytes) -> None:
        """Send bytes as fast as the guest takes them; look at ``pending`` before there is too much."""
        if not self._closed and data:
            self._queue.append(memoryview(data))
            self.pending += len(data)
            self._push()

    def end(self) -> None:
        """No more bytes will be sent, once those are that wait."""
        self._ends = True
        self._push()

    def note(self, words: Words) -> None:
        """Tell the agent something: ``signal``, ``rows`` and ``cols``."""
        if not self._closed and self._link is not None:
            self._link.write(Kind.NOTE, self._number, pack_words(words))

    def close(self) -> None:
        """Let go of it; what it began in the guest and is not detached ends."""
        if not self._closed and self._link is not None:
            self._link.write(Kind.CLOSE, self._number)
            self._link.forget(self._number)
        self._over({})

    def attach(self, link: Link, number: int, rank: int, window: int, *, datagrams: bool = False) -> None:
        """For ``Link``: it is open."""
        self._link, self._number, self.rank = link, number, rank
        self._datagrams = datagrams
        link.write(Kind.CREDIT, number, pack_credit(window))

    def take(self, frame: Frame) -> None:
        """For ``Link``: a frame has come."""
        match frame.kind:
            case Kind.DATA:
                self.on_data(frame.payload, bool(frame.flags))
                if not self._closed and self._link is not None and frame.payload:
                    self._link.write(Kind.CREDIT, self._number, pack_credit(len(frame.payload)))
            case Kind.CREDIT:
                self._credit += parse_credit(frame.payload)
                self._push()
            case Kind.NOTE:
                self.on_note(dict(parse_words(frame.payload)))
            case Kind.END:
                self.on_end()
            case Kind.CLOSE:
                self._over(dict(parse_words(frame.payload)))
            case _:
                raise ProtocolError("a frame that belongs to no stream")

    def lose(self, why: str) -> None:
        """For ``Link``: the connection is gone."""
        self._over({"error": why, "from": "connection"})

    def _push(self) -> None:
        link = self._link
        if link is None or self._closed:
            return
        before = self.pending
        while self._queue:
            part = self._queue[0]
            size = min(len(part), self._credit, MAX_PAYLOAD)
            if size == 0 or (self._datagrams and size < len(part)):
                return
            link.write(Kind.DATA, self._number, bytes(part[:size]))
            self._credit -= size
            self.pending -= size
            if size == len(part):
                self._queue.popleft()
            else:
                self._queue[0] = part[size:]
        if self._ends:
            self._ends = False
            link.write(Kind.END, self._number)
        elif before:
            self.on_sendable()

    def _over(self, words: dict[str, str]) -> None:
        if self._closed:
            return
        self._closed = True
        self.result = words
        self._queue.clear()
        self.pending = 0
        self.on_close(words)


class Agents:
    """The agents of one cluster.

    ``expected``: about how many streams will be open at once; ``connect_s``: how long a supervisor may be silent.
    """

    def __init__(self, control: Control, loop: Loop, expected: int = 1, *, connect_s: float = _CONNECT_S) -> None:
        self._control = control
        self._loop = loop
        self._connect_s = connect_s
        self._window = max(4096, min(WINDOW, CLIENT_BUDGET // 2 // max(1, expected)))
        self._links: dict[str, Link] = {}

    def connect(self, ranks: Iterable[int]) -> dict[str, PvcError]:
        """Connect to the nodes of these VMs, all at once; returns what failed, by node."""
        nodes = sorted({find_node(self._control.record, rank) for rank in ranks} - self._links.keys())

        def one(node: str) -> PvcError | None:
            endpoint = next((each for each in self._control.record.endpoints if each.node == node), None)
            try:
                if endpoint is None:
                    raise GuestError(f"there is no supervisor on {node}")
                self._links[node] = Link(self._control, endpoint, self._loop, self._window, self._connect_s)
            except PvcError as err:
                return err
            return None

        found = dict(zip(nodes, in_parallel(one, nodes), strict=True)) if nodes else {}
        for node in nodes:
            if node in self._links:
                self._links[node].start()
        return {node: err for node, err in found.items() if err is not None}

    def open(self, rank: int, words: Words, stream: Stream) -> None:
        """Begin a stream to a VM. What the agent answers, refusals too, is told to ``stream`` from the loop.

        :raise PvcError: the VM's node cannot be reached.
        :raise ValueError: the request is too long.
        """
        node = find_node(self._control.record, rank)
        link = self._links.get(node)
        if link is None or link.lost:
            self._links.pop(node, None)
            endpoint = find_endpoint(self._control.record, rank)
            link = Link(self._control, endpoint, self._loop, self._window, self._connect_s)
            self._links[node] = link
            link.start()
        link.open(rank, words, stream)

    def close(self) -> None:
        """Leave; what is open ends."""
        for link in self._links.values():
            link.close()
        self._links.clear()


class Link:
    """The connection to one node's supervisor."""

    def __init__(self, control: Control, endpoint: NodeEndpoint, loop: Loop, window: int, connect_s: float) -> None:
        """:raise PvcError: nobody answers, or the supervisor refuses."""
        self.lost = False
        self._node = endpoint.node
        self._loop = loop
        self._window = window
        self._decoder = Decoder(in_step=True)
        self._streams: dict[int, Stream] = {}
        self._last = 0
        self._out: deque[memoryview] = deque()
        self._connection = control.connect(endpoint, connect_s)
        try:
            _, self._early = send_request(self._connection, {"op": "agent"}, endpoint.node)
        except BaseException:
            close_quietly(self._connection)
            raise
        self._connection.setblocking(False)
        self._fd = self._connection.fileno()

    def start(self) -> None:
        """Serve it in the loop."""
        self._loop.watch(self._fd, self._on_ready, read=True, write=bool(self._out))
        if self._early:
            self._take(self._early)

    def open(self, rank: int, words: Words, stream: Stream) -> None:
        """:raise ValueError: the request is too long."""
        payload = pack_words([("vm", str(rank)), *words])
        self._last += 1
        self._streams[self._last] = stream
        self.write(Kind.OPEN, self._last, payload)
        stream.attach(self, self._last, rank, self._window, datagrams=("net", "udp") in words)

    def write(self, kind: Kind, stream: int, payload: bytes = b"") -> None:
        """Send a frame."""
        if not self.lost:
            self._out.append(memoryview(pack(kind, stream, payload)))
            self._flush()

    def forget(self, number: int) -> None:
        """A stream that was closed here."""
        self._streams.pop(number, None)

    def close(self) -> None:
        """Leave."""
        self._lose("the connection was closed")

    def _on_ready(self) -> None:
        self._flush()
        try:
            for turn in range(_READS):
                data = self._connection.recv(_CHUNK)
                if not data:
                    self._lose(f"the supervisor on {self._node} has ended the connection")
                    return
                self._take(data)
                # TLS reads whole records: what is decrypted already is not seen by a selector.
                if turn == _READS - 1 and self._connection.pending():
                    self._take(self._connection.recv(self._connection.pending()))
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except (OSError, ProtocolError) as err:
            self._lose(f"the connection to the supervisor on {self._node} broke: {err}")

    def _take(self, data: bytes) -> None:
        while frames := self._decoder.feed(data):
            data = b""
            for frame in frames:
                self._take_frame(frame)

    def _take_frame(self, frame: Frame) -> None:
        stream = self._streams.get(frame.stream)
        if frame.kind is Kind.OPEN:
            self._accept(frame)
        elif stream is not None:
            if frame.kind is Kind.CLOSE:
                self.forget(frame.stream)
            stream.take(frame)

    def _accept(self, frame: Frame) -> None:
        words = dict(parse_words(frame.payload))
        parent = self._streams.get(int(words.get("parent", "0")))
        child = parent.on_accept(words) if parent is not None else None
        if child is None or parent is None:
            self.write(Kind.CLOSE, frame.stream)
            return
        self._streams[frame.stream] = child
        child.attach(self, frame.stream, parent.rank, self._window)

    def _flush(self) -> None:
        try:
            while self._out and not self.lost:
                sent = self._connection.send(self._out[0])
                self._out[0] = self._out[0][sent:]
                if not self._out[0]:
                    self._out.popleft()
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError as err:
            self._lose(f"the connection to the supervisor on {self._node} broke: {err}")
        if not self.lost:
            self._loop.watch(self._fd, self._on_ready, read=True, write=bool(self._out))

    def _lose(self, why: str) -> None:
        if self.lost:
            return
        self.lost = True
        self._out.clear()
        self._loop.remove(self._fd)
        close_quietly(self._connection)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.lose(why)


class Collected(Stream):
    """A stream whose answer is short: all of it is kept, at most ``limit`` bytes of output."""

    def __init__(self, limit: int = 1 << 20) -> None:
        super().__init__()
        self.notes: list[dict[str, str]] = []
        self.out = bytearray()
        self.err = bytearray()
        self._limit = limit

    def on_note(self, words: dict[str, str]) -> None:
        """Keep it."""
        self.notes.append(words)

    def on_data(self, data: bytes, second: bool) -> None:
        """Keep it."""
        kept = self.err if second else self.out
        kept += data[: max(0, self._limit - len(kept))]


def ask(agents: Agents, loop: Loop, rank: int, words: Words, timeout_s: float) -> Collected:
    """A request whose answer is short.

    :raise GuestError: the agent refuses, or does not answer in time.
    """
    stream = Collected()
    agents.open(rank, words, stream)
    if not loop.run_until(lambda: stream.closed, timeout_s=timeout_s):
        with suppress(OSError):
            stream.close()
        raise GuestError(f"the agent of vm{rank} has not answered within {timeout_s:g} s")
    check_result(rank, stream.result or {})
    return stream


def check_result(rank: int, result: dict[str, str]) -> None:
    """:raise GuestError: the stream ended with an error."""
    if "error" in result:
        text = printable(result["error"])
        raise GuestError(
            text if result.get("from") in ("supervisor", "connection") else f"vm{rank}: {text}", hint=result.get("hint")
        )
