# SPDX-License-Identifier: Apache-2.0
"""The control port: the cluster's owner asks a node's supervisor, over mutual TLS.

Both ends hold the cluster's one self-signed pair; whoever else connects is turned away at the door, or at the latest by
the handshake. Each connection carries one request.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from pvc import codec
from pvc.channel.doorword import find_door_word
from pvc.channel.frames import PROTOCOL, ProtocolError
from pvc.errors import GuestError, PvcError, UsageError
from pvc.model.cluster import ClusterKeys
from pvc.model.failure import Failure
from pvc.model.vm import VmStatus
from pvc.supervisor import relay
from pvc.supervisor.agentrelay import Relay
from pvc.supervisor.console import Console
from pvc.supervisor.door import Door
from pvc.supervisor.journal import Journal
from pvc.supervisor.logs import send_log
from pvc.supervisor.monitor import dump_memory, find_display, run_command, take_screenshot
from pvc.supervisor.orders import carry_out, parse_grace
from pvc.supervisor.save import list_disks, save_disk
from pvc.supervisor.vm import Vm

LOG = logging.getLogger(__name__)

MAX_REQUEST = 64 << 10
# Those of callers with the door's word; a handshake takes some 100 KiB.
MAX_CONNECTIONS, MAX_HANDSHAKES = 128, 32
HANDSHAKE_S = 5.0
REQUEST_S = 10.0
_CHUNK = 1 << 16
_FOR_NODE = ("op", "nonce", "window_s")
# X509_V_FLAG_NO_CHECK_TIME of OpenSSL: a node whose clock is behind must not refuse a pair made just now.
_NO_CHECK_TIME = 0x200000


def server_context(keys: ClusterKeys) -> ssl.SSLContext:
    """TLS that speaks only to holders of the cluster's pair.

    :raise UsageError: the pair is not one.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= _NO_CHECK_TIME
    # The ssl module reads a pair from a file only; this one never touches a disk.
    fd = os.memfd_create("pvc-tls", os.MFD_CLOEXEC)
    try:
        os.write(fd, (keys.tls_key.strip() + "\n" + keys.tls_cert.strip() + "\n").encode())
        context.load_cert_chain(f"/proc/self/fd/{fd}")
        context.load_verify_locations(cadata=keys.tls_cert)
    except (ssl.SSLError, ValueError, OSError) as err:
        raise UsageError("the cluster's TLS pair cannot be used") from err
    finally:
        os.close(fd)
    return context


