# SPDX-License-Identifier: Apache-2.0
"""Root's way into directories of users: what their owner exchanges meanwhile leads nowhere."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvc import beneath


def read(base: int, path: str) -> bytes:
    """What is in a file below ``base``."""
    with open(beneath.open_beneath(base, path), "rb") as stream:
        return stream.read()


@pytest.fixture(params=["openat2", "walk"])
def base(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A directory with ``in/f``, ``out`` (a link to a secret), ``loop`` and a FIFO; each test runs both ways."""
    if request.param == "walk":
        monkeypatch.setattr(beneath, "has_openat2", lambda: False)
    else:
        assert beneath.has_openat2(), "the kernel of the tests has openat2(2)"
    (tmp_path / "secret").write_text("secret")
    place = tmp_path / "base"
    (place / "in").mkdir(parents=True)
    (place / "in/f").write_text("mine")
    (place / "out").symlink_to(tmp_path / "secret")
    (place / "dir").symlink_to("in")
    os.mkfifo(place / "fifo")
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_files_and_directories_open(base: int) -> None:
    os.close(beneath.open_beneath(base, "in/f", owners={os.geteuid()}))
    assert read(base, "in/f") == read(base, "./in//f") == b"mine"
    fd = beneath.open_beneath(base, "in", os.O_RDONLY | os.O_DIRECTORY)
    assert os.listdir(fd) == ["f"]
    os.close(fd)
    fd = beneath.open_beneath(base, "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=0o600)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    assert not os.get_inheritable(fd)
    os.close(fd)


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("out", errno.ELOOP),
        ("dir/f", errno.ELOOP),
        ("dir", errno.ELOOP),
        ("../secret", errno.EXDEV),
        ("in/../../secret", errno.EXDEV),
        ("/etc/passwd", errno.EXDEV),
        ("", errno.EXDEV),
        ("fifo", errno.EPERM),
        ("none", errno.ENOENT),
        ("in/f/x", errno.ENOTDIR),
    ],
)
def test_what_leads_elsewhere_is_refused(base: int, path: str, number: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for flags in os.O_RDONLY, os.O_PATH, os.O_RDONLY | os.O_DIRECTORY:
        if path in {"fifo", "in/f/x"} and flags != os.O_RDONLY:
            continue
        with pytest.raises(OSError, match=r".*") as err:
            os.close(beneath.open_beneath(base, path, flags))
        assert err.value.errno in {number, *([errno.ENOTDIR] if flags & os.O_DIRECTORY else [])}, flags
    assert len(os.listdir("/proc/self/fd")) == before


def test_another_user_s_file_is_refused(base: int) -> None:
    with pytest.raises(PermissionError, match="belongs to uid"):
        beneath.open_beneath(base, "in/f", owners={os.geteuid() + 1})


def test_exchanging_the_directory_meanwhile_leads_nowhere(base: int, tmp_path: Path) -> None:
    """An owner who exchanges a directory for a link as fast as possible never lets us read the link's file."""
    (tmp_path / "victims").mkdir()
    (tmp_path / "victims/f").write_text("secret")
    os.symlink(tmp_path / "victims", "link", dir_fd=base)
    done = threading.Event()

    def exchange() -> None:
        while not done.is_set():
            os.rename("in", "away", src_dir_fd=base, dst_dir_fd=base)
            os.rename("link", "in", src_dir_fd=base, dst_dir_fd=base)
            os.rename("in", "link", src_dir_fd=base, dst_dir_fd=base)
            os.rename("away", "in", src_dir_fd=base, dst_dir_fd=base)

    thread = threading.Thread(target=exchange)
    thread.start()
    seen = []
    try:
        for _ in range(3000):
            try:
                seen.append(read(base, "in/f"))
            except OSError as err:
                seen.append(err.errno)
    finally:
        done.set()
        thread.join()
    assert set(seen) <= {b"mine", errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.EAGAIN}
    assert read(base, "in/f") == b"mine"


def test_own_directories_are_those_that_nobody_else_exchanges(tmp_path: Path) -> None:
    good = tmp_path / "a/b"
    good.mkdir(parents=True)
    os.close(beneath.open_own_dir(good))
    (tmp_path / "link").symlink_to(good)
    os.close(beneath.open_own_dir(tmp_path / "link"))
    (tmp_path / "a").chmod(0o777)
    with pytest.raises(PermissionError, match="everybody can write") as err:
        beneath.open_own_dir(good)
    assert err.value.filename == str(tmp_path / "a")
    (tmp_path / "a").chmod(0o1777)
    os.close(beneath.open_own_dir(good))
    good.chmod(0o1777)
    with pytest.raises(PermissionError, match="everybody can write") as err:
        beneath.open_own_dir(good)
    assert err.value.filename == str(good)


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "above", "itself"),
    [
        (0o755, 0, 0, "", ""),
        (0o775, 0, 0, "", ""),
        (0o775, 0, 100, "its group (gid 100) can", "its group (gid 100) can"),
        (0o1775, 0, 100, "", "its group (gid 100) can"),
        (0o777, 0, 0, "everybody can", "everybody can"),
        (0o1777, 0, 0, "", "everybody can"),
        (0o755, 1000, 0, "it belongs to uid 1000", "it belongs to uid 1000"),
        (0o1777, 1000, 0, "it belongs to uid 1000", "it belongs to uid 1000"),
    ],
)
def test_who_can_put_another_directory_in_its_place(mode: int, uid: int, gid: int, above: str, itself: str) -> None:
    facts = os.stat_result((mode | stat.S_IFDIR, 1, 1, 1, uid, gid, 0, 0, 0, 0))
    for said, last in (above, False), (itself, True):
        assert beneath.why_not_own(facts, {0}, last=last).startswith(said)
        assert bool(beneath.why_not_own(facts, {0}, last=last)) == bool(said)


def test_a_user_s_directory_is_made_once(tmp_path: Path) -> None:
    base = beneath.open_own_dir(tmp_path)
    try:
        for _ in range(2):
            beneath.ensure_dir_of(base, "mine", os.geteuid())
            assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o700
        (tmp_path / "victim").mkdir(mode=0o755)
        (tmp_path / "link").symlink_to("victim")
        (tmp_path / "file").touch()
        for name in "link", "file":
            with pytest.raises(OSError, match=r"(?i)symbolic|not a directory"):
                beneath.ensure_dir_of(base, name, os.geteuid())
        assert stat.S_IMODE((tmp_path / "victim").stat().st_mode) == 0o755
    finally:
        os.close(base)
