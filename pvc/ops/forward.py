# SPDX-License-Identifier: Apache-2.0
"""Ports of this machine's loopback that lead into VMs, and ports of VMs that lead back, for as long as wished.

Connections are streams to the VMs' agents. What breaks is made again: a lost connection to a supervisor, a VM that
boots again. The cluster's end ends all of it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pvc.channel.frames import MAX_PAYLOAD
from pvc.errors import EndedError, GuestError, HostError, PvcError, UsageError
from pvc.model.forward import Forward
from pvc.ops.agents import raise_closed
from pvc.ops.control import Control
from pvc.ops.jobdir import JobDir
from pvc.ops.peers import find_peer_uid
from pvc.ops.status import find_endpoint
from pvc.ops.streams import Channel, Stream

LOOPBACK = "127.0.0.1"
# So many connections of a node at their full window are within the supervisor's budget for one client.
_WINDOW = 1 << 16
_CHUNK = 1 << 16
_WAIT_S = 60.0  # that a connection waits for its VM
_GIVE_UP_S = 600.0  # without any answer
_PAUSES_S = (0.2, 0.5, 1.0, 2.0)
_IDLE_S = 120.0  # of a UDP peer
_LOOK_S = 2.0
_TELL_S = 10.0
# So many times in a row nobody listens at a supervisor's port: it has ended, and none comes again.
_REFUSALS = 4
_MAX_UDP_PEERS = 256

Tell = Callable[[str], None]


class Forwarder:
    """Serves forwards of one cluster; ``tell`` says what a user should know."""

    def __init__(self, control: Control, wishes: Sequence[Forward], tell: Tell) -> None:
        self._control = control
        self._wishes = wishes
        self._tell = tell
        self._channels: dict[str, asyncio.Task[Channel]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._silent: set[int] = set()  # VMs that it was told of
        self._failed: asyncio.Future[None] | None = None
        self._refused = 0  # connections that nobody was told of
        self._tell_again = 0.0

    async def run(self, on_ready: Callable[[Sequence[Forward]], None]) -> None:
        """Listen, call ``on_ready`` with the ports as they are, and serve until the cluster ends.

        :raise UsageError: a port of this machine is taken.
        :raise GuestError: a VM has no agent, or did not answer for ten minutes.
        :raise JobError: the cluster has ended.
        """
        self._failed = asyncio.get_running_loop().create_future()
        servers: list[asyncio.AbstractServer | asyncio.DatagramTransport] = []
        ready: list[Forward] = []
        watching: asyncio.Future[None] | None = None
        try:
            for wish in self._wishes:
                ready.append(await self._begin(wish, servers))
            on_ready(ready)
            watching = asyncio.ensure_future(self._watch())
            await asyncio.wait({watching, self._failed}, return_when=asyncio.FIRST_COMPLETED)
            (watching if watching.done() else self._failed).result()
        finally:
            if watching is not None:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            for server in servers:
                server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for waiting in self._channels.values():
                waiting.cancel()
                with suppress(Exception, asyncio.CancelledError):
                    await (await waiting).close()

    async def _begin(self, wish: Forward, servers: list[Any]) -> Forward:
        if wish.reverse:
            first = await self._listen_far(wish)
            far = (await first.note()).get("port", wish.far)
            self._spawn(self._serve_reverse(wish, first))
            return replace(wish, far=far)
        known = [wish]  # with the port that it gets
        try:
            if wish.udp:
                transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                    lambda: _Datagrams(self, known), local_addr=(LOOPBACK, wish.local)
                )
                servers.append(transport)
                port = transport.get_extra_info("sockname")[1]
            else:
                server = await asyncio.start_server(
                    lambda reader, writer: self._accept(known[0], reader, writer), LOOPBACK, wish.local
                )
                servers.append(server)
                port = server.sockets[0].getsockname()[1]
        except OSError as err:
            raise UsageError(
                f"cannot listen at {LOOPBACK}:{wish.local}",
                hint=f"choose another port: 0:{wish.vm}:{wish.there} takes any",
            ) from err
        known[0] = replace(wish, local=port)
        await self._check(wish)
        return known[0]

    async def _check(self, wish: Forward) -> None:
        """:raise PvcError: nobody answers in the VM now."""
        channel = await self._channel(wish.rank)
        stream = channel.open(wish.rank, [("op", "metrics")], _WINDOW)
        raise_closed(await stream.closed)

    # TCP

    async def _accept(self, wish: Forward, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if not self._is_own(writer.get_extra_info("peername"), writer.get_extra_info("sockname"), "tcp", wish):
                return
            stream = await self._connect(wish)
            try:
                await splice(reader, writer, stream)
            finally:
                stream.close()
        except PvcError as err:
            self._tell(f"{wish}: {err}")
            _reset(writer)
        except OSError:
            return
        finally:
            self._tasks.discard(task)
            writer.close()

    def _is_own(self, peer: tuple[str, int], here: tuple[str, int], kind: str, wish: Forward) -> bool:
        uid = find_peer_uid(kind, peer, here)
        if uid in (os.getuid(), 0):
            return True
        self._refused += 1
        # What is told may go to a file in the owner's home, and who is refused can come again at any rate.
        if time.monotonic() >= self._tell_again:
            more = f", the last of {self._refused}" if self._refused > 1 else ""
            who = "an unknown user" if uid is None else f"uid {uid}"
            self._tell(f"{wish}: refused a connection of {who}{more}")
            self._refused, self._tell_again = 0, time.monotonic() + _TELL_S
        return False

    async def _connect(self, wish: Forward) -> Stream:
        """A stream to the VM's port. Waits for a VM that boots or is out of reach.

        :raise GuestError: nothing listens there, or the VM does not answer for a minute.
        """
        kind = "unix" if wish.far.startswith("/") else "udp" if wish.udp else "tcp"
        where = [("path", wish.far)] if kind == "unix" else [("host", wish.host or LOOPBACK), ("port", wish.far)]
        return await self._insist(wish, _WAIT_S, lambda: self._open(wish, [("op", "connect"), ("net", kind), *where]))

    async def _open(self, wish: Forward, words: list[tuple[str, str]]) -> Stream:
        channel = await self._channel(wish.rank)
        stream = channel.open(wish.rank, words, _WINDOW)
        try:
            await stream.note()
        except BaseException:
            stream.close()
            raise
        return stream

    async def _insist(self, wish: Forward, patience_s: float, attempt: Callable[[], Awaitable[Stream]]) -> Stream:
        """Try until it succeeds, the VM's side says no, or the time is over."""
        deadline = time.monotonic() + patience_s
        tries = 0
        while True:
            try:
                stream = await attempt()
            except PvcError as err:
                if is_final(err):  # an answer, too
                    self._silent.discard(wish.rank)
                    raise
                if time.monotonic() > deadline:
                    raise
                if wish.rank not in self._silent:
                    self._silent.add(wish.rank)
                    self._tell(f"{wish.vm} does not answer, trying again: {err}")
            else:
                if wish.rank in self._silent:
                    self._silent.discard(wish.rank)
                    self._tell(f"{wish.vm} answers again")
                return stream
            await asyncio.sleep(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)])
            tries += 1

    # The other way

    async def _listen_far(self, wish: Forward) -> Stream:
        net = "unix" if wish.far.startswith("/") else "tcp"
        where = [("path", wish.far)] if net == "unix" else [("port", wish.far)]
        channel = await self._channel(wish.rank)
        return channel.open(wish.rank, [("op", "listen"), ("net", net), *where], _WINDOW)

    async def _serve_reverse(self, wish: Forward, stream: Stream) -> None:
        async def listen() -> Stream:
            again = await self._listen_far(wish)
            await again.note()
            return again

        try:
            while True:
                await self._take_accepted(wish, stream)
                stream = await self._insist(wish, _GIVE_UP_S, listen)
        except PvcError as err:
            if self._failed is not None and not self._failed.done():
                self._failed.set_exception(GuestError(f"{wish} has ended: {err}"))

    async def _take_accepted(self, wish: Forward, listening: Stream) -> None:
        """Serve connections of the guest until it no longer listens."""
        while True:
            getting = asyncio.ensure_future(listening.accepted.get())
            waiting: set[asyncio.Future[Any]] = {getting, listening.closed}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                getting.cancel()
                return
            self._spawn(self._serve_accepted(wish, getting.result()))

    async def _serve_accepted(self, wish: Forward, stream: Stream) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_connection(LOOPBACK, wish.local)
            await splice(reader, writer, stream)
        except OSError as err:
            self._tell(f"{wish}: {err.strerror or err}")
        except PvcError:
            pass
        finally:
            stream.close()
            if writer is not None:
                writer.close()

    # What carries them

    async def _channel(self, rank: int) -> Channel:
        """The connection to the VM's node, made again if it was lost.

        :raise HostError: the supervisor does not answer.
        """
        endpoint = find_endpoint(self._control.record, rank)
        task = self._channels.get(endpoint.node)
        if task is not None and task.done() and (task.cancelled() or task.exception() or task.result().ended.done()):
            task = None
        if task is None:
            task = self._channels[endpoint.node] = asyncio.ensure_future(Channel.connect(self._control, endpoint))
        return await asyncio.shield(task)

    async def _watch(self) -> None:
        """Returns never; looks for the cluster's end, at once when a connection ends.

        :raise EndedError: it has ended.
        :raise HostError: so have the supervisors of all VMs that are forwarded to, or none answers.
        """
        record = JobDir.of(self._control.record.job_id).record_path
        last = time.monotonic()
        ranks = {find_endpoint(self._control.record, wish.rank).node: wish.rank for wish in self._wishes}
        refused: dict[str, int] = {}
        while True:
            if not record.exists():
                raise EndedError(f"cluster {self._control.record.job_id} has ended")
            waiting: set[asyncio.Future[None]] = set()
            for node, rank in ranks.items():
                try:
                    waiting.add((await self._channel(rank)).ended)
                    last = time.monotonic()
                    refused.pop(node, None)
                except HostError as err:
                    refused[node] = refused.get(node, 0) + 1 if isinstance(err.__cause__, ConnectionRefusedError) else 0
            if refused and not waiting and min(refused.values()) >= _REFUSALS:
                raise HostError(
                    f"the supervisor on {', '.join(sorted(refused))} has ended, and its VMs with it",
                    hint="pvc logs --source launcher tells what it said last",
                )
            if time.monotonic() - last > _GIVE_UP_S:
                raise HostError(f"no supervisor of cluster {self._control.record.job_id} has answered for ten minutes")
            if waiting:
                await asyncio.wait(waiting, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            if any(each.done() for each in waiting) or not waiting:
                await asyncio.sleep(_PAUSES_S[1])

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def begin_udp(self, wish: Forward, peer: tuple[str, int], here: tuple[str, int]) -> bool:
        """Whether a new peer of a UDP port may use it."""
        return self._is_own(peer, here, "udp", wish)

    async def connect_udp(self, wish: Forward) -> Stream:
        """As ``_connect``."""
        return await self._connect(wish)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it until the end of all."""
        self._spawn(work)

    def say(self, text: str) -> None:
        """Tell the user."""
        self._tell(text)


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection as one that failed (RST): a mere end looks like a server that has nothing to say."""
    connection = writer.get_extra_info("socket")
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class _Datagrams(asyncio.DatagramProtocol):
    """A UDP port: each peer has a stream of its own, until it is silent for two minutes."""

    def __init__(self, forwarder: Forwarder, known: Sequence[Forward]) -> None:
        self._forwarder = forwarder
        self._known = known
        self._transport: asyncio.DatagramTransport | None = None
        self._peers: dict[tuple[str, int], asyncio.Queue[bytes]] = {}

    @property
    def _wish(self) -> Forward:
        return self._known[0]

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        queue = self._peers.get(addr)
        if queue is None:
            assert self._transport is not None
            here = self._transport.get_extra_info("sockname")
            if len(self._peers) >= _MAX_UDP_PEERS or not self._forwarder.begin_udp(self._wish, addr, here):
                return
            queue = self._peers[addr] = asyncio.Queue(64)
            self._forwarder.spawn(self._serve(addr, queue))
        with suppress(asyncio.QueueFull):  # it is lost, as on a network
            queue.put_nowait(data[:MAX_PAYLOAD])

    async def _serve(self, peer: tuple[str, int], queue: asyncio.Queue[bytes]) -> None:
        stream: Stream | None = None
        back: asyncio.Future[None] | None = None
        try:
            stream = await self._forwarder.connect_udp(self._wish)
            back = asyncio.ensure_future(self._carry_back(peer, stream))
            while not back.done():
                async with asyncio.timeout(_IDLE_S):
                    await stream.write_datagram(await queue.get())
        except TimeoutError:
            return
        except PvcError as err:
            self._forwarder.say(f"{self._wish}: {err}")
        finally:
            self._peers.pop(peer, None)
            if back is not None:
                back.cancel()
            if stream is not None:
                stream.close()

    async def _carry_back(self, peer: tuple[str, int], stream: Stream) -> None:
        while (piece := await stream.read()) is not None:
            if self._transport is not None:
                self._transport.sendto(piece, peer)


def is_final(err: PvcError) -> bool:
    """Whether trying again is of no use: the guest has said no, the VM does not exist, or the cluster has ended."""
    return isinstance(err, EndedError) or (
        isinstance(err, GuestError)
        and any(
            sign in str(err)
            for sign in ("refused", "No such file", "Permission denied", "Address already in use", "not known")
        )
    )


async def splice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stream: Stream) -> None:
    """Copy both ways; the end of one direction is passed on, and the other one goes on."""

    async def up() -> None:
        with suppress(GuestError):  # the other side has closed it while more was to be sent: what it said still comes
            while data := await reader.read(_CHUNK):
                await stream.write(data)
            stream.end()

    async def down() -> None:
        while (piece := await stream.read()) is not None:
            writer.write(piece)
            await writer.drain()
        with suppress(OSError):
            writer.write_eof()

    downward = asyncio.ensure_future(down())
    both = asyncio.gather(up(), downward)
    waiting: set[asyncio.Future[Any]] = {both, stream.closed}
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if both.done():
            both.result()
        else:  # what has come is still written
            await downward
    finally:
        both.cancel()
        await asyncio.gather(both, return_exceptions=True)
