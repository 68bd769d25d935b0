# SPDX-License-Identifier: Apache-2.0
"""The client's end of a connection: with any other end that keeps the rules all bytes come."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvc.channel.frames import (
    CLIENT_BUDGET,
    FROM_AGENT,
    MAX_PAYLOAD,
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
from pvc.channel.mux import DATAGRAM_WINDOW, Accepted, Arrived, Closed, Ended, Event, Moved, Mux, Noted


class Far:
    """Another end: it keeps the books that a supervisor keeps, and says what it is told to say."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.may_send: dict[int, int] = {}
        self.room: dict[int, int] = {}
        self.heard: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.opened: dict[int, dict[str, str]] = {}
        self.pongs: list[bytes] = []
        self._decoder = Decoder(in_step=True)

    def hear(self, mux: Mux) -> None:
        for frame in self._decoder.feed(b"".join(mux.take_output())):
            self._take(frame)
        assert sum(self.may_send.values()) <= self.budget

    def _take(self, frame: Frame) -> None:
        stream = frame.stream
        if frame.kind is Kind.OPEN:
            assert stream not in self.opened
            self.opened[stream] = dict(parse_words(frame.payload))
            self.add(stream)
        elif frame.kind is Kind.CREDIT:
            self.may_send[stream] += parse_credit(frame.payload)
        elif frame.kind is Kind.DATA:
            assert stream not in self.ended
            self.room[stream] -= len(frame.payload)
            assert self.room[stream] >= 0
            self.heard[stream] += frame.payload
        elif frame.kind is Kind.END:
            self.ended.add(stream)
        elif frame.kind is Kind.CLOSE:
            del self.may_send[stream]
        elif frame.kind is Kind.PONG:
            self.pongs.append(frame.payload)

    def add(self, stream: int) -> None:
        self.may_send[stream] = self.room[stream] = 0
        self.heard[stream] = bytearray()

    def grant(self, stream: int, count: int) -> bytes:
        self.room[stream] += count
        return pack(Kind.CREDIT, stream, pack_credit(count))

    def send(self, stream: int, data: bytes) -> tuple[bytes, bytes]:
        """What may be sent of it now, as a frame, and the rest."""
        size = min(len(data), self.may_send[stream], MAX_PAYLOAD)
        if not size:
            return b"", data
        self.may_send[stream] -= size
        return pack(Kind.DATA, stream, data[:size]), data[size:]


def opened(mux: Mux, far: Far, window: int = 1 << 16, **words: str) -> int:
    stream = mux.open([("vm", "0"), *words.items()], window)
    far.hear(mux)
    return stream


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60_000)), max_size=30),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 90_000)), max_size=30),
    st.integers(1000, 1 << 17),
    st.integers(0, 1 << 18),
    st.lists(st.integers(3000, 90_000), min_size=1, max_size=10),
)
def test_all_that_is_said_comes_both_ways(
    ours: list[tuple[int, int]], theirs: list[tuple[int, int]], window: int, spare: int, cuts: list[int]
) -> None:
    """Bytes are cut anywhere, and each end is slow now and then."""
    budget = 4 * window + spare
    mux, far = Mux(budget), Far(budget)
    streams = [opened(mux, far, window) for _ in range(4)]
    said = {stream: bytearray() for stream in streams}
    todo = dict.fromkeys(streams, b"")
    came = {stream: bytearray() for stream in streams}
    for number, (index, size) in enumerate(ours):
        part = bytes([number % 256]) * size
        mux.send(streams[index], part)
        said[streams[index]] += part
    for number, (index, size) in enumerate(theirs):
        todo[streams[index]] += bytes([number % 256]) * size
    wanted = dict(todo)
    for stream in streams:
        mux.end(stream)
    turn = 0
    while any(todo.values()) or any(mux.pending(stream) for stream in streams):
        far.hear(mux)
        wire = b""
        for stream in streams:
            frame, todo[stream] = far.send(stream, todo[stream])
            wire += frame
            if mux.pending(stream):
                wire += far.grant(stream, cuts[turn % len(cuts)])
        assert wire, "both ends wait"
        untaken = []
        while wire:
            size = cuts[turn % len(cuts)]
            turn += 1
            for event in mux.receive(wire[:size]):
                if isinstance(event, Arrived):
                    came[event.stream] += event.data
                    untaken.append(event)
            wire = wire[size:]
        for each in reversed(untaken):
            mux.taken(each.stream, len(each.data))
    far.hear(mux)
    assert far.heard == said
    assert came == wanted
    assert far.ended == set(streams)
    for stream in streams:
        mux.close(stream)
    far.hear(mux)
    assert mux._budget == budget
    assert not far.may_send


