# SPDX-License-Identifier: Apache-2.0
"""What a supervisor has to say of its VMs and its node, kept in memory for whoever asks later."""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pvc.supervisor.console import WATCHER_BYTES, Watcher
from pvc.texts import clean_text

# Of a node with 64 VMs that is what some sixty of their boots say; a line has 1,000 characters at most.
_KEPT = 4000
_OF_VM = re.compile(r"vm(\d{1,6})\b")


@dataclass(frozen=True)
class Entry:
    """One line; ``rank`` None: it concerns the whole node."""

    time: float
    rank: int | None
    text: str

    def encode(self) -> bytes:
        """The line as it is sent, with the node's local time (ISO 8601)."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.time))
        return f"{moment} {self.text}\n".encode(errors="replace")


class Journal(logging.Handler):
    """Takes what pvc logs in this process, from INFO on, and what it is told by ``note``."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._entries: deque[Entry] = deque(maxlen=_KEPT)
        self._watchers: dict[Watcher, int | None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """A line of the log; one that begins with a VM's name is that VM's."""
        match = _OF_VM.match(text := record.getMessage())
        word = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        self.note(int(match[1]) if match else None, f"{word}{text}")

    def note(self, rank: int | None, text: str) -> None:
        """Something worth a line; control characters do not get in."""
        entry = Entry(time.time(), rank, clean_text(text))
        self._entries.append(entry)
        for watcher, wanted in list(self._watchers.items()):
            if not _concerns(entry, wanted):
                continue
            if watcher.transport.get_write_buffer_size() > WATCHER_BYTES:
                del self._watchers[watcher]
                watcher.transport.abort()
            else:
                watcher.write(entry.encode())

    def read(self, rank: int | None) -> bytes:
        """The lines of one VM and of the node, or (None) of all."""
        return b"".join(entry.encode() for entry in self._entries if _concerns(entry, rank))

    @contextmanager
    def watch(self, watcher: Watcher, rank: int | None) -> Iterator[None]:
        """Send what comes from now on to ``watcher`` until the block ends; one that does not read is cut."""
        self._watchers[watcher] = rank
        try:
            yield
        finally:
            self._watchers.pop(watcher, None)


def _concerns(entry: Entry, rank: int | None) -> bool:
    return rank is None or entry.rank is None or entry.rank == rank
