"""The supervisor's call to pvc-node: what this node's VMs were given, and the descriptors of their taps."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvc import codec
from pvc.errors import GuestError, HostError, JobError, PvcError, StateError, UsageError
from pvc.model.node import NodeGrant

SOCKET = Path("/run/pvc/node.sock")
SOCKET_VARIABLE = "PVC_NODE_SOCKET"
# pvc-node may just be restarting.
RETRY_S = 10.0
ANSWER_S = 30.0
_MAX_LINE = 16 << 20
_MAX_FDS = 253  # SCM_MAX_FD, include/net/scm.h


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
    connection = await _connect(path, retry_s)
    try:
        async with asyncio.timeout(ANSWER_S):
            return await _Exchange(connection).run(job_id)
    except TimeoutError:
        raise HostError(f"pvc-node did not answer within {ANSWER_S:g} s") from None
    except OSError as err:
        raise HostError(f"the connection to pvc-node at {path} broke") from err
    finally:
        connection.close()


async def _connect(path: Path, retry_s: float) -> socket.socket:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + retry_s
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            await loop.sock_connect(connection, os.fspath(path))
            return connection
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError) as err:
            connection.close()
            if loop.time() >= deadline:
                raise HostError(
                    f"pvc-node does not answer at {path}", hint="on this node: systemctl status pvc-node"
                ) from err
            await asyncio.sleep(0.05)
        except BaseException:
            connection.close()
            raise


class _Exchange:
    """One request, one line of answer, then descriptors."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._data = b""
        self._fds: list[int] = []

    async def run(self, job_id: int) -> Attached:
        loop = asyncio.get_running_loop()
        request = json.dumps({"op": "attach", "job": job_id}) + "\n"
        await loop.sock_sendall(self._connection, request.encode())
        try:
            while b"\n" not in self._data:
                await self._receive()
            line, _, self._data = self._data.partition(b"\n")
            grant, count = _parse_answer(line)
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
                raise HostError("pvc-node closed the connection before its answer was complete")
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


def _parse_answer(line: bytes) -> tuple[NodeGrant, int]:
    try:
        answer: dict[str, Any] = json.loads(line)
        if answer["ok"]:
            return codec.from_data(NodeGrant, answer["grant"]), int(answer["fds"])
        error = _refusal(answer)
    except (ValueError, KeyError, TypeError) as err:
        raise HostError("pvc-node's answer is not understood", hint="do both ends run one version of pvc?") from err
    raise error


def _refusal(answer: dict[str, Any]) -> PvcError:
    """The error that pvc-node describes, in the class its exit code names."""
    code = int(answer.get("exit_code", HostError.exit_code))
    classes: dict[int, type[PvcError]] = {
        kind.exit_code: kind for kind in (UsageError, JobError, StateError, HostError, GuestError)
    }
    error = classes.get(code, PvcError)(str(answer["error"]), hint=answer.get("hint"))
    error.exit_code = code
    return error
