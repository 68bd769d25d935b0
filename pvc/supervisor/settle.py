# SPDX-License-Identifier: Apache-2.0
"""A guest without cloud-init is told by its agent who it is: at each of its boots, whenever the agent comes."""

from __future__ import annotations

import logging

from pvc.channel.frames import Frame, Kind, pack_credit, parse_words
from pvc.errors import GuestError
from pvc.model.cluster import ClusterSpec
from pvc.plan.cloudinit import plan_settle
from pvc.supervisor.agent import Agent
from pvc.supervisor.prepare import seed_spec
from pvc.supervisor.share import VmShare
from pvc.texts import clean_text

LOG = logging.getLogger(__name__)

_WINDOW = 4096


class Settler:
    """Of one VM. An agent that knows no such request says so, and nothing is done."""

    def __init__(self, share: VmShare, spec: ClusterSpec, agent: Agent) -> None:
        self._name = share.name
        self._words = plan_settle(seed_spec(share, spec))
        self._agent = agent
        self._said = bytearray()
        self._told = False  # once is enough: a guest may say what it likes

    def begin(self) -> None:
        """The agent has come."""
        self._said.clear()
        try:
            stream = self._agent.open(self._words, self)
        except (GuestError, ValueError) as err:
            LOG.warning("%s: cannot be told its name: %s", self._name, err)
            return
        self._agent.send(stream, Kind.CREDIT, pack_credit(_WINDOW))

    def take(self, stream: int, frame: Frame) -> None:
        """As ``Sink``."""
        if frame.kind is Kind.DATA and frame.payload:
            self._said += frame.payload[: _WINDOW - len(self._said)]
            self._agent.send(stream, Kind.CREDIT, pack_credit(len(frame.payload)))
        elif frame.kind is Kind.CLOSE and not self._told and dict(parse_words(frame.payload)).get("exit", "0") != "0":
            self._told = True
            lines = [line.removeprefix("pvc-agent: ") for line in self._said.decode(errors="replace").splitlines()]
            LOG.warning(
                "%s: not all of its name, keys, mounts and addresses: %s", self._name, clean_text("; ".join(lines))
            )

    def accept(self, stream: int, words: list[tuple[str, str]]) -> None:
        """As ``Sink``: nobody connects."""
        del words
        self._agent.send(stream, Kind.CLOSE)

    async def ready(self) -> None:
        """As ``Sink``."""
