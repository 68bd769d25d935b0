"""Logging: standard error for commands, with the job and VM in front where they are known."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_CONTEXT: ContextVar[str] = ContextVar("pvc_log_context", default="")


class _Prefix(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = _CONTEXT.get()
        text = super().format(record)
        return f"{prefix}: {text}" if prefix else text


def setup(level: int = logging.WARNING, *, timestamps: bool = False) -> None:
    """Send pvc's log to standard error; once per process, from a front end."""
    handler = logging.StreamHandler(sys.stderr)
    layout = "%(asctime)s %(levelname)s %(message)s" if timestamps else "pvc: %(message)s"
    handler.setFormatter(_Prefix(layout))
    handler.setLevel(level)  # other handlers may want to hear more
    root = logging.getLogger("pvc")
    root.handlers[:] = [handler]
    root.setLevel(level)


@contextmanager
def context(text: str) -> Iterator[None]:
    """Put ``text`` (such as "job 12") in front of every line logged inside."""
    outer = _CONTEXT.get()
    token = _CONTEXT.set(f"{outer} {text}".strip())
    try:
        yield
    finally:
        _CONTEXT.reset(token)
