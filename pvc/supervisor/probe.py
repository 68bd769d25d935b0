# SPDX-License-Identifier: Apache-2.0
"""Waits until a VM's sshd answers: the banner proves network, boot and service at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from enum import Enum

BANNER = b"SSH-"
_FIRST_PAUSE_S = 0.1
_LAST_PAUSE_S = 2.0
_CONNECT_S = 2.0
# Under emulation and load, sshd takes seconds from accept to its banner; but a forwarder (QEMU's user network)
# accepts before there is a guest and then says nothing: patience grows from try to try.
_FIRST_BANNER_S = 2.0
_LAST_BANNER_S = 15.0


class Answer(Enum):
    """What became of one try."""

    SILENCE = "silence"  # nothing came back, or nothing that sshd says
    REFUSED = "refused"  # the guest's own network is up, and nothing listens
    BANNER = "banner"


async def wait_banner(host: str, port: int, on_answer: Callable[[Answer], None]) -> None:
    """Return once ``host:port`` says "SSH-"; tries for ever, at most every two seconds in the long run.

    ``on_answer`` is told of every try but the last.
    """
    pause_s, banner_s = _FIRST_PAUSE_S, _FIRST_BANNER_S
    while (answer := await _try_banner(host, port, banner_s)) is not Answer.BANNER:
        on_answer(answer)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.3, _LAST_PAUSE_S)
        banner_s = min(banner_s * 1.3, _LAST_BANNER_S)


async def _try_banner(host: str, port: int, banner_s: float) -> Answer:
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(_CONNECT_S):
            reader, writer = await asyncio.open_connection(host, port)
        async with asyncio.timeout(banner_s):
            # RFC 4253, 4.2: other lines may come before the version.
            for _ in range(20):
                line = await reader.readline()
                if line.startswith(BANNER):
                    return Answer.BANNER
                if not line:
                    break
    except ConnectionRefusedError:
        return Answer.REFUSED
    except (OSError, TimeoutError, ValueError):
        return Answer.SILENCE
    finally:
        if writer is not None:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
    return Answer.SILENCE
