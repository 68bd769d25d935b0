# SPDX-License-Identifier: Apache-2.0
"""The supervisor's calls to pvc-node: what this node's VMs were given, the descriptors of their taps, and how
their networks are.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pvc import codec
from pvc.errors import HostError
from pvc.model.failure import Failure
from pvc.model.node import NodeGrant

SOCKET = Path("/run/pvc/node.sock")
SOCKET_VARIABLE = "PVC_NODE_SOCKET"
# pvc-node may just be restarting.
RETRY_S = 10.0
ANSWER_S = 30.0
_PAUSE_S = 0.05
_TURN_S = 2.0
_MAX_LINE = 16 << 20
_MAX_FDS = 253  # SCM_MAX_FD, include/net/scm.h
_NONSENSE, _ONE_VERSION = "pvc-node's answer is not understood", "do both ends run one version of pvc?"
Result = TypeVar("Result")


@dataclass(frozen=True)
class Attached:
    """A node's grant and its tap descriptors, which the receiver owns, by ``Nic.tap_index``."""

    grant: NodeGrant
    taps: tuple[int, ...]


def find_socket(environ: Mapping[str, str]) -> Path:
    """Where pvc-node listens."""
    return Path(environ.get(SOCKET_VARIABLE, SOCKET))


async def attach(path: Path, job_id: int, *, retry_s: float = RETRY_S) -> Attached:
    """Ask pvc-node for this node's share of the job.

    :raise HostError: nobody listens at ``path`` for ``retry_s`` seconds, or the answer is not one.
    :raise PvcError: pvc-node refused; message, hint and exit code are its own.
    """
    return await _call(path, lambda exchange: exchange.attach(job_id), retry_s)


async def attach_vm(path: Path, job_id: int, rank: int, *, retry_s: float = RETRY_S) -> tuple[int, ...]:
    """The descriptors of one VM's taps, in the order of its nics, for a QEMU that is started again.

    :raise HostError: nobody listens at ``path``, the answer is not one, or another process has a tap.
    :raise PvcError: pvc-node refused; message, hint and exit code are its own.
    """
    return (await _call(path, lambda exchange: exchange.attach(job_id, rank), retry_s)).taps


async def ask(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Send pvc-node a request that is answered by one line.

    :raise HostError: nobody listens at ``path``, or the answer is not one.
    :raise PvcError: pvc-node refused; message, hint and exit code are its own.
    """
    return await _call(path, lambda exchange: exchange.ask(request), 0.0)


async def _call(path: Path, talk: Callable[[_Exchange], Awaitable[Result]], retry_s: float) -> Result:
    """One exchange, begun again while ``retry_s`` lasts when pvc-node ends in the middle of it: it is restarted, and
    what it gave is the same every time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + retry_s
    while True:
        connection = await _connect(path, max(0.0, deadline - loop.time()))
        try:
            async with asyncio.timeout(ANSWER_S):
                return await talk(_Exchange(connection))
        except TimeoutError:
            raise HostError(f"pvc-node did not answer within {ANSWER_S:g} s") from None
        except (OSError, _CutShortError) as err:
            if loop.time() >= deadline:
                raise HostError(f"the connection to pvc-node at {path} broke: {err}") from err
        finally:
            connection.close()
        await asyncio.sleep(_PAUSE_S)


async def _connect(path: Path, retry_s: float) -> socket.socket:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + retry_s
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # In a thread that blocks: the kernel lets waiting callers in by turns where others fill the backlog, and
            # who does not wait would need luck.
            left = struct.pack("ll", *divmod(int(1e6 * max(_TURN_S, deadline - loop.time())), 1_000_000))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, left)
            await asyncio.to_thread(connection.connect, os.fspath(path))
            connection.setblocking(False)
            return connection
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError) as err:
            connection.close()
            if loop.time() >= deadline:
                raise HostError(
                    f"pvc-node does not answer at {path}", hint="on this node: systemctl status pvc-node"
                ) from err
            await asyncio.sleep(_PAUSE_S)
        except BaseException:
            connection.close()
            raise


class _CutShortError(Exception):
    """pvc-node ended while it answered."""


class _Exchange:
    """One request, one line of answer, then descriptors."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._data = b""
        self._fds: list[int] = []

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """A request and its answer."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._connection, json.dumps(request).encode() + b"\n")
        while b"\n" not in self._data:
            await self._receive()
        line, _, self._data = self._data.partition(b"\n")
        return parse_answer(line)

    async def attach(self, job_id: int, rank: int | None = None) -> Attached:
        """The grant, and as many descriptors as it says; of one VM, or of all."""
        request = {"op": "attach", "job": job_id} | ({} if rank is None else {"vm": rank})
        try:
            grant, count = _parse_grant(await self.ask(request))
            while len(self._fds) < count:
                await self._receive()
            if len(self._fds) != count:
                raise HostError(f"pvc-node sent {len(self._fds)} descriptors instead of {count}")
        except BaseException:
            for fd in self._fds:
                os.close(fd)
            raise
        return Attached(grant, tuple(self._fds))

    async def _receive(self) -> None:
        """Read what there is; descriptors come with whichever bytes the kernel delivers them."""
        await _wait_readable(self._connection)
        with suppress(BlockingIOError):
            data, fds, flags, _ = socket.recv_fds(self._connection, 65536, _MAX_FDS)
            self._fds += fds
            for fd in fds:
                os.set_inheritable(fd, False)
            if flags & socket.MSG_CTRUNC:
                raise HostError("descriptors of taps were lost", hint="raise the limit of open files (ulimit -n)")
            if not data:
                raise _CutShortError("closed before the answer was complete")
            self._data += data
            if len(self._data) > _MAX_LINE:
                raise HostError("pvc-node's answer does not end")


async def _wait_readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connection, wake)
    try:
        await ready
    finally:
        loop.remove_reader(connection)


def parse_answer(line: bytes) -> dict[str, Any]:
    """:raise HostError: it is no answer.
    :raise PvcError: it is a refusal; message, hint and exit code are pvc-node's own.
    """
    try:
        answer: dict[str, Any] = codec.read_json(line)
        if answer["ok"]:
            return answer
        failure = Failure.of_data(answer)
    except (ValueError, KeyError, TypeError) as err:
        raise HostError(_NONSENSE, hint=_ONE_VERSION) from err
    raise failure.rebuild()


def _parse_grant(answer: dict[str, Any]) -> tuple[NodeGrant, int]:
    try:
        return codec.from_data(NodeGrant, answer["grant"]), int(answer["fds"])
    except (ValueError, KeyError, TypeError) as err:
        raise HostError(_NONSENSE, hint=_ONE_VERSION) from err
