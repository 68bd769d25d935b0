# SPDX-License-Identifier: Apache-2.0
"""A guest whose root speaks to the supervisor: it loses its session, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Awaitable, Callable

import pytest
from agents import Call, call
from hypothesis import given, settings
from hypothesis import strategies as st

import pvc.supervisor.agent as module
from pvc.channel.frames import (
    FROM_AGENT,
    MAX_PAYLOAD,
    Decoder,
    Frame,
    Hello,
    Kind,
    pack,
    pack_credit,
    pack_hello,
    pack_words,
    parse_hello,
)
from pvc.supervisor.agent import MAX_CREDIT, MAX_STREAMS, Agent
from tests.waits import until

NUMBER = 77


class Peer:
    """The guest's side, byte by byte."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self._decoder = Decoder()
        self._frames: list[Frame] = []

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def next(self, *kinds: Kind) -> Frame:
        """The next frame of these kinds."""
        async with asyncio.timeout(60):
            while True:
                while self._frames:
                    frame = self._frames.pop(0)
                    if frame.kind in kinds:
                        return frame
                self._frames += self._decoder.feed(await asyncio.get_running_loop().sock_recv(self.socket, 1 << 18))

    async def end(self) -> None:
        """Say no more, and return once all that was said has been taken: then the other side ends, too."""
        self.socket.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionResetError):
                while await asyncio.get_running_loop().sock_recv(self.socket, 1 << 18):
                    pass

    async def greet(self) -> None:
        """A session."""
        await self.send(pack_hello(Hello(0, NUMBER, 1, "evil\x1b[2J")))
        while True:
            hello = parse_hello((await self.next(Kind.HELLO)).payload)
            if hello.agent == NUMBER:
                break
        await self.send(pack_hello(Hello(hello.session, NUMBER, 1, "evil\x1b[2J")))


def play(talk: Callable[[Agent, Peer], Awaitable[None]]) -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        agent = Agent("vm0", ours, lambda: False, lambda: None)
        task = asyncio.create_task(agent.run())
        try:
            async with asyncio.timeout(300):
                await talk(agent, Peer(theirs))
        finally:
            theirs.close()
            async with asyncio.timeout(60):
                await task  # it ends by itself, and never by an error
        assert not agent.connected
        assert not agent._streams

    asyncio.run(run())


async def connected(agent: Agent) -> None:
    await until(lambda: agent.connected)


OPEN = pack(Kind.OPEN, FROM_AGENT | 1, pack_words([("op", "accepted"), ("parent", "1")]))
HARM = {
    "no frame": b"\xff" * 40,
    "a length beyond all": b"\x05\0\x50\x56\x01\0\0\0\xff\xff\xff\xff",
    "a type that is none": b"\x20\0\x50\x56\0\0\0\0\0\0\0\0",
    "DATA without CREDIT": pack(Kind.DATA, 1, bytes(5000)),
    "DATA of nobody": pack(Kind.DATA, 9, b"x"),
    "NOTE of nobody": pack(Kind.NOTE, 9, b""),
    "CLOSE of nobody": pack(Kind.CLOSE, 9),
    "on stream 0": pack(Kind.END, 0),
    "CREDIT of nothing": pack(Kind.CREDIT, 1, pack_credit(0)),
    "CREDIT beyond all": pack(Kind.CREDIT, 1, pack_credit(MAX_CREDIT + 1)),
    "words that are none": pack(Kind.NOTE, 1, b"exit"),
    "CLOSE with no words": pack(Kind.CLOSE, 1, b"\xff\xff"),
    "a stream of the host's": pack(Kind.OPEN, 5, pack_words([("parent", "1")])),
    "a stream of nobody": pack(Kind.OPEN, FROM_AGENT | 1, pack_words([("parent", "9")])),
    "a stream without parent": pack(Kind.OPEN, FROM_AGENT | 1, b""),
    "the same stream twice": OPEN + OPEN,
    "a parent that is no number": pack(Kind.OPEN, FROM_AGENT | 1, pack_words([("parent", "99999999999999999999")])),
    "no HELLO": pack(Kind.HELLO, 0, bytes(50)),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM.keys())
