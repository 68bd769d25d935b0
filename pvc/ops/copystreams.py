# SPDX-License-Identifier: Apache-2.0
"""Streams of copies: trees to VMs (from here, from standard input, from another VM) and from them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator

from pvc.channel.frames import ProtocolError
from pvc.channel.trees import Entry, FilePacker, pack_entry
from pvc.errors import HostError, PvcError
from pvc.ops.agents import Stream
from pvc.ops.copied import Progress
from pvc.ops.loop import Loop
from pvc.ops.treefiles import Sent, TreeWriter
from pvc.ops.treeoutput import OutputWriter
from pvc.ops.treepass import TreePass

_BLOCK = 1 << 18
_PENDING = 1 << 20
_MAX_SAID = 1 << 16

Writer = TreeWriter | OutputWriter


class Speaking(Stream):
    """What the agent's process says on standard error is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.said = bytearray()
        self.problem: PvcError | None = None

    def on_data(self, data: bytes, second: bool) -> None:
        """Keep it, or ``take`` it."""
        if second:
            self.said += data[: max(0, _MAX_SAID - len(self.said))]
        elif self.problem is None:
            self.take(data)

    def take(self, data: bytes) -> None:
        """What the process has written."""

    def refuse(self, problem: PvcError) -> None:
        """It is wrong: nothing more of it is wanted."""
        self.problem = problem
        self.close()


class Upload(Speaking):
    """One VM that takes a tree."""

    def __init__(self, uploads: Uploads) -> None:
        super().__init__()
        self._uploads = uploads

    def on_moved(self) -> None:
        """There may be room for more."""
        self._uploads.feed()

    def on_close(self, words: dict[str, str]) -> None:
        """The others go on."""
        del words
        self._uploads.feed()


class Uploads:
    """One tree to several VMs: what they get is read when all that still take it have room."""

    def __init__(self, progress: Progress) -> None:
        self.streams: list[Upload] = []
        self.ended = False
        self._progress = progress

    def feed(self) -> None:
        """Send on while there is room."""

    def close(self) -> None:
        """Nothing more will be read."""

    @property
    def live(self) -> list[Upload]:
        """Those that still take it."""
        return [stream for stream in self.streams if not stream.closed]

    def has_room(self) -> bool:
        """Whether somebody takes it, and all that do have room."""
        live = self.live
        return bool(live) and all(stream.pending < _PENDING for stream in live)

    def send(self, chunk: bytes) -> None:
        """The next bytes of the tree."""
        live = self.live
        for stream in live:
            stream.send(chunk)
        self._progress(len(chunk) * len(live))

    def end(self) -> None:
        """That was all."""
        self.ended = True
        for stream in self.live:
            stream.end()


class FileUploads(Uploads):
    """A tree that is here."""

    def __init__(self, chunks: Iterator[bytes], progress: Progress) -> None:
        super().__init__(progress)
        self._chunks = chunks
        self._feeding = False

    def feed(self) -> None:
        """Read on."""
        if self._feeding:
            return
        self._feeding = True
        try:
            while not self.ended and self.has_room():
                chunk = next(self._chunks, None)
                if chunk is None:
                    self.end()
                else:
                    self.send(chunk)
        finally:
            self._feeding = False


class InputUploads(Uploads):
    """Standard input, as one file."""

    def __init__(self, loop: Loop, sent: Sent, progress: Progress) -> None:
        """:raise HostError: there is none."""
        super().__init__(progress)
        self._loop = loop
        self._sent = sent
        self._packer = FilePacker()
        self._watched = False
        self._begun = False
        try:
            self._fd = sys.stdin.fileno()
        except (OSError, ValueError, AttributeError) as err:
            raise HostError("there is no standard input") from err

    def feed(self) -> None:
        """Wait for more, or not, as there is room."""
        wanted = not self.ended and self.has_room()
        if wanted and not self._begun:
            self._begun = True
            self.send(pack_entry(Entry("file", "input", 0o644, time.time_ns())))
        if wanted == self._watched:
            return
        self._watched = wanted
        try:
            self._loop.watch(self._fd, self._on_input, read=wanted, write=False)
        except PermissionError:
            # A file is always readable, and epoll(7) takes none.
            self._watched = False
            while not self.ended and self.has_room():
                self._on_input()

    def close(self) -> None:
        """Leave it."""
        if self._watched:
            self._loop.remove(self._fd)
            self._watched = False

    def _on_input(self) -> None:
        try:
            data = os.read(self._fd, _BLOCK)
        except BlockingIOError:
            return
        except OSError as err:
            raise HostError("cannot read standard input") from err
        self._sent.bytes += len(data)
        if data:
            self.send(self._packer.pack(data))
        else:
            self._sent.files += 1
            self.send(self._packer.end() + pack_entry(Entry("end")))
            self.end()
        if self._watched:
            self.feed()


class PipeUploads(Uploads):
    """What another VM sends."""

    def __init__(self, source: Source, progress: Progress) -> None:
        super().__init__(progress)
        self._source = source

    def feed(self) -> None:
        """Let it send on, or not."""
        if self.ended:
            self._source.hold(holds=False)  # what it says last
        elif not self.live:
            self._source.close()
        else:
            self._source.hold(holds=not self.has_room())


class Source(Speaking):
    """One VM whose tree goes to others: believed no more than when it comes here."""

    def __init__(self, passage: TreePass, progress: Progress) -> None:
        super().__init__()
        self.passage = passage
        self.uploads = PipeUploads(self, progress)

    def take(self, data: bytes) -> None:
        """Pass it on."""
        try:
            chunk = b"".join(self.passage.feed(data))
        except ProtocolError as err:
            self.refuse(PvcError(f"what {self.name} sent is refused: {err}"))
            return
        self.uploads.send(chunk)
        if self.passage.complete:
            self.uploads.end()
        else:
            self.uploads.feed()

    def on_close(self, words: dict[str, str]) -> None:
        """What is not complete is worth nothing to the others."""
        del words
        if not self.passage.complete:
            for stream in self.uploads.live:
                stream.close()


class Download(Speaking):
    """One VM that sends a tree."""

    def __init__(self, writer: Writer, progress: Progress) -> None:
        super().__init__()
        self.writer = writer
        self._progress = progress

    def take(self, data: bytes) -> None:
        """Write it."""
        before = self.writer.bytes
        try:
            self.writer.feed(data)
        except ProtocolError as err:
            self.refuse(PvcError(f"what {self.name} sent is refused: {err}"))
        except PvcError as err:
            self.refuse(err)
        self._progress(self.writer.bytes - before)
