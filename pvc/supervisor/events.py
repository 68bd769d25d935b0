# SPDX-License-Identifier: Apache-2.0
"""The supervisor's standard output: one event a line, for the launcher."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import select
import time
from collections import deque

from pvc import codec
from pvc.errors import PvcError
from pvc.model.event import Event, EventKind
from pvc.model.failure import Failure
from pvc.supervisor.vm import Vm

# A launcher that is suspended (Ctrl-Z) reads nothing; its VMs go on. What it may miss is bounded.
_MAX_BACKLOG = 20_000
_LAST_WORDS_S = 2.0
# slurmstepd forwards at most 1024 bytes at a time: a longer line could be torn by another node's.
MAX_LINE = 1000


class Events:
    """Writes events to a descriptor, never waiting for its reader; a launcher that is gone hears nothing."""

    def __init__(self, fd: int, node: str) -> None:
        self._fd = fd
        self._node = node
        self._backlog: deque[bytes] = deque(maxlen=_MAX_BACKLOG)
        self._watching = False

    def listening(self, host: str, port: int) -> None:
        """The control port is open."""
        self._write(Event(EventKind.LISTENING, self._node, time.time(), host=host, port=port))

    def vm(self, vm: Vm, hint: str | None = None) -> None:
        """A VM's phase or its detail changed."""
        self._write(
            Event(
                EventKind.VM,
                self._node,
                time.time(),
                rank=vm.share.rank,
                phase=vm.phase,
                detail=vm.detail,
                hint=hint,
                last_words=vm.last_words,
            )
        )

    def notice(self, text: str) -> None:
        """Something the user should know, once."""
        self._write(Event(EventKind.NOTICE, self._node, time.time(), detail=text))

    def error(self, err: PvcError) -> None:
        """This node's share failed."""
        self._write(Event.of_failure(self._node, time.time(), Failure.of(err)))

    def told(self) -> None:
        """A signal has asked for the end."""
        self._write(Event(EventKind.TOLD, self._node, time.time()))

    def ended(self) -> None:
        """Everything is stopped; the last event."""
        self._write(Event(EventKind.ENDED, self._node, time.time()))
        deadline = time.monotonic() + _LAST_WORDS_S
        while self._backlog and (left_s := deadline - time.monotonic()) > 0:
            self._flush(left_s)

    def _write(self, event: Event) -> None:
        self._backlog.append(event_line(event))
        self._flush(0)
        if self._backlog and not self._watching:
            # A regular file is always writable, so it never comes here.
            self._watching = True
            asyncio.get_running_loop().add_writer(self._fd, self._on_writable)

    def _on_writable(self) -> None:
        self._flush(0)
        if not self._backlog:
            self._watching = False
            asyncio.get_running_loop().remove_writer(self._fd)

    def _flush(self, wait_s: float) -> None:
        """Write what goes without waiting longer than ``wait_s`` for the reader."""
        poller = select.poll()
        poller.register(self._fd, select.POLLOUT)
        try:
            while self._backlog and poller.poll(wait_s * 1000):
                # A writable pipe takes PIPE_BUF bytes at once (pipe(7)); a longer line goes in parts.
                part = self._backlog[0][: select.PIPE_BUF]
                written = os.write(self._fd, part)
                rest = self._backlog.popleft()[written:]
                if rest:
                    self._backlog.appendleft(rest)
        except OSError:
            self._backlog.clear()


def event_line(event: Event) -> bytes:
    """The event as one line of at most MAX_LINE bytes; what is too long loses its oldest last words, then
    the middle of its detail, then its hint.
    """
    line = codec.dumps(event).encode() + b"\n"
    while len(line) > MAX_LINE and event.last_words:
        event = dataclasses.replace(event, last_words=event.last_words[1:])
        line = codec.dumps(event).encode() + b"\n"
    keep = len(event.detail)
    while len(line) > MAX_LINE:
        keep = keep * 3 // 4
        if keep < 100 and event.hint is not None:
            event = dataclasses.replace(event, hint=None)
            keep = len(event.detail)
        shown = f"{event.detail[: keep // 2]} … {event.detail[len(event.detail) - keep // 2 :]}"
        line = codec.dumps(dataclasses.replace(event, detail=shown)).encode() + b"\n"
    return line
