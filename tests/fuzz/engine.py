# SPDX-License-Identifier: Apache-2.0
"""Bytes for parsers: what is in the corpus, changed; what reaches new lines of pvc is changed again.

hypothesis has the property tests of the unit suite; it knows nothing of coverage and is not meant to run for hours.
A target takes bytes and returns, or raises what its parser documents; all else, an answer that never comes and an
appetite without bounds are crashes. From one seed comes one sequence of inputs, as long as the code is the same.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
_PVC = str(Path(__file__).parents[2] / "pvc")
_LIMIT_S = 20
_MOST = 1 << 17
_NUMBERS = (0, 1, -1, 7, 8, 127, 128, 255, 256, 512, 4095, 65535, 65536, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)
# What parsers have fallen over: depth, thousands of digits, numbers that are none, halves of characters, zero bytes.
_WORDS: tuple[bytes, ...] = (
    *(b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"0x" + b"f" * 5000, b"1e999", b"-1e999", b"NaN", b"-Infinity"),
    *(b'"\\ud800"', b'"\\u0000"', b"\0", b"\n", b"\r", b"\x1b[2J", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xae"),
    *("²".encode(), "٣".encode(), b"-1", b"1_0", b"0o7", b"null", b"true", b"{}", b"[]", b'""', b"../", b"/", b"~"),
    *(b"*a", b"&a", b"<<: *a", b"!!int ", b"!!float ", b"!!binary ", b"? ", b"=", b";", b":", b",", b"%", b"{", b"]"),
)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1 << 64, 10**400, 1.5, -0.0, 1e308, "", "x", "\0", "\ud800", "../x", "a" * 300, "²"),
    *([], {}, [[]], [None], {"": None}, "9" * 30, "\x1b[2J", "\n", "\u202e"),
)


class Hang(BaseException):
    """A target does not come to an end."""


@dataclass
class CrashError(Exception):
    """What a target must not do, and the input that made it do so."""

    target: str
    data: bytes
    text: str

    def __str__(self) -> str:
        return f"{self.target}: {self.text}\ninput ({len(self.data)} bytes): {self.data[:400]!r}"


@dataclass(frozen=True)
class Target:
    """``run`` takes the bytes; ``allowed`` is what it may raise."""

    name: str
    run: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...] = ()


@dataclass
class _Seen:
    """Lines of pvc that were reached, one after another."""

    pairs: set[tuple[CodeType, int, int]] = field(default_factory=set)

    @contextmanager
    def watching(self) -> Iterator[None]:
        pairs, last = self.pairs, 0

        def local(frame: FrameType, event: str, _: object) -> Any:
            nonlocal last
            if event == "line":
                pairs.add((frame.f_code, last, frame.f_lineno))
                last = frame.f_lineno
            return local

        def enter(frame: FrameType, _event: str, _: object) -> Any:
            return local if frame.f_code.co_filename.startswith(_PVC) else None

        before = sys.gettrace()
        sys.settrace(enter)
        try:
            yield
        finally:
            sys.settrace(before)


def read_corpus(name: str) -> list[tuple[str, bytes]]:
    """The inputs that are kept, by name."""
    return [(path.name, path.read_bytes()) for path in sorted((CORPUS / name).glob("*"))]


def try_one(target: Target, data: bytes) -> None:
    """:raise CrashError: the target does what it must not."""

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_LIMIT_S)
    try:
        target.run(data)
    except target.allowed:
        pass
    except Hang:
        raise CrashError(target.name, data, f"no answer after {_LIMIT_S} s") from None
    except Exception as err:
        last = traceback.extract_tb(err.__traceback__)[-1]
        text = f"{type(err).__name__}: {str(err)[:300]} ({last.filename}:{last.lineno})"
        raise CrashError(target.name, data, text) from err
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def explore(target: Target, *, seed: int, runs: int | None = None, seconds: float | None = None) -> int:
    """Try inputs until there were so many, or for so long; returns how many there were.

    :raise CrashError: one of them is too much for the target.
    """
    chance = random.Random(seed)
    pool = [data for _, data in read_corpus(target.name)] or [b""]
    seen, done = _Seen(), 0
    ends = time.monotonic() + seconds if seconds is not None else None
    while (runs is None or done < runs) and (ends is None or ends > time.monotonic()):
        data = pool[done] if done < len(pool) else change(chance, pool)
        before = len(seen.pairs)
        with seen.watching():
            try_one(target, data)
        if len(seen.pairs) > before and done >= len(pool) and len(data) <= 4096:
            pool.append(data)
        done += 1
    return done


def keep_crash(crash: CrashError) -> Path:
    """Put its input into the corpus, where the tests find it from now on."""
    path = CORPUS / crash.target / f"crash-{sha256(crash.data).hexdigest()[:12]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(crash.data)
    return path


def change(chance: random.Random, pool: Sequence[bytes]) -> bytes:
    """Another input, made of those that there are."""
    data = chance.choice(pool)
    if chance.random() < 0.5:
        found = _change_json(chance, data)
        if found is not None:
            return found
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        data = chance.choice(_CHANGES)(chance, data, pool)
    return data[:_MOST]


def _place(chance: random.Random, data: bytes) -> tuple[int, int]:
    begin = chance.randint(0, len(data))
    return begin, min(len(data), begin + chance.choice((0, 1, 1, 2, 4, 8, 32, 512)))


def _flip(chance: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = chance.randrange(len(data)) if data else 0
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8) if data else chance.randrange(256)]) + data[at + 1 :]


def _remove(chance: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    begin, end = _place(chance, data)
    return data[:begin] + data[end:]


def _repeat(chance: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    begin, end = _place(chance, data)
    return data[:end] + data[begin:end] * chance.choice((1, 2, 10, 300)) + data[end:]


def _number(chance: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    size = chance.choice((1, 2, 4, 8))
    packed = (chance.choice(_NUMBERS) & ((1 << 8 * size) - 1)).to_bytes(size, chance.choice(("little", "big")))
    at = chance.randint(0, len(data))
    return data[:at] + packed + data[at + size :]


def _word(chance: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    begin, end = _place(chance, data)
    return data[:begin] + chance.choice(_WORDS) + data[end:]


def _line(chance: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    lines = data.split(b"\n")
    lines.insert(chance.randint(0, len(lines)), chance.choice(lines))
    return b"\n".join(lines)


def _splice(chance: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    other = chance.choice(pool)
    begin, end = _place(chance, data)
    first = chance.randint(0, len(other))
    return data[:begin] + other[first : first + chance.choice((4, 64, 4096))] + data[end:]


_CHANGES = (_flip, _flip, _remove, _repeat, _number, _word, _word, _line, _splice)


def _change_json(chance: random.Random, data: bytes) -> bytes | None:
    """A document whose shape stays: one of its values becomes another, goes, or comes twice. None: it is none."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    holder = {"": document}
    places: list[tuple[Any, Any]] = []
    waiting: list[Any] = [holder]
    while waiting and len(places) < 1000:
        each = waiting.pop()
        keys: Sequence[Any] = list(each) if isinstance(each, dict) else range(len(each))
        places += [(each, key) for key in keys]
        waiting += [each[key] for key in keys if isinstance(each[key], dict | list)]
    for _ in range(chance.choice((1, 1, 2, 3))):
        container, key = chance.choice(places)
        there = key in container if isinstance(container, dict) else key < len(container)
        if not there:
            continue
        match chance.randrange(6):
            case 0 if container is not holder:
                del container[key]
            case 1 if isinstance(container, dict) and container is not holder:
                container[chance.choice(("", "x", key + "x"))] = container[key]
            case 2:
                container[key] = [container[key]] * chance.choice((1, 2, 300))
            case 3 if isinstance(container[key], int):
                container[key] += chance.choice((-1, 1, 1 << 32, -(1 << 40)))
            case 4 if isinstance(container[key], str):
                container[key] += str(chance.choice(("\0", "\n", "/", "x" * 200, "\ud800", ":", "²")))
            case _:
                container[key] = chance.choice(_VALUES)
    try:
        return json.dumps(holder[""]).encode() + b"\n" * data.endswith(b"\n")
    except (ValueError, RecursionError):
        return None
