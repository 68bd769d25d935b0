"""Trees to and from files: what is read comes back as it was, and a hostile sender writes nowhere else."""

from __future__ import annotations

import os
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvc.channel.frames import ProtocolError
from pvc.channel.trees import Content, Entry, TreeReader, check_name, pack_crc, pack_entry
from pvc.errors import HostError, PvcError
from pvc.ops.treefiles import TreeWriter, measure, read_tree

DIR = Entry("dir", "top", 0o755)
END = pack_entry(Entry("end"))


def file(name: str, data: bytes = b"data", **changes: int) -> bytes:
    entry = Entry("file", name, **({"mode": 0o644, "size": len(data)} | changes))  # type: ignore[arg-type]
    return pack_entry(entry) + data + pack_crc(zlib.crc32(data))


def write(target: Path, data: bytes, **options: bool) -> TreeWriter:
    writer = TreeWriter(os.fspath(target), **options)
    try:
        writer.feed(data)
    finally:
        writer.close()
    return writer


def make_tree(top: Path) -> None:
    (top / "a/b").mkdir(parents=True)
    (top / "a/empty").write_bytes(b"")
    (top / "a/b/large").write_bytes(os.urandom(700_000))
    (top / "a/b/large").chmod(0o640)
    (top / "script").write_text("#!/bin/sh\n")
    (top / "script").chmod(0o755)
    (top / "link").symlink_to("a/empty")
    (top / "nowhere").symlink_to("/no/such/place")
    (top / "näme\n").write_text("odd")
    os.utime(top / "script", ns=(5, 1_234_567_890_123_456_789))
    os.utime(top / "a", ns=(5, 1_000_000_000_000_000_001))
    (top / "a/b").chmod(0o500)


