# SPDX-License-Identifier: Apache-2.0
"""A VM's phase with its detail, and who is told of their changes."""

from __future__ import annotations

import time
from collections.abc import Callable

from pvc.model.vm import Phase

RUNS = (Phase.BOOTING, Phase.REACHABLE, Phase.PAUSED)


class State:
    """``report(hint)`` is called after every change. ``since``: when the phase began, seconds since the epoch."""

    def __init__(self, report: Callable[[str | None], None]) -> None:
        self.phase = Phase.WAITING
        self._detail = ""
        self._lacks: tuple[str, ...] = ()
        self.since = time.time()
        self.hint: str | None = None
        self._report = report

    @property
    def detail(self) -> str:
        """More about the phase."""
        return "; ".join(each for each in (self._detail, *self._lacks) if each)

    def change(self, phase: Phase, detail: str = "", hint: str | None = None) -> None:
        """How it is from now on; ``hint``: what its owner may do about it."""
        if (phase, detail) == (self.phase, self._detail):
            return
        if phase is not self.phase:
            self.since = time.time()
        self.phase, self._detail, self.hint = phase, detail, hint
        if phase not in RUNS:
            self._lacks = ()
        self._report(hint)

    def lack(self, what: str, hint: str) -> None:
        """What is missing from now on, for as long as it runs."""
        self._lacks, self.hint = (*self._lacks, what), hint
        self._report(hint)

    def add(self, detail: str) -> None:
        """More about the same phase, for whoever asks: no event."""
        self._detail = detail
