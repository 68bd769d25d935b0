# SPDX-License-Identifier: Apache-2.0
"""Showing progress: a block of lines that is redrawn on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import suppress
from typing import TextIO

from pvc.model.vm import Phase
from pvc.ops.progress import TABLE_ROWS, Progress, VmView, plural
from pvc.texts import clean_text

_COLOURS = {
    Phase.WAITING: "2",
    Phase.NETWORK: "36",
    Phase.BOOTING: "33",
    Phase.REACHABLE: "32",
    Phase.PAUSED: "35",
    Phase.STOPPED: "2",
    Phase.FAILED: "31",
}
_STEPS = (Phase.NETWORK, Phase.BOOTING, Phase.REACHABLE)
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_REDRAW_S = 0.1


def render(progress: Progress, now: float, *, width: int = 80, colours: bool = True) -> list[str]:
    """The lines of a terminal's view at time ``now`` (seconds since the epoch)."""
    elapsed = max(0.0, now - progress.start)
    headline = _headline(progress, elapsed, colours=False)
    lines = [_headline(progress, elapsed, colours) if len(headline) <= width else _cut(headline, width)]
    if len(progress.vms) <= TABLE_ROWS:
        name_width = max(len(vm.name) for vm in progress.vms)
        node_width = max(len(vm.node) for vm in progress.vms)
        lines += [_row(vm, elapsed, name_width, node_width, width, colours) for vm in progress.vms]
    elif progress.counts[Phase.FAILED]:
        lines += [
            _cut(f"  {vm.name} on {vm.node}: {vm.detail}", width) for vm in progress.vms if vm.phase is Phase.FAILED
        ][:5]
    return lines


def _headline(progress: Progress, elapsed: float, colours: bool) -> str:
    counts = progress.counts
    parts = [_paint(f"{counts[phase]} {phase.value}", phase, colours) for phase in Phase if counts[phase]]
    mark = "✓" if progress.is_settled else _SPINNER[int(elapsed * 10) % len(_SPINNER)]
    size = f"{plural(len(progress.vms), 'VM')} on {plural(len(progress.nodes), 'node')}"
    return f"{mark} {size} · {' · '.join(parts)} · {elapsed:.1f} s"


def _row(vm: VmView, elapsed: float, name_width: int, node_width: int, width: int, colours: bool) -> str:
    running = vm.phase in (Phase.WAITING, Phase.NETWORK, Phase.BOOTING)
    seconds = elapsed if running else vm.since
    steps = "".join(
        "●" if _reached(vm.phase, step) else "○" for step in (Phase.NETWORK, Phase.BOOTING, Phase.REACHABLE)
    )
    plain = clean_text(f"  {vm.name:<{name_width}}  {vm.node:<{node_width}}  ")
    rest = f"{seconds:6.1f} s  {vm.detail}".rstrip()
    room = width - len(plain) - len(steps) - 13
    return f"{plain}{_paint(f'{steps} {vm.phase.value:<9}', vm.phase, colours)} {_cut(rest, room)}"


def _reached(phase: Phase, step: Phase) -> bool:
    order = list(Phase)
    return phase not in (Phase.FAILED, Phase.STOPPED) and order.index(phase) >= order.index(step)


def _paint(text: str, phase: Phase, colours: bool) -> str:
    return f"\033[{_COLOURS[phase]}m{text}\033[0m" if colours else text


def _cut(text: str, width: int) -> str:
    flat = clean_text(text)
    return flat if len(flat) <= width else flat[: max(1, width - 1)] + "…"


class Display:
    """Shows a launch to whoever reads ``stream``."""

    def __init__(self, stream: TextIO = sys.stderr, *, quiet: bool = False, colours: bool = True) -> None:
        self._stream = stream
        self._quiet = quiet
        dumb = os.environ.get("TERM") == "dumb"
        self._live = stream.isatty() and not quiet and not dumb
        self._colours = colours and not os.environ.get("NO_COLOR")  # https://no-color.org
        self._drawn = 0
        self._last = 0.0

    @property
    def is_live(self) -> bool:
        """Whether ``update`` must be called regularly."""
        return self._live

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._quiet:
            return
        self.warn(text)

    def warn(self, text: str) -> None:
        """A line that stays, also when quiet."""
        self._write(f"{self._erase()}pvc: {clean_text(text)}\n")

    def news(self, lines: list[str]) -> None:
        """Lines of ``Progress.apply``: for readers without a live view."""
        if not self._live:
            for line in lines:
                self.say(line)

    def update(self, progress: Progress, *, force: bool = False) -> None:
        """Redraw the live view, at most ten times a second."""
        if not self._live or (not force and time.monotonic() - self._last < _REDRAW_S):
            return
        self._last = time.monotonic()
        size = shutil.get_terminal_size()
        lines = render(progress, time.time(), width=size.columns, colours=self._colours)[: max(2, size.lines - 1)]
        up = f"\033[{self._drawn}A" if self._drawn else ""
        body = "".join(f"\r\033[K{line}\n" for line in lines)
        self._write(up + body + "\033[J")
        self._drawn = len(lines)

    def finish(self, progress: Progress) -> None:
        """Leave the last view on the terminal; what follows is written below it."""
        self.update(progress, force=True)
        self._drawn = 0

    def _erase(self) -> str:
        """What takes the view away."""
        drawn, self._drawn = self._drawn, 0
        return f"\033[{drawn}A\r\033[J" if drawn else ""

    def _write(self, text: str) -> None:
        # VMs do not end because their user's disk is full, or the reader of a pipe has gone.
        with suppress(OSError):
            self._stream.write(text)
            self._stream.flush()
