# SPDX-License-Identifier: Apache-2.0
"""Carries one connection between the control port and a port of this node that only the job's owner reaches."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from pvc.errors import GuestError

_CONNECT_S = 10.0
_CHUNK = 1 << 16


async def connect(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection from here.

    :raise GuestError: nothing answers there.
    """
    try:
        async with asyncio.timeout(_CONNECT_S):
            return await asyncio.open_connection(host, port)
    except (OSError, TimeoutError) as err:
        raise GuestError(f"nothing answers at port {port} of this node") from err


async def carry(
    here: tuple[asyncio.StreamReader, asyncio.StreamWriter], there: tuple[asyncio.StreamReader, asyncio.StreamWriter]
) -> None:
    """Copy both ways until either side ends."""
    both = [asyncio.create_task(_copy(here[0], there[1])), asyncio.create_task(_copy(there[0], here[1]))]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)
        there[1].close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
