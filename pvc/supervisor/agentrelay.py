# SPDX-License-Identifier: Apache-2.0
"""A client's connection to the agents of a node's VMs: its frames, with each stream led to the VM that it names.

The protocol is that of pvc-agent(7) without a HELLO; ``vm`` (a rank) in OPEN says whose agent is meant. CREDIT passes
from end to end, so this side buffers no more than the client has granted, and a client may grant CLIENT_BUDGET in all.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from pvc.channel.frames import (
    CLIENT_BUDGET,
    FROM_AGENT,
    Decoder,
    Frame,
    Kind,
    ProtocolError,
    pack,
    pack_words,
    parse_credit,
    parse_words,
)
from pvc.errors import GuestError, PvcError
from pvc.host.peer import LOOK_S, is_lost, keep_alive
from pvc.model.failure import SUPERVISOR, Failure, drop_claims
from pvc.supervisor.agent import Agent

LOG = logging.getLogger(__name__)

MAX_STREAMS = 4096
_CHUNK = 1 << 17
# Only frames that need no CREDIT can come to that: their guest waits then.
_HIGH = 2 * CLIENT_BUDGET

FindAgent = Callable[[int], Agent]


class Relay:
    """One client. ``find(rank)`` is a VM's agent, and raises a PvcError where there is none."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, find: FindAgent) -> None:
        self._reader = reader
        self._writer = writer
        self._find = find
        self._routes: dict[int, Route] = {}
        self._outstanding = 0
        self._last = 0
        self._touched: set[Agent] = set()  # were sent DATA

    async def run(self) -> None:
        """Until the client leaves; what it began and did not detach is ended.

        :raise ProtocolError: it does not speak the protocol.
        """
        connection = self._writer.get_extra_info("socket")
        keep_alive(connection)
        looking = asyncio.create_task(self._look(connection))
        self._writer.transport.set_write_buffer_limits(high=_HIGH)
        decoder = Decoder(in_step=True)
        try:
            while data := await self._reader.read(_CHUNK):
                while frames := decoder.feed(data):
                    for frame in frames:
                        self._take(frame)
                    data = b""
                # A client whose guest takes nothing waits, so what is kept for a guest is bounded.
                for agent in self._touched:
                    await agent.room()
                self._touched.clear()
        finally:
            looking.cancel()
            for route in list(self._routes.values()):
                route.leave()
            self._routes.clear()

    async def _look(self, connection: socket.socket | None) -> None:
        """Until the client's machine is gone."""
        while not is_lost(connection):
            await asyncio.sleep(LOOK_S)
        LOG.info("a client is gone: it has not answered for half a minute")
        self._writer.transport.abort()

    def write(self, frame: Frame, stream: int) -> None:
        """Tell the client."""
        if frame.kind is Kind.DATA:
            self._outstanding -= len(frame.payload)
        self._writer.write(pack(frame.kind, stream, frame.payload, frame.flags))

    async def ready(self) -> None:
        """Return once the client has taken what it was sent, all but what it asked for."""
        with suppress(OSError):
            await self._writer.drain()

    def forget(self, stream: int, ungranted: int) -> None:
        """A stream is over; ``ungranted`` of its CREDIT was not used."""
        self._routes.pop(stream, None)
        self._outstanding -= ungranted

    def add(self, agent: Agent, number: int) -> Route:
        """A stream that the guest's side opens."""
        while True:
            self._last = (self._last + 1) % FROM_AGENT
            stream = FROM_AGENT | self._last
            if stream not in self._routes:
                break
        route = self._routes[stream] = Route(self, agent, stream)
        route.number = number
        return route

    def _take(self, frame: Frame) -> None:
        if frame.kind is Kind.PING:
            self._writer.write(pack(Kind.PONG, 0, frame.payload))
        elif frame.kind is Kind.OPEN:
            self._open(frame)
        elif frame.kind is not Kind.PONG:
            route = self._routes.get(frame.stream)
            if frame.kind is Kind.CREDIT:
                count = parse_credit(frame.payload)
                if route is not None:
                    self._outstanding += count
                if self._outstanding > CLIENT_BUDGET:
                    raise ProtocolError(f"a client grants {CLIENT_BUDGET} bytes at most")
            if route is not None:
                route.send(frame)
                if frame.kind is Kind.DATA:
                    self._touched.add(route.agent)

    def _open(self, frame: Frame) -> None:
        stream = frame.stream
        if not 0 < stream < FROM_AGENT or stream in self._routes:
            raise ProtocolError("the number of this stream is not free")
        words = parse_words(frame.payload)
        rank = dict(words).get("vm", "")
        try:
            if not rank.isdecimal() or len(rank) > 9:
                raise GuestError("a request to an agent says which VM is meant")
            if len(self._routes) >= MAX_STREAMS:
                raise GuestError(f"a client has {MAX_STREAMS} streams at most")
            agent = self._find(int(rank))
            route = Route(self, agent, stream)
            route.number = agent.open([pair for pair in words if pair[0] != "vm"], route)
            self._routes[stream] = route
        except PvcError as err:
            self._writer.write(pack(Kind.CLOSE, stream, pack_words(Failure.of(err).words(SUPERVISOR))))


class Route:
    """One stream: ``stream`` is the client's number, ``number`` the agent's."""

    def __init__(self, relay: Relay, agent: Agent, stream: int) -> None:
        self.number = 0
        self._relay = relay
        self.agent = agent
        self.stream = stream
        self._granted = 0
        self._children: dict[int, Route] = {}

    def send(self, frame: Frame) -> None:
        """What the client says on it."""
        if frame.kind is Kind.CREDIT:
            self._granted += parse_credit(frame.payload)
        if frame.kind is Kind.CLOSE:
            self._relay.forget(self.stream, self._granted)
        self.agent.send(self.number, frame.kind, frame.payload)

    def leave(self) -> None:
        """The client is gone."""
        self.agent.send(self.number, Kind.CLOSE)

    def take(self, stream: int, frame: Frame) -> None:
        """What the agent says on it."""
        child = self._children.get(stream)
        if child is not None:
            if frame.kind is Kind.CLOSE:
                del self._children[stream]
            child.take(stream, frame)
            return
        if frame.kind is Kind.DATA:
            self._granted -= len(frame.payload)
        if frame.kind is Kind.CLOSE:
            self._relay.forget(self.stream, self._granted)
            frame = replace(frame, payload=pack_words(drop_claims(parse_words(frame.payload))))
        self._relay.write(frame, self.stream)

    def accept(self, stream: int, words: list[tuple[str, str]]) -> None:
        """The guest has a connection for the client, which listens on this stream."""
        told = [pair for pair in words if pair[0] != "parent"] + [("parent", str(self.stream))]
        try:
            payload = pack_words(told)
        except ValueError:  # the number that we put in may be longer than the guest's
            raise ProtocolError("a stream with too many words") from None
        child = self._relay.add(self.agent, stream)
        self._children[stream] = child
        self._relay.write(Frame(Kind.OPEN, stream, payload), child.stream)

    async def ready(self) -> None:
        """Return once more may come for this client."""
        await self._relay.ready()
