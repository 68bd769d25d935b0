# SPDX-License-Identifier: Apache-2.0
"""Removing trees of any shape."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvc.files import remove_tree
from pvc.removal import Removal, open_closed


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """What no other program could remove is removed, whatever becomes of the test."""
    limit = sys.getrecursionlimit()
    yield tmp_path
    sys.setrecursionlimit(100_000)
    shutil.rmtree(tmp_path / "tree", ignore_errors=True)
    sys.setrecursionlimit(limit)


def make_deep(top: Path, depth: int) -> None:
    """Directories in one another, deeper than a path can name, with a file in each."""
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.mkdir("d" * 200, dir_fd=fd)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_a_tree_may_be_deeper_than_python_nests_calls(place: Path) -> None:
    make_deep(place / "tree", sys.getrecursionlimit() + 500)
    remove_tree(place / "tree")
    assert os.listdir(place) == []


@pytest.mark.allow_sockets
def test_a_tree_may_hold_anything(place: Path) -> None:
    tree, kept = place / "tree", place / "kept"
    kept.mkdir()
    (kept / "file").write_text("kept")
    for wide in range(20):
        for name in ("a", "b"):
            (tree / f"{wide}" / name / "c").mkdir(parents=True)
            (tree / f"{wide}" / name / "c" / "file").touch()
    (tree / "link").symlink_to(kept)
    (tree / "0" / "link").symlink_to(kept / "file")
    (tree / "loop").symlink_to(".")
    os.link(kept / "file", tree / "hard")
    os.mkfifo(tree / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tree / "socket"))
    for name in (b"\xff\xfe", b"a\nb\x1b[2J", b"n" * 255, b"-rf", b" "):
        os.mkdir(os.fsencode(tree) + b"/" + name)
        os.close(os.open(os.fsencode(tree) + b"/" + name + b"/" + name, os.O_CREAT | os.O_WRONLY))
    with (tree / "sparse").open("wb") as stream:
        stream.truncate(1 << 40)
    (tree / "0").chmod(0)
    (tree / "1" / "a").chmod(0)
    tree.chmod(0)
    remove_tree(tree)
    assert os.listdir(place) == ["kept"]
    assert (kept / "file").read_text() == "kept"
    assert (kept / "file").stat().st_nlink == 1


def test_a_link_goes_and_not_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to("kept")
    remove_tree(tmp_path / "link")
    remove_tree(tmp_path / "link")
    remove_tree(tmp_path / "absent" / "too")
    assert os.listdir(tmp_path) == ["kept"]
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        remove_tree(tmp_path / "file")


def test_it_can_be_stopped_at_each_step_and_gone_on_with(place: Path) -> None:
    """Two descriptors are all that it ever has open."""
    asked = 0
    for step in range(0, 60, 3):
        make_deep(place / "tree", 12)
        for name in ("x", "y"):
            (place / "tree" / name / "z").mkdir(parents=True)
        asked = 0

        def stopped(step: int = step) -> bool:
            nonlocal asked
            asked += 1
            return asked > step

        fd = open_closed(os.open(place, os.O_PATH), "tree")
        try:
            before = len(os.listdir("/proc/self/fd"))
            done = Removal(fd, stopped).run()
            assert done == (asked <= step)
            assert len(os.listdir("/proc/self/fd")) == before
            assert Removal(fd).run()
        finally:
            os.close(fd)
        os.rmdir(place / "tree")
    assert asked <= 60


def test_what_somebody_makes_meanwhile_goes_too(place: Path) -> None:
    """Between any two steps there may be one thing more, in a directory that was emptied or is about to be."""
    make_deep(place / "tree", 5)
    made = 0

    def make_more() -> bool:
        nonlocal made
        if made < 40:
            made += 1
            for path, directories, _ in os.walk(place / "tree"):
                os.mkdir(f"{path}/more{made}")
                os.symlink("/etc", f"{path}/link{made}")
                if directories and made % 3 == 0:
                    os.rename(f"{path}/{directories[0]}", f"{path}/renamed{made}")
                break
        return False

    fd = open_closed(os.open(place, os.O_PATH), "tree")
    try:
        assert Removal(fd, make_more).run()
    finally:
        os.close(fd)
    assert os.listdir(place / "tree") == []
