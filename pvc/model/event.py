# SPDX-License-Identifier: Apache-2.0
"""Events from supervisors to their launcher: one JSON object a line on the supervisor's standard output."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pvc.errors import HostError
from pvc.model.failure import Failure
from pvc.model.vm import Phase


class EventKind(StrEnum):
    """What an event tells."""

    LISTENING = "listening"  # the supervisor's control port is open: host, port
    VM = "vm"  # a VM reached a phase: rank, phase, detail
    NOTICE = "notice"  # something the user should know, once: detail
    ERROR = "error"  # this node's share failed: detail, hint, exit_code
    TOLD = "told"  # the supervisor got SIGTERM, and asks whether that is the end
    ENDED = "ended"  # the supervisor has stopped everything and leaves


@dataclass(frozen=True)
class Event:
    """``time`` is seconds since the epoch on the node that speaks."""

    kind: EventKind
    node: str
    time: float
    rank: int | None = None
    phase: Phase | None = None
    host: str | None = None
    port: int | None = None
    detail: str = ""
    hint: str | None = None
    exit_code: int | None = None
    last_words: tuple[str, ...] = ()  # of a VM that failed: the last lines of its console

    @classmethod
    def of_failure(cls, node: str, time: float, failure: Failure) -> Event:
        """A node's share has failed."""
        told = failure.error, failure.hint, failure.exit_code
        return cls(EventKind.ERROR, node, time, detail=told[0], hint=told[1], exit_code=told[2])

    @property
    def failure(self) -> Failure:
        """Of an ERROR: why."""
        return Failure(self.exit_code or HostError.exit_code, self.detail or "failed without a reason", self.hint)
