"""Trees of pvc-agent(7): records of files and directories. A reader believes nothing of what it reads."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from pvc.channel.frames import ProtocolError, pack_words, parse_words

_LENGTH = struct.Struct("<I")
MAX_WORDS = 8192
MAX_NAME = 4096
MAX_DEPTH = 130
MAX_SIZE = 1 << 62
_MTIME = re.compile(r"(-?[0-9]{1,18})(?:\.([0-9]{9}))?")


@dataclass(frozen=True)
class Entry:
    """A record: ``kind`` is dir, file, link, bad or end; ``target`` of a link, ``error`` of what is bad."""

    kind: str
    name: str = ""
    mode: int = 0
    mtime_ns: int = 0
    size: int = 0
    target: str = ""
    error: str = ""


@dataclass(frozen=True)
class Content:
    """The next bytes of the file before; ``last``: all of it, and its checksum was right."""

    data: bytes
    last: bool


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
    if entry.kind == "link":
        words.append(("target", entry.target))
    if entry.kind == "bad":
        words.append(("error", entry.error))
    packed = pack_words(words)
    if len(packed) > MAX_WORDS:
        raise ValueError(f"the name {entry.name[:60]!r}... is too long")
    return _LENGTH.pack(len(packed)) + packed


def pack_crc(crc: int) -> bytes:
    """What follows a file's bytes."""
    return _LENGTH.pack(crc)


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
        self._left = -1  # of a file's bytes; -1: a record comes next
        self._crc = 0
        self._top: str | None = None

    def feed(self, data: bytes) -> Iterator[Entry | Content]:
        """What is complete.

        :raise ProtocolError: it is no tree.
        """
        self._buffer += data
        while not self.ended:
            if self._left >= 0:
                if self._left > 0:
                    part = bytes(self._buffer[: self._left])
                    if not part:
                        return
                    del self._buffer[: len(part)]
                    self._left -= len(part)
                    self._crc = zlib.crc32(part, self._crc)
                    yield Content(part, last=False)
                    continue
                if len(self._buffer) < _LENGTH.size:
                    return
                if _LENGTH.unpack_from(self._buffer)[0] != self._crc:
                    raise ProtocolError("a checksum is wrong: something was changed on its way")
                del self._buffer[: _LENGTH.size]
                self._left = -1
                yield Content(b"", last=True)
                continue
            entry = self._next()
            if entry is None:
                return
            yield entry

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
            self._left, self._crc = entry.size, 0
        self.ended = entry.kind == "end"
        return entry

    def _parse(self, payload: bytes) -> Entry:
        words = dict(parse_words(payload))
        kind = words.get("type", "")
        if kind == "end":
            return Entry(kind)
        if kind not in ("dir", "file", "link", "bad"):
            raise ProtocolError("a record of no known type")
        name = words.get("name", "")
        parts = check_name(name)
        if self._top is None and len(parts) == 1:
            self._top = parts[0]
        if parts[0] != self._top:
            raise ProtocolError("a file that does not belong to the tree")
        mtime = _MTIME.fullmatch(words.get("mtime", "0"))
        size, mode = words.get("size", "0"), words.get("mode", "0")
        if mtime is None or not size.isdecimal() or len(size) > 19 or re.fullmatch("[0-7]{1,5}", mode) is None:
            raise ProtocolError("a record that is not understood")
        if int(size) > MAX_SIZE:
            raise ProtocolError("a file that is too large")
        mtime_ns = int(mtime[1]) * 1_000_000_000 + int(mtime[2] or 0)
        target = words.get("target", "")
        if kind == "link" and not 0 < len(target) <= MAX_NAME:
            raise ProtocolError("a link without a target")
        return Entry(kind, name, int(mode, 8) & 0o777, mtime_ns, int(size), target, words.get("error", ""))