def describe(top: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted([top, *top.rglob("*")]):
        facts = path.lstat()
        link = os.readlink(path) if path.is_symlink() else None
        data = path.read_bytes() if path.is_file() and link is None else None
        time = None if link is not None else facts.st_mtime_ns
        found[os.fspath(path.relative_to(top))] = (facts.st_mode, time, link, data)
    return found


@pytest.mark.parametrize("size", [1, 100, 65536])
def test_a_tree_comes_back(tmp_path: Path, size: int) -> None:
    make_tree(tmp_path / "top")
    complaints: list[str] = []
    data = b"".join(read_tree(os.fspath(tmp_path / "top"), complaints.append))
    (tmp_path / "out").mkdir()
    writer = TreeWriter(os.fspath(tmp_path / "out"))
    for at in range(0, len(data), size if size > 1 else 997):
        writer.feed(data[at : at + (size if size > 1 else 997)])
    writer.close()
    assert (writer.complete, complaints, writer.files) == (True, [], 4)
    assert describe(tmp_path / "out/top") == describe(tmp_path / "top")
    assert writer.bytes == measure(os.fspath(tmp_path / "top")) == 700_000 + 10 + 3
    # Under a new name, and once more over what is there now.
    write(tmp_path / "other", data)
    (tmp_path / "other/script").write_text("changed")
    write(tmp_path / "other2", data)
    assert describe(tmp_path / "other2") == describe(tmp_path / "top")


def test_names(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    data = b"".join(read_tree(os.fspath(tmp_path / "one"), print))
    write(tmp_path / "two", data)
    assert (tmp_path / "two").read_text() == "1"
    (tmp_path / "directory").mkdir()
    write(tmp_path / "directory", data)
    assert (tmp_path / "directory/one").read_text() == "1"
    for path, into in (("two", True), ("no/such/place", False), ("new/", False)):
        with pytest.raises(HostError):
            TreeWriter(f"{tmp_path}/{path}", into=into)
    (tmp_path / "directory/top").mkdir()
    with pytest.raises(HostError, match="Is a directory"):
        write(tmp_path / "directory", file("top"))
    assert sorted(os.listdir(tmp_path)) == ["directory", "one", "two"]


@pytest.mark.parametrize(
    "name", ["", "/etc/x", "../x", "top/../../x", "top//x", "top/.", "top/", "x/" * 200 + "y", "n" * 5000]
)
def test_names_that_lead_elsewhere(name: str) -> None:
    with pytest.raises(ProtocolError):
        check_name(name)


def test_nothing_is_written_outside(tmp_path: Path) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    (outside / "victim").write_text("mine")
    target.mkdir()
    (target / "way").symlink_to(outside)
    link = pack_entry(Entry("link", "top/way", target=os.fspath(outside)))
    evil = [
        pack_entry(DIR) + link + file("top/way/new") + END,
        pack_entry(DIR) + link + pack_entry(Entry("dir", "top/way", 0o777)) + END,
        pack_entry(DIR)
        + pack_entry(Entry("link", "top/f", target=os.fspath(outside / "victim")))
        + file("top/f/x")
        + END,
        pack_entry(Entry("dir", "way", 0o777)) + file("way/new") + END,
        pack_entry(Entry("link", "way", target="/")) + file("way/new") + END,
        pack_entry(DIR) + file("other/x") + END,
        file("top/x") + END,
        pack_entry(DIR) + pack_entry(DIR) + END,
        b"\xff\xff\xff\xff",
        b"\x04\0\0\0abcd",
        pack_entry(Entry("file", "x", size=1 << 61)) + b"x" * 100,
        pack_entry(Entry("file", "x", 0o644, size=4)) + b"data" + pack_crc(1),
    ]
    for data in evil:
        with pytest.raises((PvcError, ProtocolError)):
            write(target, data)
        assert [path.name for path in outside.iterdir()] == ["victim"]
        assert (outside / "victim").read_text() == "mine"
        assert not [name for name in os.listdir(target) if name != "way"], data
    # A link is replaced, not followed; set-uid bits and times beyond all measure are dropped.
    (target / "f").symlink_to(outside / "victim")
    write(target, file("f", b"other", mode=0o4755, mtime_ns=10**26) + END)
    assert (outside / "victim").read_text() == "mine"
    assert (target / "f").read_text() == "other"
    assert (target / "f").lstat().st_mode & 0o7777 == 0o755


def test_what_is_broken_off_or_bad_leaves_nothing(tmp_path: Path) -> None:
    whole = pack_entry(DIR) + file("top/a") + pack_entry(Entry("dir", "top/d", 0o500)) + file("top/d/b") + END
    for length in range(0, len(whole), 7):
        assert not write(tmp_path, whole[:length]).complete
        assert os.listdir(tmp_path) == []
    bad = pack_entry(Entry("bad", "top/a", error="I/O error\x1b[2J"))
    writer = write(tmp_path, pack_entry(DIR) + file("top/a") + bad + file("top/c") + END)
    assert writer.complete
    assert writer.problems == ["top/a: I/O error?[2J"]
    assert os.listdir(tmp_path / "top") == ["c"]


@settings(max_examples=60)
@given(st.binary(max_size=400), st.integers(0, 200))
def test_noise(noise: bytes, keep: int) -> None:
    good = pack_entry(DIR) + file("top/a") + END
    reader = TreeReader()
    try:
        for part in (good[:keep], noise):
            assert all(isinstance(item, Entry | Content) for item in reader.feed(part))
    except ProtocolError:
        pass
    with tempfile.TemporaryDirectory() as base:
        inner = Path(base, "inner")
        inner.mkdir()
        with suppress(PvcError, ProtocolError):
            write(inner, good[:keep] + noise)
        assert os.listdir(base) == ["inner"]


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    os.mkfifo(tmp_path / "top/pipe")
    (tmp_path / "top/good").write_text("x")
    complaints: list[str] = []
    data = b"".join(read_tree(os.fspath(tmp_path / "top"), complaints.append))
    assert complaints == [f"{tmp_path}/top/pipe: neither a file, a directory nor a link: left out"]
    write(tmp_path / "out", data)
    assert os.listdir(tmp_path / "out") == ["good"]
