# SPDX-License-Identifier: Apache-2.0
"""The client's end of a connection that carries streams to agents, without the connection: bytes in, events out.

pvc-agent(7) has the frames; a supervisor leads them to the agents. Whoever has a connection hands what comes to
``receive`` and sends what ``take_output`` gives: how to wait for either is not decided here. CREDIT is given as what
has come is ``taken``, at most a stream's window, and in all no more than a supervisor keeps for one client.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from pvc.channel.frames import (
    CHECK,
    CLIENT_BUDGET,
    FROM_AGENT,
    HEADER,
    MAX_PAYLOAD,
    SECOND,
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
)

Words = Iterable[tuple[str, str]]
# An agent sends a datagram only while it may send the largest one; so one is on its way while another is taken.
DATAGRAM_WINDOW = 2 * MAX_PAYLOAD


@dataclass(frozen=True, slots=True)
class Event:
    """Something has come on a stream."""

    stream: int


@dataclass(frozen=True, slots=True)
class Noted(Event):
    """A NOTE."""

    words: dict[str, str]


@dataclass(frozen=True, slots=True)
class Arrived(Event):
    """Bytes, ``second`` those of standard error; say ``taken`` once they are dealt with."""

    data: bytes
    second: bool


@dataclass(frozen=True, slots=True)
class Ended(Event):
    """No more bytes will come."""


@dataclass(frozen=True, slots=True)
class Moved(Event):
    """Some of what waited is on its way, and ``pending`` tells how much still waits; or a datagram may be sent."""


@dataclass(frozen=True, slots=True)
class Accepted(Event):
    """The guest has a connection, ``stream``, to what ``parent`` listens for. Close it if it is not wanted."""

    parent: int
    words: dict[str, str]


@dataclass(frozen=True, slots=True)
class Closed(Event):
    """The stream is over, and ``words`` say how; nothing more comes of it. ``unsent``: bytes it had no room for."""

    words: dict[str, str]
    unsent: int = 0


@dataclass(slots=True)
class _State:
    window: int
    datagrams: bool
    granted: int = 0  # it may send so much more
    held: int = 0  # has come and is not taken
    credit: int = 0  # it takes so much more
    pending: int = 0
    ends: bool = False
    queue: deque[memoryview] = field(default_factory=deque)


class Mux:
    """All streams of one connection; ``budget``: what may be granted in all."""

    def __init__(self, budget: int = CLIENT_BUDGET) -> None:
        self._decoder = Decoder(in_step=True)
        self._states: dict[int, _State] = {}
        self._hungry: dict[int, None] = {}  # would grant more than the budget has
        self._budget = budget
        self._last = 0
        self._output: list[bytes] = []
        self._error: ProtocolError | None = None

    def take_output(self) -> list[bytes]:
        """What is to be sent now; each a frame."""
        found, self._output = self._output, []
        return found

    def is_open(self, stream: int) -> bool:
        """Whether it is neither closed nor unknown."""
        return stream in self._states

    def pending(self, stream: int) -> int:
        """Bytes given to ``send`` for which there is no room at the other end yet."""
        state = self._states.get(stream)
        return state.pending if state is not None else 0

    def open(self, words: Words, window: int = WINDOW) -> int:
        """Begin a stream: a request of pvc-agent(7), and ``vm``, a rank. Returns its number.

        :raise ValueError: the request is too long.
        """
        pairs = list(words)
        payload = pack_words(pairs)
        while True:
            self._last = self._last % (FROM_AGENT - 1) + 1
            if self._last not in self._states:
                break
        self._output.append(pack(Kind.OPEN, self._last, payload))
        self._add(self._last, window, datagrams=("net", "udp") in pairs)
        return self._last

    def send(self, stream: int, data: bytes) -> None:
        """Send bytes as fast as the other end takes them: look at ``pending`` before there is too much."""
        state = self._states.get(stream)
        if state is not None and data:
            state.queue.append(memoryview(data))
            state.pending += len(data)
            self._push(stream, state)

    def send_datagram(self, stream: int, data: bytes) -> bool:
        """Send it as one frame; False: there is no room for it, so it is lost, as datagrams are."""
        state = self._states.get(stream)
        if state is None or len(data) > min(state.credit, MAX_PAYLOAD):
            return False
        state.credit -= len(data)
        self._output.append(pack(Kind.DATA, stream, data))
        return True

    def end(self, stream: int) -> None:
        """No more bytes will be sent, once those are that wait."""
        state = self._states.get(stream)
        if state is not None:
            state.ends = True
            self._push(stream, state)

    def note(self, stream: int, words: Words) -> None:
        """Tell the agent something: ``signal``, ``rows`` and ``cols``."""
        if stream in self._states:
            self._output.append(pack(Kind.NOTE, stream, pack_words(words)))

    def close(self, stream: int) -> None:
        """Let go of it: what it began and is not detached ends. No event tells of it."""
        state = self._states.pop(stream, None)
        if state is not None:
            self._output.append(pack(Kind.CLOSE, stream))
            self._give_back(stream, state)

    def taken(self, stream: int, count: int) -> None:
        """So many of the bytes that have come are dealt with."""
        state = self._states.get(stream)
        if state is not None:
            state.held -= count
            self._grant(stream, state)

    def receive(self, data: bytes) -> list[Event]:
        """What the bytes mean, in their order; an error behind some of it is raised by the next call.

        :raise ProtocolError: the other end breaks the rules; the connection is worth nothing any more.
        """
        if self._error is not None:
            raise self._error
        found: list[Event] = []
        try:
            while frames := self._decoder.feed(data):
                data = b""
                for frame in frames:
                    event = self._take(frame)
                    if event is not None:
                        found.append(event)
        except ProtocolError as err:
            self._error = err
            if not found:
                raise
        return found

    def lose(self, words: dict[str, str]) -> list[Event]:
        """The connection is gone: the ends of all streams, with this as their reason."""
        states, self._states = self._states, {}
        self._hungry.clear()
        self._output.clear()
        return [Closed(stream, dict(words), state.pending) for stream, state in states.items()]

    def _take(self, frame: Frame) -> Event | None:
        if frame.kind is Kind.PING:
            self._output.append(pack(Kind.PONG, 0, frame.payload))
            return None
        if frame.kind is Kind.OPEN:
            return self._accept(frame)
        state = self._states.get(frame.stream)
        if state is None:  # closed from here while the other end spoke
            return None
        event: Event | None = None
        match frame.kind:
            case Kind.DATA:
                event = self._arrive(frame, state)
            case Kind.CREDIT:
                state.credit += parse_credit(frame.payload)
                before = state.pending
                self._push(frame.stream, state)
                event = Moved(frame.stream) if state.pending < before or state.datagrams else None
            case Kind.NOTE:
                event = Noted(frame.stream, dict(parse_words(frame.payload)))
            case Kind.END:
                event = Ended(frame.stream)
            case Kind.CLOSE:
                event = Closed(frame.stream, dict(parse_words(frame.payload)), state.pending)
                del self._states[frame.stream]
                self._give_back(frame.stream, state)
            case _:
                raise ProtocolError("a frame that belongs to no stream")
        return event

    def _arrive(self, frame: Frame, state: _State) -> Event | None:
        size = len(frame.payload)
        if size > state.granted:
            raise ProtocolError("DATA without CREDIT")
        state.granted -= size
        state.held += size
        self._return(size)
        return Arrived(frame.stream, frame.payload, bool(frame.flags & SECOND)) if size or state.datagrams else None

    def _accept(self, frame: Frame) -> Event | None:
        words = dict(parse_words(frame.payload))
        parent = words.pop("parent", "")
        state = self._states.get(int(parent)) if parent.isdecimal() and len(parent) < 11 else None
        if frame.stream < FROM_AGENT or frame.stream in self._states:
            raise ProtocolError("a stream whose number is not free")
        if state is None:  # nobody listens any more
            self._output.append(pack(Kind.CLOSE, frame.stream))
            return None
        self._add(frame.stream, state.window, datagrams=state.datagrams)
        return Accepted(frame.stream, int(parent), words)

    def _add(self, stream: int, window: int, *, datagrams: bool) -> None:
        state = self._states[stream] = _State(max(window, DATAGRAM_WINDOW) if datagrams else window, datagrams)
        self._grant(stream, state)

    def _push(self, stream: int, state: _State) -> None:
        """Send what there is room for."""
        while state.queue:
            part = state.queue[0]
            size = min(len(part), state.credit, MAX_PAYLOAD)
            if size == 0:
                return
            self._output.append(b"".join((HEADER.pack(Kind.DATA, 0, CHECK, stream, size), part[:size])))
            state.credit -= size
            state.pending -= size
            if size == len(part):
                state.queue.popleft()
            else:
                state.queue[0] = part[size:]
        if state.ends:
            state.ends = False
            self._output.append(pack(Kind.END, stream))

    def _grant(self, stream: int, state: _State) -> None:
        wanted = state.window - state.granted - state.held
        # Less is not worth a frame; a datagram is never divided, so all room counts.
        worth = 1 if state.datagrams else max(1, state.window // 4)
        if wanted < worth:
            return
        given = min(wanted, self._budget)
        if given < worth:
            self._hungry[stream] = None
            return
        self._hungry.pop(stream, None)
        state.granted += given
        self._budget -= given
        self._output.append(pack(Kind.CREDIT, stream, pack_credit(given)))

    def _give_back(self, stream: int, state: _State) -> None:
        self._hungry.pop(stream, None)
        self._return(state.granted)

    def _return(self, count: int) -> None:
        """The budget has so much more, for those that wait for it."""
        self._budget += count
        for stream in list(self._hungry):
            before = self._budget
            self._grant(stream, self._states[stream])
            if self._budget == before:
                return
