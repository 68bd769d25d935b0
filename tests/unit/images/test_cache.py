# SPDX-License-Identifier: Apache-2.0
"""Copies of images on a node: whole or not there, made once, and never taken from under somebody."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from pvc.images.cache import NodeCache, Outcome
from tests.unit.images.faults import boundaries, die

MIB = 1 << 20


def never() -> bool:
    return False


def make(base: Path, number: int, size: int = 2 * MIB) -> Path:
    """A file as repositories have it."""
    data = bytes([number]) * (size - 3 * 4096) + bytes(3 * 4096)
    path = base / "data" / hashlib.sha256(data).hexdigest()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture
def where(tmp_path: Path) -> Path:
    path = tmp_path / "cache"
    path.mkdir(mode=0o700)
    return path


def fill(cache: NodeCache, source: Path) -> Outcome:
    return cache.fill(source, source.name, never)


def names(where: Path) -> set[str]:
    return set(os.listdir(where))


def test_a_copy_is_whole_and_made_once(tmp_path: Path, where: Path) -> None:
    cache, source = NodeCache(where, 10 * MIB), make(tmp_path, 1)
    assert cache.hold(source.name, 2 * MIB) is None
    assert fill(cache, source) is Outcome.FILLED
    assert fill(cache, source) is Outcome.THERE
    assert cache.path_of(source.name).read_bytes() == source.read_bytes()
    assert cache.path_of(source.name).stat().st_mode & 0o777 == 0o400
    fd = cache.hold(source.name, 2 * MIB)
    assert fd is not None
    os.close(fd)
    assert cache.hold(source.name, 3 * MIB) is None
    assert names(where) == {source.name}


def test_a_damaged_file_gets_no_copy(tmp_path: Path, where: Path) -> None:
    cache, source = NodeCache(where, 10 * MIB), make(tmp_path, 1)
    with source.open("r+b") as stream:
        stream.seek(MIB)
        stream.write(b"x")
    assert fill(cache, source) is Outcome.DAMAGED
    assert cache.fill(source, source.name, lambda: True) is Outcome.STOPPED
    assert names(where) == set()


def test_what_was_used_longest_ago_goes_and_what_is_in_use_stays(tmp_path: Path, where: Path) -> None:
    cache = NodeCache(where, 5 * MIB)
    first, second, third, fourth = (make(tmp_path, number) for number in range(1, 5))
    for at, each in enumerate((first, second)):
        assert fill(cache, each) is Outcome.FILLED
        os.utime(cache.path_of(each.name), (at, at))
    held = cache.hold(first.name, 2 * MIB)  # now used last
    assert held is not None
    assert fill(cache, third) is Outcome.FILLED
    assert names(where) == {first.name, third.name}
    also = cache.hold(third.name, 2 * MIB)
    assert also is not None
    assert fill(cache, fourth) is Outcome.NO_ROOM
    assert names(where) == {first.name, third.name}
    os.close(held)
    assert fill(cache, fourth) is Outcome.FILLED
    assert names(where) == {third.name, fourth.name}
    os.close(also)
    # What does not fit into an empty one drives nothing out.
    assert fill(NodeCache(where, MIB), first) is Outcome.NO_ROOM
    assert names(where) == {third.name, fourth.name}


def test_killed_at_any_call_a_copy_is_whole_or_not_there(tmp_path: Path, where: Path) -> None:
    cache, source, other = NodeCache(where, 3 * MIB), make(tmp_path, 1), make(tmp_path, 2)

    def prepare() -> None:
        for path in where.iterdir():
            path.unlink()
        assert fill(cache, other) is Outcome.FILLED

    calls = 0
    for _ in boundaries(lambda: fill(cache, source), die, prepare):
        for path in where.iterdir():
            if path.name == source.name:
                assert path.read_bytes() == source.read_bytes()
        assert fill(cache, source) in {Outcome.FILLED, Outcome.THERE}
        assert names(where) == {source.name}
        calls += 1
    assert calls >= 6


@pytest.mark.parametrize("others", ["same", "another"])
def test_another_filler_at_any_call(tmp_path: Path, where: Path, others: str) -> None:
    """One fills, the other is told so; what the other evicts is not what the first one fills."""
    cache, source = NodeCache(where, 3 * MIB), make(tmp_path, 1)
    other = source if others == "same" else make(tmp_path, 2)
    seen = set()

    def prepare() -> None:
        for path in where.iterdir():
            path.unlink()

    def intrude() -> None:
        found = fill(cache, other)
        with (tmp_path / "outcomes").open("a") as stream:
            stream.write(f"{found}\n")

    for _ in boundaries(lambda: fill(cache, source), intrude, prepare):
        for path in where.iterdir():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        seen |= names(where)
        assert names(where)
    assert source.name in seen
    outcomes = set((tmp_path / "outcomes").read_text().split("\n"))
    assert "busy" in outcomes or others == "another"


def test_many_that_start_at_once_fill_once(tmp_path: Path, where: Path) -> None:
    """Each tells its outcome; just one has filled, and all who look afterwards have the copy."""
    source = make(tmp_path, 1, 8 * MIB)
    inside, outside = os.pipe()
    begin, go = os.pipe()
    children = []
    for _ in range(16):
        child = os.fork()
        if not child:
            try:
                os.close(go)
                os.read(begin, 1)
                found = fill(NodeCache(where, 20 * MIB), source)
                os.write(outside, found.value.encode() + b"\n")
            finally:
                os._exit(0)
        children.append(child)
    os.close(go)
    os.close(outside)
    said = b""
    while data := os.read(inside, 4096):
        said += data
    for child in children:
        os.waitpid(child, 0)
    for fd in (inside, begin):
        os.close(fd)
    outcomes = said.decode().split()
    assert outcomes.count("filled") == 1
    assert set(outcomes) <= {"filled", "busy", "there"}
    assert len(outcomes) == 16
    assert names(where) == {source.name}
