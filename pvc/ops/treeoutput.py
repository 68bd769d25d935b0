# SPDX-License-Identifier: Apache-2.0
"""Files of trees to standard output."""

from __future__ import annotations

import fcntl
import os
import stat

from pvc.channel.trees import Content, Entry, Hole
from pvc.errors import HostError, UsageError
from pvc.ops.treefiles import CHANGED, Taken
from pvc.texts import clean_text

_BLOCK = 1 << 18


class OutputWriter(Taken):
    """Writes the files of a tree to standard output, one after the other; holes as zeros where it is no file."""

    def __init__(self) -> None:
        """:raise UsageError: it is a terminal, which a guest's file could command."""
        if os.isatty(1):
            raise UsageError(
                "a file of a guest is not printed on a terminal", hint="pvc exec vm0 -- cat FILE does that"
            )
        super().__init__()

    def feed(self, data: bytes) -> None:
        """:raise HostError: it cannot be written, or is no file. :raise ProtocolError: it is no tree."""
        for item in self._reader.feed(data):
            if isinstance(item, Hole):
                self._skip(item.size)
            elif isinstance(item, Content):
                self._write(item.data)
                self.bytes += len(item.data)
                self.files += item.last
                if item.last and _is_at_end():
                    os.ftruncate(1, os.lseek(1, 0, os.SEEK_CUR))
            else:
                self._take(item)

    def close(self) -> None:
        """What was written stays."""

    def _take(self, entry: Entry) -> None:
        if entry.kind in ("dir", "link"):
            raise HostError("a directory cannot go to standard output", hint="pvc exec vm0 -- tar c DIR")
        self.complete = entry.kind == "end"
        if entry.kind == "bad":
            self.problems.append(clean_text(entry.error))
        elif entry.kind == "changed" and not self.notes:
            self.notes.append(f"it {CHANGED}")

    def _skip(self, size: int) -> None:
        try:
            if _is_at_end():
                os.lseek(1, size, os.SEEK_CUR)
                return
        except OSError as err:
            raise HostError("cannot write to standard output") from err
        for at in range(0, size, _BLOCK):
            self._write(bytes(min(_BLOCK, size - at)))

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(1, view) :]
        except BrokenPipeError:
            raise
        except OSError as err:
            raise HostError("cannot write to standard output") from err


def _is_at_end() -> bool:
    """Whether standard output is a file in which nothing is behind the place where it is written."""
    facts = os.fstat(1)
    if not stat.S_ISREG(facts.st_mode) or fcntl.fcntl(1, fcntl.F_GETFL) & os.O_APPEND:
        return False
    return os.lseek(1, 0, os.SEEK_CUR) >= facts.st_size
