# SPDX-License-Identifier: Apache-2.0
"""A client of the agents in a cluster's guests: one connection a node, any number of streams, one loop.

``Agents.open`` begins a stream (the requests are those of pvc-agent(7)); a ``Stream`` is told what comes by its
methods, which a subclass overrides.
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from pvc.channel.frames import CLIENT_BUDGET, WINDOW, ProtocolError
from pvc.channel.mux import Accepted, Arrived, Closed, Ended, Event, Moved, Mux, Noted
from pvc.errors import EndedError, GuestError, HostError, PvcError, SuspendedError
from pvc.host.peer import LOOK_S, is_lost
from pvc.model.cluster import NodeEndpoint
from pvc.model.failure import CONNECTION, Failure, is_of_guest
from pvc.ops.control import Control, close_quietly, in_parallel, send_request
from pvc.ops.loop import Loop
from pvc.ops.status import find_endpoint, find_node

_CHUNK = 1 << 17
_CONNECT_S = 30.0
# Connections are looked at in turns.
_READS = 16

Words = Sequence[tuple[str, str]]


class Stream:
    """One stream to a guest. What comes is handed to the ``on_…`` methods; CREDIT is given back as they return."""

    def __init__(self) -> None:
        self.rank = -1
        self.result: dict[str, str] | None = None
        self._link: Link | None = None
        self._number = 0
        self._holds = False
        self._held = 0

    @property
    def name(self) -> str:
        """The VM's."""
        return f"vm{self.rank}"

    @property
    def closed(self) -> bool:
        """Whether it is over."""
        return self.result is not None

    @property
    def pending(self) -> int:
        """Bytes that were given to ``send`` and for which the guest has no room yet."""
        return self._link.mux.pending(self._number) if self._link is not None else 0

    def on_note(self, words: dict[str, str]) -> None:
        """``pid``, ``connected`` and so on."""

    def on_data(self, data: bytes, second: bool) -> None:
        """Bytes; ``second``: of standard error."""

    def on_end(self) -> None:
        """No more bytes will come."""

    def on_moved(self) -> None:
        """Some of what was given to ``send`` is on its way: look at ``pending``."""

    def on_accept(self, words: dict[str, str]) -> Stream | None:
        """The guest has a connection to what this stream listens for; None: it is refused."""
        del words
        return None

    def on_close(self, words: dict[str, str]) -> None:
        """It is over; ``words`` (also ``result``) say how."""

    def send(self, data: bytes) -> None:
        """Send bytes as fast as the guest takes them; look at ``pending`` before there is too much."""
        if self._link is not None and not self.closed:
            self._link.mux.send(self._number, data)
            self._link.flush()

    def end(self) -> None:
        """No more bytes will be sent, once those are that wait."""
        if self._link is not None and not self.closed:
            self._link.mux.end(self._number)
            self._link.flush()

    def note(self, words: Words) -> None:
        """Tell the agent something: ``signal``, ``rows`` and ``cols``."""
        if self._link is not None and not self.closed:
            self._link.mux.note(self._number, words)
            self._link.flush()

    def hold(self, *, holds: bool) -> None:
        """Whether to give no CREDIT back for what comes, so that in the end nothing does."""
        self._holds = holds
        held, self._held = self._held, self._held if holds else 0
        if not holds and held and self._link is not None and not self.closed:
            self._link.mux.taken(self._number, held)
            self._link.flush()

    def note_taken(self, count: int) -> int:
        """For ``Link``: so many bytes were dealt with; for how many CREDIT may be given back."""
        if self._holds:
            self._held += count
            return 0
        return count

    def close(self) -> None:
        """Let go of it; what it began in the guest and is not detached ends."""
        if not self.closed and self._link is not None:
            self._link.forget(self._number)
        self.finish({})

    def attach(self, link: Link, number: int, rank: int) -> None:
        """For ``Link``: it is open."""
        self._link, self._number, self.rank = link, number, rank

    def finish(self, words: dict[str, str]) -> None:
        """For ``Link``: it is over."""
        if self.result is None:
            self.result = words
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
        loop.every(LOOK_S, self._look)

    def __enter__(self) -> Agents:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self, ranks: Iterable[int]) -> dict[str, PvcError]:
        """Connect to the nodes of these VMs, all at once; returns what failed, by node.

        :raise EndedError: the cluster has ended.
        :raise SuspendedError: its job is suspended.
        """
        nodes = sorted({find_node(self._control.record, rank) for rank in ranks} - self._links.keys())

        def one(node: str) -> PvcError | None:
            endpoint = next((each for each in self._control.record.endpoints if each.node == node), None)
            try:
                if endpoint is None:
                    raise GuestError(f"there is no supervisor on {node}")
                self._links[node] = Link(self._control, endpoint, self._loop, self._window, self._connect_s)
            except (EndedError, SuspendedError):
                raise
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

    def _look(self) -> None:
        for link in self._links.values():
            link.look()

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
        self.mux = Mux()
        self._node = endpoint.node
        self._loop = loop
        self._window = window
        self._streams: dict[int, Stream] = {}
        self._out: deque[memoryview] = deque()
        self._waits: bool | None = None  # for room to send; None: not watched yet
        self._connection = control.connect(endpoint, connect_s)
        try:
            with control.talking():
                _, self._early = send_request(self._connection, {"op": "agent"}, endpoint.node)
        except BaseException:
            close_quietly(self._connection)
            raise
        self._connection.setblocking(False)
        self._fd = self._connection.fileno()

    def start(self) -> None:
        """Serve it in the loop."""
        self._watch()
        self._take(self._early)

    def open(self, rank: int, words: Words, stream: Stream) -> None:
        """:raise ValueError: the request is too long."""
        number = self.mux.open([("vm", str(rank)), *words], self._window)
        self._streams[number] = stream
        stream.attach(self, number, rank)
        self.flush()

    def forget(self, number: int) -> None:
        """Close a stream from here."""
        self._streams.pop(number, None)
        self.mux.close(number)
        self.flush()

    def look(self) -> None:
        """See whether the supervisor's machine is still there."""
        if not self.lost and is_lost(self._connection):
            self._lose(f"the connection to the supervisor on {self._node} was lost: {self._node} does not answer")

    def close(self) -> None:
        """Leave."""
        self._lose("the connection was closed")

    def _on_ready(self) -> None:
        self.flush()
        for _ in range(_READS):
            data = self._read(_CHUNK)
            if not data:
                return
            self._take(data)
        # TLS reads whole records: what is decrypted already is not seen by a selector.
        if not self.lost and self._connection.pending():
            self._take(self._read(self._connection.pending()))

    def _read(self, most: int) -> bytes:
        """What has come; b"": nothing, or the connection is lost."""
        if self.lost:
            return b""
        try:
            data = self._connection.recv(most)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return b""
        except OSError as err:
            self._lose(f"the connection to the supervisor on {self._node} broke: {err}")
            return b""
        if not data:
            self._lose(f"the supervisor on {self._node} has ended the connection")
        return data

    def _take(self, data: bytes) -> None:
        """What streams do with it may fail, as writing to a full disk: that is no fault of the connection's."""
        while events := self._receive(data):
            data = b""
            for event in events:
                self._tell(event)
        self.flush()

    def _receive(self, data: bytes) -> list[Event]:
        try:
            return self.mux.receive(data)
        except ProtocolError as err:
            self._lose(f"the connection to the supervisor on {self._node} broke: {err}")
            return []

    def _tell(self, event: Event) -> None:
        if isinstance(event, Accepted):
            self._accept(event)
            return
        stream = self._streams.get(event.stream)
        if stream is None:  # closed by what came before it
            return
        match event:
            case Arrived():
                stream.on_data(event.data, event.second)
                self.mux.taken(event.stream, stream.note_taken(len(event.data)))
            case Moved():
                stream.on_moved()
            case Noted():
                stream.on_note(event.words)
            case Ended():
                stream.on_end()
            case Closed():
                del self._streams[event.stream]
                stream.finish(event.words)

    def _accept(self, event: Accepted) -> None:
        parent = self._streams.get(event.parent)
        child = parent.on_accept(event.words) if parent is not None else None
        if child is None or parent is None:
            self.mux.close(event.stream)
            return
        self._streams[event.stream] = child
        child.attach(self, event.stream, parent.rank)

    def flush(self) -> None:
        """Send what is to be sent, as far as it goes now."""
        if self.lost or self._waits is None:
            return
        self._out.extend(map(memoryview, self.mux.take_output()))
        try:
            while self._out:
                sent = self._connection.send(self._out[0])
                if sent == len(self._out[0]):
                    self._out.popleft()
                else:
                    self._out[0] = self._out[0][sent:]
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError as err:
            self._lose(f"the connection to the supervisor on {self._node} broke: {err}")
            return
        if self._waits != bool(self._out):
            self._watch()

    def _watch(self) -> None:
        self._waits = bool(self._out)
        self._loop.watch(self._fd, self._on_ready, read=True, write=self._waits)

    def _lose(self, why: str) -> None:
        if self.lost:
            return
        self.lost = True
        self._out.clear()
        self._loop.remove(self._fd)
        close_quietly(self._connection)
        for event in self.mux.lose(dict(Failure(HostError.exit_code, why).words(CONNECTION))):
            self._tell(event)


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
    """:raise PvcError: the stream ended with an error."""
    failure = Failure.of_words(result)
    if failure is not None:
        raise (failure.about(f"vm{rank}") if is_of_guest(result) else failure).rebuild()


def raise_closed(words: Mapping[str, str]) -> None:
    """:raise PvcError: the words of a CLOSE tell of an error."""
    failure = Failure.of_words(words)
    if failure is not None:
        raise failure.rebuild()
