# SPDX-License-Identifier: Apache-2.0
"""Files: replaced whole, locked, private."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from pvc import files
from pvc.errors import HostError


def test_write_replaces_and_sets_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "f"
    files.write_atomic(path, "old", mode=0o600)
    files.write_atomic(path, b"new", mode=0o640, sync=True)
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["f"]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.mkdir()
    with pytest.raises(OSError, match="directory") as err:
        files.write_atomic(path, "new")
    assert err.value.filename == str(path)
    assert os.listdir(tmp_path) == ["f"]


def test_write_into_a_missing_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.write_atomic(tmp_path / "none" / "f", "x")


def test_what_the_disk_refuses_is_said_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space") as err:
        files.write_atomic(tmp_path / "f", "x", sync=True)
    assert err.value.filename == str(tmp_path / "f")
    assert os.listdir(tmp_path) == []


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_text("kept")
    link.symlink_to(victim)
    files.write_atomic(link, "new")
    assert victim.read_text() == "kept"
    assert not link.is_symlink()


def test_a_lock_excludes_and_is_freed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    refused = pytest.raises(HostError, match="held by another process for 0 s")
    with files.locked(path), refused, files.locked(path, timeout_s=0.0):
        pass
    with files.locked(path, timeout_s=0.0):
        pass


def test_a_waiter_gets_the_lock(tmp_path: Path) -> None:
    path, order = tmp_path / "lock", []

    def wait() -> None:
        with files.locked(path, timeout_s=10.0):
            order.append("second")

    with files.locked(path):
        thread = threading.Thread(target=wait)
        thread.start()
        order.append("first")
    thread.join(10.0)
    assert order == ["first", "second"]


def test_a_private_directory(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    files.ensure_private_dir(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    path.chmod(0o777)
    files.ensure_private_dir(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_what_is_no_private_directory(tmp_path: Path) -> None:
    real, link, file = tmp_path / "real", tmp_path / "link", tmp_path / "file"
    real.mkdir()
    link.symlink_to(real)
    file.write_text("")
    for path in (link, file):
        with pytest.raises(HostError, match="is not a directory"):
            files.ensure_private_dir(path)
    with pytest.raises(HostError, match=r"belongs to uid \d+, not to 12345"):
        files.ensure_private_dir(real, uid=12345)


def test_remove_tree(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("")
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "link").symlink_to(outside)
    files.remove_tree(tree)
    files.remove_tree(tree)
    link = tmp_path / "link"
    link.symlink_to(outside)
    files.remove_tree(link)
    assert sorted(os.listdir(tmp_path)) == ["outside"]
    assert (outside / "kept").exists()


def test_read_text(tmp_path: Path) -> None:
    (tmp_path / "f").write_text(" 12\n")
    assert files.read_text(tmp_path / "f") == "12"
    assert files.read_text(tmp_path / "none", "0") == "0"
    with pytest.raises(OSError, match="No such file"):
        files.read_text(tmp_path / "none")


def test_what_processes_call_themselves_need_not_be_text(tmp_path: Path) -> None:
    (tmp_path / "cmdline").write_bytes(b"\xff\xfe\x00--conf-file=x\x00")
    assert files.read_text(tmp_path / "cmdline", default="").split("\0")[1] == "--conf-file=x"
