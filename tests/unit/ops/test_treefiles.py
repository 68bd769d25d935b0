# SPDX-License-Identifier: Apache-2.0
"""Trees to and from files: what is read comes back as it was, and a hostile sender writes nowhere else."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvc.channel.frames import ProtocolError
from pvc.channel.trees import Content, Entry, FilePacker, Hole, TreeReader, check_name, pack_entry
from pvc.errors import HostError, PvcError
from pvc.ops.treefiles import Sent, TreeWriter, leads_out, measure, read_tree

DIR = Entry("dir", "top", 0o755)
END = pack_entry(Entry("end"))
UMASK = os.umask(0o022)
os.umask(UMASK)


def file(name: str, data: bytes = b"data", **changes: int) -> bytes:
    entry = Entry("file", name, **({"mode": 0o644, "size": len(data)} | changes))  # type: ignore[arg-type]
    return pack_entry(entry) + pieces(data)


def pieces(*parts: bytes | int) -> bytes:
    packer = FilePacker()
    found = b"".join(packer.pack_hole(each) if isinstance(each, int) else packer.pack(each) for each in parts if each)
    return found + packer.end()


def write(target: Path, data: bytes, name: str = "top", **options: bool) -> TreeWriter:
    writer = TreeWriter(os.fspath(target), name, **options)
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
    sent = Sent()
    data = b"".join(read_tree(os.fspath(tmp_path / "top"), sent))
    (tmp_path / "out").mkdir()
    writer = TreeWriter(os.fspath(tmp_path / "out"), "top", links=True)
    for at in range(0, len(data), size if size > 1 else 997):
        writer.feed(data[at : at + (size if size > 1 else 997)])
    writer.close()
    assert (writer.complete, sent.complaints, sent.notes, writer.files) == (True, [], [], 4)
    assert (sent.bytes, sent.files) == (writer.bytes, writer.files)
    assert describe(tmp_path / "out/top") == describe(tmp_path / "top")
    assert writer.bytes == measure(os.fspath(tmp_path / "top")) == 700_000 + 10 + 3
    # Under a new name, and once more over what is there now.
    write(tmp_path / "other", data, links=True)
    (tmp_path / "other/script").write_text("changed")
    (tmp_path / "other/a").chmod(0o700)
    write(tmp_path, data, "other", links=True)
    assert (tmp_path / "other/script").read_text() == "#!/bin/sh\n"
    # A directory that was there is its owner's: only what is new gets modes and times.
    assert stat.S_IMODE((tmp_path / "other/a").stat().st_mode) == 0o700
    write(tmp_path / "other2", data, links=True)
    assert describe(tmp_path / "other2") == describe(tmp_path / "top")


def test_names(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    data = b"".join(read_tree(os.fspath(tmp_path / "one"), Sent()))
    write(tmp_path / "two", data)
    assert (tmp_path / "two").read_text() == "1"
    (tmp_path / "directory").mkdir()
    write(tmp_path / "directory", data, "asked")
    assert (tmp_path / "directory/asked").read_text() == "1"
    for path, into in (("two", True), ("no/such/place", False), ("new/", False)):
        with pytest.raises(HostError):
            TreeWriter(f"{tmp_path}/{path}", "top", into=into)
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
        pack_entry(Entry("link", "way", target="/")) + file("way/new") + END,
        pack_entry(Entry("link", "top", target=os.fspath(outside / "victim"))) + END,
        pack_entry(DIR) + file("other/x") + END,
        file("top/x") + END,
        pack_entry(DIR) + pack_entry(DIR) + END,
        b"\xff\xff\xff\xff",
        b"\x04\0\0\0abcd",
        pack_entry(Entry("file", "x", size=1 << 61)) + b"x" * 100,
        pack_entry(Entry("file", "x", 0o644, size=4)) + pieces(b"data")[:-1] + b"?",
    ]
    for data in evil:
        with pytest.raises((PvcError, ProtocolError)):
            write(target, data, links=True)
        assert [path.name for path in outside.iterdir()] == ["victim"]
        assert (outside / "victim").read_text() == "mine"
        assert not [name for name in os.listdir(target) if name != "way"], data
    # So with the name that was asked for.
    with pytest.raises(HostError):
        write(target, pack_entry(DIR) + file("top/new") + END, "way")
    assert [path.name for path in outside.iterdir()] == ["victim"]
    # A link is replaced, not followed; set-uid bits and times beyond all measure are dropped, as our umask says.
    (target / "f").symlink_to(outside / "victim")
    write(target, file("f", b"other", mode=0o7777, mtime_ns=10**26) + END, "f")
    assert (outside / "victim").read_text() == "mine"
    assert (target / "f").read_text() == "other"
    assert stat.S_IMODE((target / "f").lstat().st_mode) == 0o777 & ~UMASK


def test_modes_are_bounded_by_our_umask(tmp_path: Path) -> None:
    tree = pack_entry(Entry("dir", "top", 0o7777)) + file("top/a", mode=0o6666) + END
    before = os.umask(0o077)
    try:
        write(tmp_path, tree)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "top").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "top/a").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("name", "target", "out"),
    [
        ("top/a", "b", False),
        ("top/a", "./b/c", False),
        ("top/d/e/a", "../../b", False),
        ("top/a", "/etc/passwd", True),
        ("top/a", "../.bashrc", True),
        ("top/d/a", "../../x", True),
        ("top/d/a", "./.././../x", True),
        # Where b is a link to a directory, b/.. is above that.
        ("top/d/a", "b/../x", True),
        ("top/d/a", "..", False),
    ],
)
def test_links_that_lead_out(tmp_path: Path, name: str, target: str, *, out: bool) -> None:
    entry = Entry("link", name, target=target)
    assert leads_out(entry) == out
    above = b"".join(pack_entry(Entry("dir", "top/d/e"[:length], 0o755)) for length in (3, 5, 7))
    tree = above + pack_entry(entry) + file("top/z") + END
    writer = write(tmp_path / "there", tree)
    assert writer.complete
    assert (tmp_path / "there/z").read_text() == "data"
    shown = name.replace("top", "there", 1)
    assert writer.problems == ([f"{shown}: a link to {target}: left out (see --links)"] if out else [])
    assert (tmp_path / shown).is_symlink() != out
    assert write(tmp_path / "with", tree, links=True).problems == []
    assert os.readlink(tmp_path / name.replace("top", "with", 1)) == target


def test_complaints_without_end_are_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="complaints"):
        write(tmp_path, pack_entry(DIR) + pack_entry(Entry("bad", "top/a", error="no")) * 2000 + END)
    assert os.listdir(tmp_path) == []


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
            assert all(isinstance(item, Entry | Content | Hole) for item in reader.feed(part))
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
    sent = Sent()
    data = b"".join(read_tree(os.fspath(tmp_path / "top"), sent))
    assert sent.complaints == [f"{tmp_path}/top/pipe: neither a file, a directory nor a link: left out"]
    write(tmp_path / "out", data)
    assert os.listdir(tmp_path / "out") == ["good"]


@pytest.mark.parametrize("parts", [(), (b"ab",), (5,), (b"a", 1 << 40, b"b"), (b"a", 70_000), (3, b"x", b"y", 4)])
def test_pieces(tmp_path: Path, parts: tuple[bytes | int, ...]) -> None:
    data = pack_entry(Entry("file", "top", 0o644, size=9, stored=2)) + pieces(*parts) + END
    writer = write(tmp_path / "x", data)
    size = sum(part if isinstance(part, int) else len(part) for part in parts)
    assert (writer.complete, (tmp_path / "x").stat().st_size) == (True, size)
    assert writer.bytes == sum(len(part) for part in parts if isinstance(part, bytes))
    assert (tmp_path / "x").stat().st_blocks * 512 <= 8192
    for length in range(len(data) - len(END)):
        assert not write(tmp_path / "y", data[:length]).complete
    assert os.listdir(tmp_path) == ["x"]


def test_a_hole_beyond_all_disks(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="too large"):
        write(tmp_path, pack_entry(Entry("file", "top", 0o644)) + pieces((1 << 62) + 1) + END)
    with pytest.raises(HostError):
        write(tmp_path, pack_entry(Entry("file", "top", 0o644)) + pieces(1 << 62) + END)
    assert os.listdir(tmp_path) == []
