# SPDX-License-Identifier: Apache-2.0
"""Frames of pvc-agent(7), "Frames" and "Sessions": how they are packed, and a decoder that believes nothing."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from pvc.texts import clean_text

HEADER = struct.Struct("<BBHII")
CHECK = 0x5650
MAX_PAYLOAD = 1 << 16
PROTOCOL = 1
MAGIC = b"\x89pvc-agent\r\n\x1a\n\0\0"
_IDS = struct.Struct("<QQ")
_CREDIT = struct.Struct("<I")
HELLO_BYTES = len(MAGIC) + _IDS.size
# A receiver in the middle of anything has passed its end after so many zeros.
SYNC = bytes(MAX_PAYLOAD + HEADER.size - 1)
# Numbers of streams that the guest's side opens begin here.
FROM_AGENT = 1 << 31
# What the agent grants a stream (pvc-agent(7)); both sides of pvc do the same.
WINDOW = 1 << 20
# What a client of a supervisor may grant in all: the supervisor keeps no more for it.
CLIENT_BUDGET = 1 << 24
SECOND = 1  # the flag of DATA: standard error
_NOT_ZERO = re.compile(rb"[^\0]")
_KEY = re.compile(rb"[a-z0-9-]{1,32}=")


class Kind(IntEnum):
    """Types of frames."""

    HELLO = 1
    PING = 2
    PONG = 3
    OPEN = 4
    DATA = 5
    END = 6
    CREDIT = 7
    NOTE = 8
    CLOSE = 9


class ProtocolError(ValueError):
    """What came is no frame, or not at this time."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame."""

    kind: Kind
    stream: int
    payload: bytes = b""
    flags: int = 0


@dataclass(frozen=True)
class Hello:
    """What begins a session; 0: none, or not known."""

    session: int
    agent: int
    protocol: int
    release: str


def pack(kind: Kind, stream: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    """A frame as bytes.

    :raise ValueError: the payload is too long.
    """
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a frame has at most {MAX_PAYLOAD} bytes")
    return HEADER.pack(kind, flags, CHECK, stream, len(payload)) + payload


def pack_frame(frame: Frame) -> bytes:
    """A frame as bytes."""
    return HEADER.pack(frame.kind, frame.flags, CHECK, frame.stream, len(frame.payload)) + frame.payload


def pack_hello(hello: Hello) -> bytes:
    """A HELLO with the zeros before it."""
    words = pack_words([("protocol", str(hello.protocol)), ("release", hello.release)])
    return SYNC + pack(Kind.HELLO, 0, MAGIC + _IDS.pack(hello.session, hello.agent) + words)


def parse_hello(payload: bytes) -> Hello:
    """:raise ProtocolError: it is not one."""
    if len(payload) < HELLO_BYTES or not payload.startswith(MAGIC):
        raise ProtocolError("a HELLO without its mark")
    session, agent = _IDS.unpack_from(payload, len(MAGIC))
    words = dict(parse_words(payload[HELLO_BYTES:]))
    protocol = words.get("protocol", "")
    if not protocol.isdecimal() or len(protocol) > 6:
        raise ProtocolError("a HELLO without the version of its protocol")
    return Hello(session, agent, int(protocol), clean_text(words.get("release", ""), 40))


def pack_credit(count: int) -> bytes:
    """The payload of CREDIT."""
    return _CREDIT.pack(count)


def parse_credit(payload: bytes) -> int:
    """:raise ProtocolError: it is none, or grants nothing."""
    if len(payload) != _CREDIT.size or not any(payload):
        raise ProtocolError("a CREDIT of nothing")
    count: int = _CREDIT.unpack(payload)[0]
    return count


def pack_words(pairs: Iterable[tuple[str, str]]) -> bytes:
    """KEY=VALUE, each ended by a zero byte.

    :raise ValueError: a key or a value cannot be one.
    """
    found = bytearray()
    for key, value in pairs:
        word = key.encode("ascii", "replace") + b"=" + value.encode(errors="surrogateescape")
        if b"\0" in word or _KEY.match(word) is None:
            raise ValueError(f"{key!r} cannot be a word of a frame")
        found += word + b"\0"
    if len(found) > MAX_PAYLOAD:
        raise ValueError(f"a request has at most {MAX_PAYLOAD} bytes")
    return bytes(found)


def parse_words(payload: bytes) -> list[tuple[str, str]]:
    """The pairs in their order; bytes that are not UTF-8 become surrogates.

    :raise ProtocolError: they are not words.
    """
    if not payload:
        return []
    if payload[-1]:
        raise ProtocolError("words that do not end")
    found = []
    for word in payload[:-1].split(b"\0"):
        if _KEY.match(word) is None:
            raise ProtocolError("a word without a key")
        key, _, value = word.partition(b"=")
        found.append((key.decode(), value.decode(errors="surrogateescape")))
    return found


class Decoder:
    """Takes bytes as they come and gives frames.

    It begins out of step: all before the first HELLO is dropped. After an error ``lose_step`` makes it so again.
    """

    def __init__(self, *, in_step: bool = False) -> None:
        self.in_step = in_step
        self._buffer = bytearray()
        self._skipped = 0

    def lose_step(self) -> None:
        """Drop all until the next HELLO."""
        self.in_step = False

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """The frames that are complete now; an error after some of them is raised by the next call.

        :raise ProtocolError: what follows is no frame. The decoder is out of step then.
        """
        buffer = self._buffer
        buffer += data
        found: list[Frame] = []
        at = 0
        try:
            while True:
                if not self.in_step:
                    at = self._find_hello(at)
                    if not self.in_step:
                        break
                frame, at = self._next(at)
                if frame is None:
                    break
                found.append(frame)
        except ProtocolError:
            if not found:
                self.in_step = False
                at += 1
                raise
        finally:
            del buffer[:at]
        return found

    def _next(self, at: int) -> tuple[Frame | None, int]:
        """The frame at or after ``at`` and where it ends; None: not complete yet."""
        buffer = self._buffer
        if at < len(buffer) and not buffer[at]:
            match = _NOT_ZERO.search(buffer, at)
            at = len(buffer) if match is None else match.start()
        if len(buffer) - at < HEADER.size:
            return None, at
        kind, flags, check, stream, length = HEADER.unpack_from(buffer, at)
        if check != CHECK or length > MAX_PAYLOAD or not Kind.HELLO <= kind <= Kind.CLOSE or flags > SECOND:
            raise ProtocolError("what came is no frame")
        start, end = at + HEADER.size, at + HEADER.size + length
        if len(buffer) < end:
            return None, at
        with memoryview(buffer) as view:
            payload = bytes(view[start:end])
        return Frame(Kind(kind), stream, payload, flags), end

    def _find_hello(self, at: int) -> int:
        """Where the next HELLO begins (then the decoder is in step), or where it may begin."""
        buffer = self._buffer
        found = buffer.find(MAGIC, at)
        while found >= 0:
            start = found - HEADER.size
            if start >= at:
                kind, flags, check, stream, length = HEADER.unpack_from(buffer, start)
                if (kind, flags, check, stream) == (Kind.HELLO, 0, CHECK, 0) and HELLO_BYTES <= length <= 1024:
                    self.in_step = True
                    return start
            found = buffer.find(MAGIC, found + 1)
        return max(at, len(buffer) - HEADER.size - len(MAGIC) + 1)