def test_streams_that_the_budget_left_out_get_what_others_give_back() -> None:
    mux, far = Mux(1 << 16), Far(1 << 16)
    first, second, third = (opened(mux, far, 1 << 16) for _ in range(3))
    assert far.may_send == {first: 1 << 16, second: 0, third: 0}
    mux.close(first)
    far.hear(mux)
    assert far.may_send == {second: 1 << 16, third: 0}
    assert mux.receive(far.send(second, bytes(1 << 15))[0]) == [Arrived(second, bytes(1 << 15), second=False)]
    far.hear(mux)
    assert far.may_send == {second: 1 << 15, third: 1 << 15}
    mux.receive(pack(Kind.CLOSE, second))
    del far.may_send[second]
    mux.receive(far.send(third, bytes(1 << 15))[0])
    mux.taken(third, 1 << 15)
    far.hear(mux)
    assert far.may_send == {third: 1 << 16}


def test_the_largest_datagram_may_always_come_next() -> None:
    """An agent sends one only while it may send 64 KiB; what was taken is granted again, however little."""
    mux, far = Mux(), Far(CLIENT_BUDGET)
    stream = opened(mux, far, 4096, net="udp")
    assert far.may_send[stream] == DATAGRAM_WINDOW
    for _ in range(5000):
        (event,) = mux.receive(far.send(stream, b"pong")[0])
        mux.taken(stream, len(event.data) if isinstance(event, Arrived) else 0)
        far.hear(mux)
        assert far.may_send[stream] >= MAX_PAYLOAD
    assert not mux.send_datagram(stream, b"ping")
    assert mux.receive(far.grant(stream, 5)) == [Moved(stream)]
    assert mux.send_datagram(stream, b"ping")
    assert not mux.send_datagram(stream, b"ping")
    assert mux.receive(pack(Kind.DATA, stream)) == [Arrived(stream, b"", second=False)]


def test_what_comes_is_told_in_its_order() -> None:
    mux, far = Mux(), Far(CLIENT_BUDGET)
    stream = opened(mux, far, op="listen")
    assert far.opened[stream] == {"vm": "0", "op": "listen"}
    child = FROM_AGENT | 1
    mux.send(stream, b"input")
    wire = [
        pack(Kind.NOTE, stream, pack_words([("pid", "7")])),
        pack(Kind.PING, 0, b"there?"),
        far.grant(stream, 3),
        pack(Kind.DATA, stream, b"err", 1),
        pack(Kind.OPEN, child, pack_words([("parent", str(stream)), ("peer", "::1")])),
        pack(Kind.END, stream),
        pack(Kind.CLOSE, stream, pack_words([("exit", "3")])),
        pack(Kind.DATA, stream, b"late"),
        pack(Kind.OPEN, child + 1, pack_words([("parent", str(stream))])),
    ]
    far.add(child)
    far.add(child + 1)
    assert mux.receive(b"".join(wire)) == [
        Noted(stream, {"pid": "7"}),
        Moved(stream),
        Arrived(stream, b"err", second=True),
        Accepted(child, stream, {"peer": "::1"}),
        Ended(stream),
        Closed(stream, {"exit": "3"}, 2),
    ]
    far.hear(mux)
    assert far.pongs == [b"there?"]
    assert bytes(far.heard[stream]) == b"inp"
    assert child + 1 not in far.may_send  # nobody listens any more
    assert mux.is_open(child)
    assert not mux.is_open(stream)
    assert mux.lose({"error": "gone"}) == [Closed(child, {"error": "gone"}, 0)]


@pytest.mark.parametrize(
    "nonsense",
    [
        pack(Kind.DATA, 1, b"x" * 4097),
        pack(Kind.CREDIT, 1, bytes(4)),
        pack(Kind.NOTE, 1, b"no words"),
        pack(Kind.OPEN, 2, pack_words([("parent", "1")])),
        b"nonsense on the wire",
    ],
)
def test_an_end_that_breaks_the_rules_is_refused_behind_what_was_right(nonsense: bytes) -> None:
    mux = Mux()
    stream = mux.open([("vm", "0")], 4096)
    good: list[Event] = [Ended(stream)]
    found = mux.receive(pack(Kind.END, stream) + nonsense)
    assert found == good
    with pytest.raises(ProtocolError):
        mux.receive(b"")
    with pytest.raises(ProtocolError):
        mux.receive(pack(Kind.END, stream))


def test_numbers_are_used_again_only_when_they_are_free() -> None:
    mux = Mux()
    mux._last = FROM_AGENT - 2
    assert [mux.open([("vm", "0")], 1) for _ in range(3)] == [FROM_AGENT - 1, 1, 2]
