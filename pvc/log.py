# SPDX-License-Identifier: Apache-2.0
"""Logging: standard error for commands, with the job and VM in front where they are known; the journal for services.

What a record says may be a user's word, so no handler writes one but by ``Clean``.
"""

from __future__ import annotations

import logging
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType, TracebackType
from typing import TextIO

from pvc.texts import clean_lines, clean_text

_CONTEXT: ContextVar[str] = ContextVar("pvc_log_context", default="")
_FIELDS: ContextVar[Mapping[str, str]] = ContextVar("pvc_log_fields", default=MappingProxyType({}))
# systemd's Native Journal Protocol, and the priorities of syslog(3)
_JOURNAL = "/run/systemd/journal/socket"
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
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


class Journal(logging.StreamHandler[TextIO]):
    """Writes to systemd's journal, with the fields of ``context`` beside the text.

    While there is none it writes to ``stream``.
    """

    def __init__(self, stream: TextIO, identifier: str, address: str = _JOURNAL) -> None:
        import socket  # of commands, which start often, none needs it

        super().__init__(stream)
        self._identifier, self._address = identifier, address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Send one datagram for the record. The socket is not connected, so that a journal that restarts is found."""
        try:
            self._socket.sendto(encode_entry(self._describe(record)), self._address)
        except OSError:
            super().emit(record)

    def _describe(self, record: logging.LogRecord) -> dict[str, str]:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return {
            "MESSAGE": self.format(record),
            "PRIORITY": str(priority),
            "SYSLOG_IDENTIFIER": self._identifier,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName or "",
            **_FIELDS.get(),
        }


def encode_entry(fields: Mapping[str, str]) -> bytes:
    """An entry of the journal: NAME=VALUE lines; a value of several lines comes after its length (64 bits, little)."""
    parts = []
    for name, value in fields.items():
        data = value.encode("utf-8", "surrogateescape")
        if b"\n" in data:
            parts.append(b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(data)), data))
        else:
            parts.append(b"%s=%s\n" % (name.encode(), data))
    return b"".join(parts)


def _is_journal(stream: TextIO) -> bool:
    """Whether a stream leads to the journal: the service manager names it so, in systemd.exec(5) JOURNAL_STREAM."""
    try:
        facts = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{facts.st_dev}:{facts.st_ino}"


def setup(
    level: int = logging.WARNING, *, timestamps: bool = False, sparing: bool = False, journal_as: str = ""
) -> None:
    """Send pvc's log to standard error; once per process, from a front end.

    ``sparing``: whoever calls is anybody. ``journal_as``: where standard error leads to the journal, entries of this
    name go there instead, whose time and priority are fields.
    """
    handler = logging.StreamHandler(sys.stderr)
    layout = "%(asctime)s %(levelname)s %(message)s" if timestamps else "pvc: %(message)s"
    if journal_as and _is_journal(sys.stderr):
        handler, layout = Journal(sys.stderr, journal_as), "%(message)s"
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
def context(text: str, **fields: str) -> Iterator[None]:
    """Put ``text`` (such as "job 12") in front of every line logged inside; ``fields`` are the journal's alone."""
    outer = _CONTEXT.get()
    token = _CONTEXT.set(f"{outer} {text}".strip())
    beside = _FIELDS.set({**_FIELDS.get(), **{name: clean_text(value) for name, value in fields.items()}})
    try:
        yield
    finally:
        _FIELDS.reset(beside)
        _CONTEXT.reset(token)
