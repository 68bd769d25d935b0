# SPDX-License-Identifier: Apache-2.0
"""Logging: standard error for commands, with the job and VM in front where they are known.

What a record says may be a user's word, so no handler writes one but by ``Clean``.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType

from pvc.texts import clean_lines, clean_text

_CONTEXT: ContextVar[str] = ContextVar("pvc_log_context", default="")
_MOST = 4000
# Of a traceback the last lines, which have the reason.
_TRACEBACK = 60


class Clean(logging.Formatter):
    """One line for a record, whoever's words are in it; lines of a traceback are indented, so they begin no record."""

    def format(self, record: logging.LogRecord) -> str:
        """The record, with what ``context`` says in front."""
        prefix, message = _CONTEXT.get(), record.getMessage()
        record.message = clean_text(f"{prefix}: {message}" if prefix else message, _MOST)
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        lines = [self.formatMessage(record)]
        if record.exc_info:
            lines += [f"    {line}" for line in clean_lines(self.formatException(record.exc_info))[-_TRACEBACK:]]
        return "\n".join(lines)


class Sparing(logging.Filter):
    """Lets each line of the program speak at a pace that fills no log, and says how often it was held back.

    Whoever makes a service speak, by whatever it says to it, can do so at any rate; a line of the program is what is
    counted, because the texts are the callers' and have no end.
    """

    BURST, EACH_S = 20, 5.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._places: dict[tuple[str, int], list[float]] = {}  # (tokens, when they were counted, held back)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it may be written."""
        now = self._clock()
        # What tells of work that was done has the pace of that work.
        burst, each_s = (self.BURST, self.EACH_S) if record.levelno > logging.INFO else (10 * self.BURST, 0.1)
        with self._lock:
            place = self._places.setdefault((record.pathname, record.lineno), [burst, now, 0])
            tokens = min(burst, place[0] + (now - place[1]) / each_s)
            held_back = int(place[2])
            admitted = tokens >= 1
            place[:] = [tokens - 1, now, 0] if admitted else [tokens, now, held_back + 1]
        if admitted and held_back:
            record.msg = f"{record.getMessage()} (and {held_back} more like it)"
            record.args = ()
        return admitted


def setup(level: int = logging.WARNING, *, timestamps: bool = False, sparing: bool = False) -> None:
    """Send pvc's log to standard error; once per process, from a front end. ``sparing``: whoever calls is anybody."""
    handler = logging.StreamHandler(sys.stderr)
    layout = "%(asctime)s %(levelname)s %(message)s" if timestamps else "pvc: %(message)s"
    handler.setFormatter(Clean(layout))
    if sparing:
        handler.addFilter(Sparing())
    handler.setLevel(level)  # other handlers may want to hear more
    root = logging.getLogger("pvc")
    root.handlers[:] = [handler]
    root.setLevel(level)
    # What libraries log, and what ends this process.
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(Clean("%(message)s"))
    sys.excepthook = _tell_uncaught


def _tell_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("pvc").critical("internal error", exc_info=(kind, error, trace))


@contextmanager
def context(text: str) -> Iterator[None]:
    """Put ``text`` (such as "job 12") in front of every line logged inside."""
    outer = _CONTEXT.get()
    token = _CONTEXT.set(f"{outer} {text}".strip())
    try:
        yield
    finally:
        _CONTEXT.reset(token)
