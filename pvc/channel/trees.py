# SPDX-License-Identifier: Apache-2.0
"""Trees of pvc-agent(7): records of files and directories. A reader believes nothing of what it reads."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from pvc.channel.frames import ProtocolError, pack_words, parse_words
from pvc.parse import parse_count

_LENGTH = struct.Struct("<I")
_HEAD = struct.Struct("<Q")  # of a piece
_LAST = struct.Struct("<QI")
_HOLE = 1 << 63
MAX_WORDS = 8192
MAX_NAME = 4096
MAX_DEPTH = 130
MAX_SIZE = 1 << 62
_MTIME = re.compile(r"(-?[0-9]{1,18})(?:\.([0-9]{9}))?")


@dataclass(frozen=True)
class Entry:
    """A record: ``kind`` is dir, file, link, bad, changed or end; ``target`` of a link, ``error`` of what is bad.

    ``size`` is that of a file when its copy began, ``stored`` how much of it is no hole (None: all).
    """

    kind: str
    name: str = ""
    mode: int = 0
    mtime_ns: int = 0
    size: int = 0
    target: str = ""
    error: str = ""
    stored: int | None = None


@dataclass(frozen=True)
class Content:
    """The next bytes of the file before; ``last``: all of it, and its checksum was right."""

    data: bytes
    last: bool


@dataclass(frozen=True)
class Hole:
    """So many zeros of the file before, which were not sent."""

    size: int


def pack_entry(entry: Entry) -> bytes:
    """A record as bytes.

    :raise ValueError: the name cannot be one.
    """
    words = [("type", entry.kind)]
    if entry.kind != "end":
        words.append(("name", entry.name))
    if entry.kind in ("dir", "file"):
        seconds, fraction = divmod(entry.mtime_ns, 1_000_000_000)
        words += [("mode", f"{entry.mode & 0o7777:o}"), ("mtime", f"{seconds}.{fraction:09d}")]
    if entry.kind == "file":
        words.append(("size", str(entry.size)))
        if entry.stored is not None:
            words.append(("stored", str(entry.stored)))
    if entry.kind == "link":
        words.append(("target", entry.target))
    if entry.kind == "bad":
        words.append(("error", entry.error))
    packed = pack_words(words)
    if len(packed) > MAX_WORDS:
        raise ValueError(f"the name {entry.name[:60]!r}... is too long")
    return _LENGTH.pack(len(packed)) + packed


class FilePacker:
    """The bytes of one file, as pieces that follow its record."""

    def __init__(self) -> None:
        self._crc = 0

    def pack(self, data: bytes) -> bytes:
        """A piece; not an empty one."""
        piece = _HEAD.pack(len(data)) + data
        self._crc = zlib.crc32(piece, self._crc)
        return piece

    def pack_hole(self, size: int) -> bytes:
        """So many zeros."""
        piece = _HEAD.pack(size | _HOLE)
        self._crc = zlib.crc32(piece, self._crc)
        return piece

    def end(self) -> bytes:
        """That was all."""
        return _LAST.pack(0, zlib.crc32(_HEAD.pack(0), self._crc))


def check_name(name: str) -> tuple[str, ...]:
    """The parts of a name.

    :raise ProtocolError: it leads elsewhere.
    """
    parts = tuple(name.split("/"))
    if not 0 < len(name) <= MAX_NAME or len(parts) > MAX_DEPTH:
        raise ProtocolError("a file whose name is empty or too long")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise ProtocolError("a file whose name leads elsewhere")
    return parts


class TreeReader:
    """Takes bytes as they come and gives records and contents."""

    def __init__(self) -> None:
        self.ended = False
        self._buffer = bytearray()
        self._in_file = False  # else a record comes next
        self._left = 0  # of a piece
        self._size = 0
        self._crc = 0
        self._top: str | None = None

    def feed(self, data: bytes) -> Iterator[Entry | Content | Hole]:
        """What is complete.

        :raise ProtocolError: it is no tree.
        """
        self._buffer += data
        while not self.ended:
            item = self._next_piece() if self._in_file else self._next()
            if item is None:
                return
            yield item

    def _next_piece(self) -> Content | Hole | None:
        if not self._left:
            if len(self._buffer) < _HEAD.size:
                return None
            head = _HEAD.unpack_from(self._buffer)[0]
            if not head:
                return self._end_file()
            self._take(_HEAD.size)
            self._size += head & ~_HOLE
            if self._size > MAX_SIZE:
                raise ProtocolError("a file that is too large")
            if head & _HOLE:
                return Hole(head & ~_HOLE)
            self._left = head
        part = self._take(min(self._left, len(self._buffer)))
        self._left -= len(part)
        return Content(part, last=False) if part else None

    def _take(self, count: int) -> bytes:
        part = bytes(memoryview(self._buffer)[:count])
        del self._buffer[:count]
        self._crc = zlib.crc32(part, self._crc)
        return part

    def _end_file(self) -> Content | None:
        if len(self._buffer) < _LAST.size:
            return None
        self._take(_HEAD.size)
        if _LENGTH.unpack_from(self._buffer)[0] != self._crc:
            raise ProtocolError("a checksum is wrong: something was changed on its way")
        del self._buffer[: _LENGTH.size]
        self._in_file = False
        return Content(b"", last=True)

    def _next(self) -> Entry | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        length = _LENGTH.unpack_from(self._buffer)[0]
        if length > MAX_WORDS:
            raise ProtocolError("what came is no tree")
        if len(self._buffer) < _LENGTH.size + length:
            return None
        entry = self._parse(bytes(self._buffer[_LENGTH.size : _LENGTH.size + length]))
        del self._buffer[: _LENGTH.size + length]
        if entry.kind == "file":
            self._in_file, self._size, self._crc = True, 0, 0
        self.ended = entry.kind == "end"
        return entry

    def _parse(self, payload: bytes) -> Entry:
        words = dict(parse_words(payload))
        kind = words.get("type", "")
        if kind == "end":
            return Entry(kind)
        if kind not in ("dir", "file", "link", "bad", "changed"):
            raise ProtocolError("a record of no known type")
        name = words.get("name", "")
        parts = check_name(name)
        if self._top is None and len(parts) == 1:
            self._top = parts[0]
        if parts[0] != self._top:
            raise ProtocolError("a file that does not belong to the tree")
        mtime = _MTIME.fullmatch(words.get("mtime", "0"))
        mode = words.get("mode", "0")
        size, stored = (parse_count(words[key], MAX_SIZE) if key in words else 0 for key in ("size", "stored"))
        if mtime is None or size is None or stored is None or re.fullmatch("[0-7]{1,5}", mode) is None:
            raise ProtocolError("a record that is not understood")
        mtime_ns = int(mtime[1]) * 1_000_000_000 + int(mtime[2] or 0)
        target = words.get("target", "")
        if kind == "link" and not 0 < len(target) <= MAX_NAME:
            raise ProtocolError("a link without a target")
        known = stored if "stored" in words else None
        return Entry(kind, name, int(mode, 8) & 0o777, mtime_ns, size, target, words.get("error", ""), known)
