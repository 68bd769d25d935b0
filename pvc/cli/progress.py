# SPDX-License-Identifier: Apache-2.0
"""How far something long is, on standard error: bars where a person looks, lines elsewhere."""

from __future__ import annotations

import sys
import time

from pvc.cli import output
from pvc.texts import clean_text


class CopyProgress:
    """How far a copy is: a bar with its rate on a terminal, elsewhere one line as it begins and one at its end."""

    _WIDTH = 28

    def __init__(self, verb: str = "copying") -> None:
        self._verb = verb
        self._tty = sys.stderr.isatty()
        self._start = self._shown = 0.0

    def __call__(self, name: str, done: int, total: int) -> None:
        """Tell that ``done`` of ``total`` bytes of ``name`` are copied; 0 begins, ``total`` ends."""
        now = time.monotonic()
        if done == 0:
            self._start, self._shown = now, 0.0
            if not self._tty:
                output.print_note(f"{self._verb} {name} ({format_size(total)})")
        rate = f"{format_size(int(done / max(now - self._start, 1e-3)))}/s"
        if not self._tty:
            if done >= total and now - self._start >= 1:
                output.print_note(f"{self._verb} {name}: done in {now - self._start:.0f} s, {rate}")
            return
        if done < total and now - self._shown < 0.1:
            return
        self._shown = now
        filled = self._WIDTH * done // max(total, 1)
        bar = "#" * filled + "." * (self._WIDTH - filled)
        percent = 100 * done // max(total, 1)
        text = f"{clean_text(name, 24):24} [{bar}] {percent:3d} % of {format_size(total)}, {rate}"
        output.say(f"{text:<78}", label="\r", end="\n" if done >= total else "", error=True, flush=True)


class StepProgress:
    """What a long job is doing: each step with the time it took; on standard error."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._text = ""
        self._start = self._first = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first step."""
        return time.monotonic() - self._first

    def begin(self, text: str) -> None:
        """The step before is over, ``text`` begins; "": nothing that has to be told."""
        self.finish()
        self._text, self._start = text, time.monotonic()
        if self._tty and text:
            output.say(f"{text} ...", end="", error=True, flush=True)

    def finish(self) -> None:
        """The last step is over."""
        if self._text:
            took = time.monotonic() - self._start
            line = f"{self._text} ({took:.1f} s)"
            output.say(line, label="\r\033[K" if self._tty else "pvc: ", error=True, flush=True)
        self._text = ""


def format_size(count: int) -> str:
    """Bytes for people: "391M", "8.0G"."""
    value = float(count)
    for unit in ("B", "K", "M", "G"):
        if value < 1000:
            return f"{value:.0f}{unit}" if value >= 10 or unit == "B" else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}T"