def test_who_breaks_the_protocol_loses_the_session(harm: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AGAIN_S", 0.01)

    async def talk(agent: Agent, peer: Peer) -> None:
        await peer.greet()
        await connected(agent)
        assert agent.release == "evil?[2J"
        lost = call(agent, ("op", "exec"), ("arg", "true"), window=4096)
        assert lost.stream == 1
        await peer.next(Kind.OPEN)
        await peer.send(harm)
        result = await lost.wait()
        assert "broke the protocol" in result["error"]
        assert not agent.connected
        assert "broke the protocol" in agent.problem
        # And it may begin again.
        hello = parse_hello((await peer.next(Kind.HELLO)).payload)
        await peer.send(pack_hello(Hello(hello.session, NUMBER, 1, "2")))
        await connected(agent)
        assert agent.problem == ""

    play(talk)


@settings(max_examples=60)
@given(st.lists(st.one_of(st.binary(max_size=300), st.sampled_from(list(HARM.values()))), max_size=8))
def test_whatever_comes(parts: list[bytes]) -> None:
    async def talk(agent: Agent, peer: Peer) -> None:
        await peer.greet()
        await connected(agent)
        calls = [call(agent, ("op", "exec"), window=0) for _ in range(3)]
        honest = call(agent, ("op", "exec"))
        await peer.send(pack(Kind.DATA, honest.stream, b"may come"))
        for part in parts:
            await peer.send(part)
        await peer.end()
        assert all(not each.out for each in calls)
        assert honest.out == b"may come"

    play(talk)


def test_a_guest_that_does_not_read_costs_a_bounded_amount() -> None:
    async def talk(agent: Agent, peer: Peer) -> None:
        await peer.greet()
        await connected(agent)
        last = call(agent, ("op", "exec"))
        ping = pack(Kind.PING, 0, bytes(MAX_PAYLOAD))
        while agent._out_bytes < module._MAX_OUT:
            await peer.send(ping)
        await peer.send(ping * 20)
        # Frames are taken in their order: with this one, all PINGs were.
        await peer.send(pack(Kind.CLOSE, last.stream, pack_words([("exit", "0")])))
        await last.wait()
        assert agent._out_bytes <= module._MAX_OUT + 2 * MAX_PAYLOAD
        with pytest.raises(Exception, match="takes nothing any more"):
            call(agent, ("op", "exec"))

    play(talk)


def test_a_flood_of_notes_waits_for_who_reads_them() -> None:
    """NOTEs need no CREDIT: the guest is not read on while its client has not taken what came."""

    class Slow(Call):
        hold: asyncio.Event
        asked = False

        async def ready(self) -> None:
            self.asked = True
            await self.hold.wait()

    async def talk(agent: Agent, peer: Peer) -> None:
        await peer.greet()
        await connected(agent)
        slow = Slow(agent)
        slow.hold = asyncio.Event()
        slow.stream = agent.open([("op", "exec")], slow)
        note = pack(Kind.NOTE, slow.stream, pack_words([("x", "y" * 60_000)]))
        flood = asyncio.create_task(peer.send(note * 500))
        # Its reader is held, and so the socket fills up.
        await until(lambda: slow.asked and not select.select([], [peer.socket], [], 0)[1])
        assert not flood.done()
        assert len(slow.notes) < 40
        slow.hold.set()
        await flood
        await slow.until(lambda: len(slow.notes) == 500)

    play(talk)


def test_streams_are_counted() -> None:
    async def talk(agent: Agent, peer: Peer) -> None:
        await peer.greet()
        await connected(agent)
        listener = call(agent, ("op", "listen"))
        for number in range(1, 2 * MAX_STREAMS + 5):
            words = pack_words([("op", "accepted"), ("parent", str(listener.stream))])
            with contextlib.suppress(ConnectionError):
                await peer.send(pack(Kind.OPEN, FROM_AGENT | number, words))
        assert "too many streams" in (await listener.wait())["error"]
        assert len(listener.accepted) <= 2 * MAX_STREAMS

    play(talk)


def test_another_protocol_is_named() -> None:
    async def talk(agent: Agent, peer: Peer) -> None:
        await peer.send(pack_hello(Hello(0, NUMBER, 2, "9.9")))
        await until(lambda: agent.problem)
        assert agent.problem == "the agent of vm0 speaks protocol 2, pvc speaks 1"
        with pytest.raises(Exception, match="speaks protocol 2"):
            agent.check()

    play(talk)


def test_a_guest_that_falls_silent_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_PING_S", 0.02), ("_SILENT_S", 0.1), ("_DEAD_S", 0.5), ("_AGAIN_S", 0.01)):
        monkeypatch.setattr(module, name, value)

    async def talk(agent: Agent, peer: Peer) -> None:
        await peer.greet()
        await connected(agent)
        lost = call(agent, ("op", "exec"))
        await until(lambda: agent.problem == "the guest does not answer" or lost.result is not None)
        assert "the guest has said nothing for" in (await lost.wait())["error"]
        await peer.greet()
        await connected(agent)
        assert agent.problem in ("", "the guest does not answer")

    play(talk)
