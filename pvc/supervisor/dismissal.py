# SPDX-License-Identifier: Apache-2.0
"""Who sends a supervisor away: its launcher, by a word or by its death; or Slurm, whose SIGTERM may only warn."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from pvc.model.words import ASKING, BYE, LEAVE, STAY

LOG = logging.getLogger(__name__)
# A launcher that stands still (Ctrl-Z) gives no answer. One that does not waits for Slurm, whose controller may be busy
# for seconds. Slurm kills what has not ended KillWait after its SIGTERM, 30 s by default.
_ANSWER_S = 4.0
_SLURM_S = 15.0


class Leave(Protocol):
    """Told once or more that it is time; ``signalled``: Slurm will not wait for long."""

    def __call__(self, *, signalled: bool) -> None:
        """End."""


class Dismissal:
    """Watches signals and the launcher's end of standard input.

    Slurm sends SIGTERM at a job's end, and before it to one that is preempted and has a time of grace (slurm.conf(5),
    GraceTime). Supervisors ask their launcher (``tell``) which of the two it is: one question to Slurm for all nodes.
    """

    def __init__(self, stdin_fd: int, tell: Callable[[], None], leave: Leave) -> None:
        """Begin, in the running loop."""
        self.abandoned = False  # the launcher is gone without a word
        self._loop = asyncio.get_running_loop()
        self._fd = stdin_fd
        self._tell = tell
        self._leave = leave
        self._has_launcher = False
        self._dismissed = False
        self._waits: asyncio.TimerHandle | None = None
        self._asked = 0.0
        for number in (signal.SIGINT, signal.SIGHUP):
            self._loop.add_signal_handler(number, self._obey)
        self._loop.add_signal_handler(signal.SIGTERM, self._ask)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            # Slurm's --signal without "B:" goes to all steps, and would end this one.
            self._loop.add_signal_handler(number, LOG.info, "Slurm sent %s", number.name)
        # A regular file cannot be watched, and has no launcher behind it that could go.
        with suppress(PermissionError):
            self._loop.add_reader(stdin_fd, self._read)
            self._has_launcher = True

    def _obey(self) -> None:
        self._settle()
        self._leave(signalled=True)

    def _ask(self) -> None:
        if not self._has_launcher:
            self._obey()
        elif self._waits is None:
            self._asked = self._loop.time()
            self._waits = self._loop.call_at(self._asked + _ANSWER_S, self._obey)
            self._tell()

    def _settle(self) -> bool:
        """Wait no longer; returns whether it did wait for an answer."""
        waited, self._waits = self._waits, None
        if waited is not None:
            waited.cancel()
        return waited is not None

    def _read(self) -> None:
        try:
            said = os.read(self._fd, 4096)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if not said:
            self.abandoned = not self._dismissed
            self._has_launcher = False
            self._loop.remove_reader(self._fd)
            self._leave(signalled=self._settle())
            return
        for word in said.splitlines(keepends=True):
            if word == BYE:
                self._dismissed = True
            elif word == ASKING and self._settle():
                self._waits = self._loop.call_at(self._asked + _SLURM_S, self._obey)
            elif word == STAY and self._settle():
                LOG.info("Slurm sent SIGTERM; the job has a time of grace")
            elif word == LEAVE and self._waits is not None:
                self._obey()
