"""A VM's phase with its detail, and who is told of their changes."""

from __future__ import annotations

import time
from collections.abc import Callable

from pvc.model.vm import Phase


class State:
    """``report(hint)`` is called after every change. ``since``: when the phase began, seconds since the epoch."""

    def __init__(self, report: Callable[[str | None], None]) -> None:
        self.phase = Phase.WAITING
        self.detail = ""
        self.since = time.time()
        self.hint: str | None = None
        self._report = report

    def change(self, phase: Phase, detail: str = "", hint: str | None = None) -> None:
        """How it is from now on; ``hint``: what its owner may do about it."""
        if (phase, detail) == (self.phase, self.detail):
            return
        if phase is not self.phase:
            self.since = time.time()
        self.phase, self.detail, self.hint = phase, detail, hint
        self._report(hint)

    def add(self, detail: str) -> None:
        """More about the same phase, for whoever asks: no event."""
        self.detail = detail
