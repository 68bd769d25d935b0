"""The way of ssh to a VM: by the agent in its guest, else by a port of its node, through its supervisor."""

from __future__ import annotations

import asyncio
import os
import select
import ssl
import sys

from pvc.errors import GuestError, HostError
from pvc.ops.control import Control, close_quietly, send_request
from pvc.ops.status import find_endpoint
from pvc.ops.streams import Channel, Stream

_CONNECT_S = 20.0
_CHUNK = 1 << 16


def carry(control: Control, rank: int) -> None:
    """Copy between standard input and output and a VM's ssh, until either side ends.

    :raise HostError: the VM's supervisor does not answer, or stopped to.
    :raise GuestError: neither an agent nor a port leads there.
    """
    no_agent = asyncio.run(_carry_by_agent(control, rank))
    if no_agent is None:
        return
    try:
        _carry_by_port(control, rank)
    except GuestError as err:
        raise GuestError(f"no way leads to the ssh of vm{rank}: {err}; {no_agent}", hint=err.find_hint()) from None


async def _carry_by_agent(control: Control, rank: int) -> GuestError | None:
    """Why it could not be done, None: it was."""
    channel = await Channel.connect(control, find_endpoint(control.record, rank))
    try:
        words = [("op", "connect"), ("net", "tcp"), ("host", "127.0.0.1"), ("port", "22")]
        stream = await channel.open(rank, words)
        try:
            async with asyncio.timeout(_CONNECT_S):
                await stream.note()
        except GuestError as err:
            return err
        except TimeoutError:
            return GuestError(f"the agent of vm{rank} does not answer")
        reader = asyncio.StreamReader()
        pipe = asyncio.StreamReaderProtocol(reader)
        await asyncio.get_running_loop().connect_read_pipe(lambda: pipe, sys.stdin)
        upward = asyncio.ensure_future(_carry_up(reader, stream))
        try:
            while (piece := await stream.read()) is not None:
                _write(piece[1])
        finally:
            upward.cancel()
            await asyncio.gather(upward, return_exceptions=True)
    finally:
        await channel.close()
    return None


async def _carry_up(reader: asyncio.StreamReader, stream: Stream) -> None:
    while data := await reader.read(_CHUNK):
        await stream.write(data)
    await stream.close()  # ssh has left, so nobody wants more


def _carry_by_port(control: Control, rank: int) -> None:
    endpoint = find_endpoint(control.record, rank)
    connection = control.connect(endpoint, _CONNECT_S)
    try:
        _, first = send_request(connection, {"op": "ssh", "vm": rank}, endpoint.node)
        _write(first)
        # TLS reads whole records: what is decrypted already is not seen by select(2).
        connection.settimeout(None)
        _copy(connection)
    except (OSError, ssl.SSLError) as err:
        raise HostError(f"the supervisor on {endpoint.node} stopped answering") from err
    finally:
        close_quietly(connection)


def _copy(connection: ssl.SSLSocket) -> None:
    stdin, peer = sys.stdin.fileno(), connection.fileno()
    while True:
        ready = [peer] if connection.pending() else select.select([stdin, peer], [], [])[0]
        if peer in ready:
            data = connection.recv(_CHUNK)
            if not data:
                return
            _write(data)
        if stdin in ready:
            typed = os.read(stdin, _CHUNK)
            if not typed:
                return
            connection.sendall(typed)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]
