# SPDX-License-Identifier: Apache-2.0
"""File systems of a guest that stand still for the moment at which its disk is saved."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from pvc.channel.frames import Frame, Kind, pack_credit, parse_words
from pvc.errors import GuestError
from pvc.supervisor.agent import Agent
from pvc.texts import clean_text

LOG = logging.getLogger(__name__)

# The guest thaws by itself after that, whatever became of us.
_GUEST_S = 20
# How long a guest may take to write out what it has in memory.
_FREEZE_S = 15.0
_THAW_S = 15.0
_WINDOW = 4096


class Freeze:
    """``done``: the file systems were frozen until the block of ``frozen`` was left."""

    def __init__(self, name: str, agent: Agent) -> None:
        self.done = False
        self.why = ""
        self._name = name
        self._agent = agent
        self._stream = 0
        self._said = bytearray()
        self._result: dict[str, str] | None = None
        self._changed = asyncio.Event()

    def take(self, stream: int, frame: Frame) -> None:
        """As ``Sink``."""
        del stream
        if frame.kind is Kind.DATA:
            self._said += frame.payload
        elif frame.kind is Kind.CLOSE:
            self._result = dict(parse_words(frame.payload))
        self._changed.set()

    def accept(self, stream: int, words: list[tuple[str, str]]) -> None:
        """As ``Sink``: nobody connects."""
        del words
        self._agent.send(stream, Kind.CLOSE)

    async def ready(self) -> None:
        """As ``Sink``."""

    async def begin(self) -> None:
        """Freeze, if that can be had soon."""
        try:
            self._stream = self._agent.open([("op", "freeze"), ("timeout", str(_GUEST_S))], self)
        except GuestError as err:
            self.why = str(err)
            return
        self._agent.send(self._stream, Kind.CREDIT, pack_credit(_WINDOW))
        with suppress(TimeoutError):
            async with asyncio.timeout(_FREEZE_S):
                while self._result is None and not self._is_frozen():
                    self._changed.clear()
                    await self._changed.wait()
        self.done = self._result is None and self._is_frozen()
        if not self.done:
            said = self._said.decode(errors="replace").strip() or (self._result or {}).get("error", "")
            self.why = clean_text(said.removeprefix("pvc-agent: ")) or "the guest took too long"

    async def end(self) -> None:
        """Let them go on; if they did already, nothing was frozen at the moment that counts."""
        if not self._stream:
            return
        self._agent.send(self._stream, Kind.END)
        with suppress(TimeoutError):
            async with asyncio.timeout(_THAW_S):
                while self._result is None:
                    self._changed.clear()
                    await self._changed.wait()
        if self._result is None:
            self._agent.send(self._stream, Kind.CLOSE)
        elif self._result.get("exit") != "0" and self.done:
            self.done, self.why = False, "the guest thawed them too early"

    def _is_frozen(self) -> bool:
        # "frozen 0": a guest without any, so none has changed either.
        return b"frozen " in self._said and self._said.endswith(b"\n")


@asynccontextmanager
async def frozen(name: str, agent: Agent | None) -> AsyncIterator[Freeze | None]:
    """Freeze the guest's file systems for the block, if its agent answers; look at ``done`` behind it."""
    if agent is None or not agent.connected:
        yield None
        return
    freeze = Freeze(name, agent)
    try:
        await freeze.begin()
        yield freeze
    finally:
        await asyncio.shield(freeze.end())
        if not freeze.done:
            LOG.warning("%s: its file systems were not frozen: %s", name, freeze.why)
