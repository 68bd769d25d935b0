"""A VM's phase with its detail, and who is told of their changes."""

from __future__ import annotations

from collections.abc import Callable

from pvc.model.vm import Phase


class State:
    """``report(hint)`` is called after every change."""

    def __init__(self, report: Callable[[str | None], None]) -> None:
        self.phase = Phase.WAITING
        self.detail = ""
        self._report = report

    def change(self, phase: Phase, detail: str = "", hint: str | None = None) -> None:
        """How it is from now on; ``hint``: what its owner may do about it."""
        if (phase, detail) == (self.phase, self.detail):
            return
        self.phase, self.detail = phase, detail
        self._report(hint)

    def add(self, detail: str) -> None:
        """More about the same phase, for whoever asks: no event."""
        self.detail = detail
