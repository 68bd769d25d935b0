# SPDX-License-Identifier: Apache-2.0
"""A tree on its way from one VM to another: under the name that was asked for, with nothing that leads elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from pvc.channel.frames import ProtocolError
from pvc.channel.trees import Entry, FilePacker, Hole, pack_entry
from pvc.ops.treefiles import CHANGED, MAX_PROBLEMS, Taken, leads_out
from pvc.texts import clean_text


class TreePass(Taken):
    """Takes the bytes of a tree and gives those of the same one, called ``name``.

    ``above``: in a directory of this name. ``links``: also symbolic links that lead out of it.
    """

    def __init__(self, name: str, above: str | None = None, *, links: bool = False) -> None:
        super().__init__()
        self._name = name
        self._above = above
        self._links = links
        self._packer = FilePacker()
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What is to be sent on.

        :raise ProtocolError: it is no tree.
        """
        for item in self._reader.feed(data):
            if isinstance(item, Hole):
                yield self._packer.pack_hole(item.size)
            elif isinstance(item, Entry):
                yield from self._pass(item)
            elif not item.last:
                self.bytes += len(item.data)
                yield self._packer.pack(item.data)
            else:
                self.files += 1
                yield self._packer.end()

    def _pass(self, entry: Entry) -> Iterator[bytes]:
        if entry.kind == "end":
            self.complete = True
            yield pack_entry(entry)
            return
        _, slash, rest = entry.name.partition("/")
        shown = clean_text(f"{self._name}{slash}{rest}", 300)
        if not slash and entry.kind == "link":
            raise ProtocolError("a link in place of what it leads to")
        if not self._begun and self._above is not None:
            yield pack_entry(Entry("dir", self._above, 0o755, time.time_ns()))
        self._begun = True
        if entry.kind == "link" and leads_out(entry) and not self._links:
            self._tell(self.problems, f"{shown}: a link to {clean_text(entry.target, 300)}: left out (see --links)")
            return
        if entry.kind == "bad":
            self._tell(self.problems, f"{shown}: {clean_text(entry.error)}")
        if entry.kind == "changed":
            self._tell(self.notes, f"{shown} {CHANGED}")
        if entry.kind == "file":
            self._packer = FilePacker()
        head = self._name if self._above is None else f"{self._above}/{self._name}"
        try:
            yield pack_entry(replace(entry, name=f"{head}{slash}{rest}"))
        except ValueError as err:
            raise ProtocolError(str(err)) from None

    def _tell(self, where: list[str], text: str) -> None:
        if len(where) >= MAX_PROBLEMS:
            raise ProtocolError("more complaints than anybody reads")
        where.append(text)