class Control:
    """Serves the requests of the contract; ``on_stop(grace_s)`` returns when all VMs are down.

    ``ask_node`` puts a request about this job to the node's pvc-node, which alone sees the networks.
    """

    def __init__(
        self,
        vms: Callable[[], Sequence[Vm]],
        on_stop: Callable[[float], Awaitable[None]],
        ask_node: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]],
        journal: Journal,
    ) -> None:
        self._vms = vms
        self._on_stop = on_stop
        self._ask_node = ask_node
        self._journal = journal
        self._door: Door | None = None
        self._tls: ssl.SSLContext | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._handshakes = 0

    async def start(self, host: str, keys: ClusterKeys) -> int:
        """Listen at ``host`` and return the port.

        :raise OSError: the address is not this node's.
        """
        self._tls = server_context(keys)
        self._door = Door(find_door_word(keys.tls_key), self._admit)
        return self._door.open(host)

    async def close(self) -> None:
        """Listen no more and let go of the connections that are left."""
        if self._door is not None:
            self._door.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _admit(self, connection: socket.socket) -> None:
        if len(self._connections) >= MAX_CONNECTIONS or self._handshakes >= MAX_HANDSHAKES:
            connection.close()
            return
        self._handshakes += 1
        task = asyncio.ensure_future(self._serve(connection))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, connection: socket.socket) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            try:
                reader, writer = await self._shake_hands(connection)
            finally:
                self._handshakes -= 1
            await self._answer(reader, writer)
        except (OSError, EOFError, TimeoutError, ProtocolError) as err:
            LOG.debug("control: a connection ended: %s", err)
        except asyncio.CancelledError:
            # The supervisor leaves.
            LOG.debug("control: a connection was cut")
        except Exception:  # one request must not end the supervisor of a node's VMs
            LOG.exception("control: a request failed")
        finally:
            if writer is not None:
                writer.close()
            else:
                connection.close()

    async def _shake_hands(self, connection: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """:raise OSError: the other end does not hold the cluster's pair."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=MAX_REQUEST, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, connection, ssl=self._tls, ssl_handshake_timeout=HANDSHAKE_S
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = _parse_request(await _read_line(reader))
            match request.get("op"):
                case "status":
                    await _send(writer, {"ok": True, "now": time.time(), "vms": codec.to_data(self._statuses())})
                case "stop":
                    await self._stop(request, writer)
                case "order":
                    carried_out = asyncio.ensure_future(carry_out(self._vms(), request))
                    await _send(writer, {"ok": True, "vms": codec.to_data(await asyncio.shield(carried_out))})
                case "monitor":
                    told = await run_command(self._find_vm(request), request)
                    await _send(writer, {"ok": True, "return": told})
                case "display":
                    await _send(writer, {"ok": True, **find_display(self._find_vm(request))})
                case "screenshot":
                    picture = await take_screenshot(self._find_vm(request))
                    await _send(writer, {"ok": True, "size": len(picture)}, picture)
                case "dump":
                    await self._dump(request, reader, writer)
                case "disks":
                    await _send(writer, {"ok": True, "disks": codec.to_data(list_disks(self._find_vm(request)))})
                case "save":
                    await self._save(request, reader, writer)
                case "console":
                    await self._console(self._find_console(request), reader, writer)
                case "console-log":
                    log = self._find_console(request).read_log()
                    await _send(writer, {"ok": True, "size": len(log)}, log)
                case "log":
                    await send_log(self._find_vm(request), self._journal, request, reader, writer)
                case "agent":
                    await self._agents(reader, writer)
                case "ssh":
                    await self._ssh(self._find_vm(request), reader, writer)
                case "network" | "check" | "probe" | "upkeep":
                    asked = {key: request[key] for key in _FOR_NODE if key in request}
                    await _send(writer, await self._ask_node(asked))
                case other:
                    raise UsageError(f"the supervisor knows no request {other!r}")
        except PvcError as err:
            await _send(writer, Failure.of(err).data())

    async def _agents(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Frames from here on, for the agents of all VMs of this node."""
        await _send(writer, {"ok": True, "protocol": PROTOCOL})
        await Relay(reader, writer, lambda rank: self._find_vm({"vm": rank}).find_agent()).run()

    def _statuses(self) -> tuple[VmStatus, ...]:
        return tuple(vm.status() for vm in self._vms())

    async def _stop(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        # Shielded: who asked may leave before the guests have.
        stopping = asyncio.ensure_future(self._on_stop(parse_grace(request)))
        await asyncio.shield(stopping)
        await _send(writer, {"ok": True})

    def _find_vm(self, request: dict[str, Any]) -> Vm:
        rank = request.get("vm")
        for vm in self._vms():
            if type(rank) is int and vm.share.rank == rank:
                return vm
        raise GuestError(f"no VM {rank!r} runs on this node")

    def _find_console(self, request: dict[str, Any]) -> Console:
        vm = self._find_vm(request)
        if vm.console is None:
            raise GuestError(f"{vm.share.name} has not started, so it has no console")
        return vm.console

    async def _dump(self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Lines of progress, then the answer; QEMU cannot be stopped, but nothing stays for a caller who has left."""
        tell = _tell_progress(reader, writer)
        await _send(writer, {"ok": True, "size": await dump_memory(self._find_vm(request), request, tell)})

    async def _save(self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """As ``_dump``; a save ends with its caller."""
        tell = _tell_progress(reader, writer)
        await _send(writer, {"ok": True, "frozen": await save_disk(self._find_vm(request), request, tell)})

    async def _ssh(self, vm: Vm, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry a connection to a VM's ssh, by the port of this node that leads there."""
        share = vm.share
        if share.ssh_host is None or share.ssh_port is None:
            raise GuestError(f"no port leads to the ssh of {share.name}", hint=f"try pvc console {share.name}")
        there = await relay.connect(share.ssh_host, share.ssh_port)
        await _send(writer, {"ok": True})
        await relay.carry((reader, writer), there)

    async def _console(self, console: Console, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _send(writer, {"ok": True})
        typing = asyncio.create_task(_copy_input(reader, console))
        try:
            with console.watch(writer):
                await asyncio.wait({typing, console.ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            typing.cancel()
            await asyncio.gather(typing, return_exceptions=True)
        await writer.drain()


def _tell_progress(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Callable[[int, int], Awaitable[None]]:
    async def tell(done: int, total: int) -> None:
        if reader.at_eof():
            raise ConnectionAbortedError("the caller has left")
        await _send(writer, {"done": done, "total": total})

    return tell


async def _copy_input(reader: asyncio.StreamReader, console: Console) -> None:
    with suppress(OSError):
        while data := await reader.read(_CHUNK):
            await console.send(data)


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(REQUEST_S):
            return await reader.readline()
    except ValueError:
        raise UsageError(f"a request has at most {MAX_REQUEST} bytes") from None


async def _send(writer: asyncio.StreamWriter, answer: dict[str, Any], data: bytes = b"") -> None:
    writer.write(json.dumps(answer).encode() + b"\n" + data)
    await writer.drain()


def _parse_request(line: bytes) -> dict[str, Any]:
    try:
        request = codec.read_json(line)
    except ValueError:
        raise UsageError("a request is one line of JSON") from None
    if not isinstance(request, dict):
        raise UsageError("a request is a JSON object")
    return request
