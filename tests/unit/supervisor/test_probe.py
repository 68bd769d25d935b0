# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

import pytest

from pvc.supervisor.probe import Answer, wait_banner
from tests.waits import until

pytestmark = pytest.mark.allow_sockets


async def _serve(lines: bytes, port: int = 0) -> tuple[asyncio.Server, int]:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(lines)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", port)
    return server, server.sockets[0].getsockname()[1]


def test_a_port_that_refuses_is_told_from_one_that_is_silent() -> None:
    async def scene() -> list[Answer]:
        told: list[Answer] = []
        server, port = await _serve(b"220 no sshd\r\n")
        probe = asyncio.create_task(wait_banner("127.0.0.1", port, told.append))
        await until(lambda: told)
        server.close()
        await server.wait_closed()
        await until(lambda: Answer.REFUSED in told)
        server, _ = await _serve(b"a notice\r\nSSH-2.0-x\r\n", port)
        await probe
        server.close()
        return told

    told = asyncio.run(asyncio.wait_for(scene(), 30))
    assert told[0] is Answer.SILENCE
    assert told[-1] is Answer.REFUSED
