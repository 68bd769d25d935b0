# SPDX-License-Identifier: Apache-2.0
"""What only a real disk and a real user show: a full file system, a repository that is not ours."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

from pvc.errors import HostError
from pvc.host.qemuimg import EXPORTS
from pvc.host.reserve import reserve_space
from pvc.images import transfer
from pvc.images.cache import NodeCache, Outcome
from pvc.images.diskfile import export_disk
from pvc.images.pcocc import read_repository
from pvc.images.pcoccimport import take_images
from pvc.images.repository import Repositories
from pvc.images.transfer import Incoming
from pvc.model.site import Repository
from tests.quotas import quota_dir
from tests.unit.images.disks import import_raw, quiet, raw_disk, repositories
from tests.unit.images.test_pcocc import Pcocc, qemu

pytestmark = pytest.mark.host


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "pvc-test", mount], check=True)
    yield mount
    subprocess.run(["umount", mount], check=True)


def is_pytests(path: Path) -> bool:
    """Whether a directory is that of pytest's scratch, or in it."""
    return any(each.name.startswith("pytest-of-") for each in (path, *path.parents))


def everything(base: Path) -> set[str]:
    return {str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()} - {"user/.lock"}


def test_a_full_disk_is_told_before_and_during_the_copy(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = repositories(small_disk)
    source = tmp_path / "disk"
    source.write_bytes(raw_disk(512) + os.urandom(8 << 20))
    with pytest.raises(HostError, match="MiB free; the image needs 8 MiB"):
        where.import_file(Incoming(source, "a"), quiet)
    # Others may fill the disk while we copy.
    monkeypatch.setattr(transfer, "check_space", lambda *_: None)
    with pytest.raises(HostError, match="No space left") as caught:
        where.import_file(Incoming(source, "a"), quiet)
    assert "free space below" in (caught.value.find_hint() or "")
    assert where.list() == ()
    assert everything(small_disk) == {"user/.config"}
    assert list((small_disk / "user" / ".tmp").iterdir()) == []


def test_whatever_meets_a_full_disk_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    """Unpacking, converting, copying, resizing and importing archives into 4 MiB; exporting onto them."""
    where = repositories(small_disk)
    other = repositories(tmp_path / "other", "big")
    both = Repositories([Repository("user", str(small_disk / "user")), Repository("big", str(tmp_path / "other/big"))])
    source = tmp_path / "disk"
    source.write_bytes(raw_disk(512) + os.urandom(8 << 20))
    subprocess.run(["gzip", "-k", source], check=True)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "vdi", source, tmp_path / "vdi"], check=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", tmp_path / "vhdx", "8M"], check=True)
    big = other.import_file(Incoming(source, "a"), quiet)
    other.export([big], tmp_path / "archive", quiet)
    pcocc = Pcocc(tmp_path / "pcocc")
    qemu("qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, pcocc.path / ".tmp/disk")
    pcocc.describe("a", 0, [pcocc.put(pcocc.path / ".tmp/disk")])
    theirs = read_repository(pcocc.path)
    import_raw(where, tmp_path, "small")
    before = everything(small_disk)
    small = where.locate("small")
    actions = {
        "unpack": lambda: where.import_file(Incoming(tmp_path / "disk.gz", "a"), quiet),
        "convert": lambda: where.import_file(Incoming(tmp_path / "vdi", "a"), quiet),
        "copy": lambda: both.copy(big, "user:a", "me", quiet),
        "archive": lambda: where.import_archive(tmp_path / "archive", None, "me", quiet),
        "export": lambda: other.export([big], small_disk / "file", quiet),
        "pcocc": lambda: list(take_images(theirs, where.store(), "me", quiet)),
        **{
            kind: lambda kind=kind: export_disk(other, big, small_disk / "file", kind, quiet)  # type: ignore[misc]
            for kind in EXPORTS
        },
    }
    for name, action in actions.items():
        with pytest.raises(HostError) as caught:
            action()
        assert "free" in (caught.value.find_hint() or ""), name
        assert everything(small_disk) == before, name
        assert list((small_disk / "user" / ".tmp").iterdir()) == [], name
    # What fits still does: a disk grows by holes.
    assert where.resize(small, 1 << 30, "me", quiet).uri == "user:small@2"


def test_an_exceeded_quota_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """The file system has room, so only the writes find out; reserving it for pvc save does, too."""
    with quota_dir(tmp_path, "4M") as mine:
        where = repositories(mine)
        source = tmp_path / "disk"
        source.write_bytes(raw_disk(512) + os.urandom(8 << 20))
        with pytest.raises(HostError, match="Disk quota exceeded") as caught:
            where.import_file(Incoming(source, "a"), quiet)
        assert "free space below" in (caught.value.find_hint() or "")
        assert where.list() == ()
        assert everything(mine) == {"user/.config"}
        assert list((mine / "user" / ".tmp").iterdir()) == []
        import_raw(where, tmp_path, "small")
        assert [found.uri for found in where.list()] == ["user:small@1"]
        with (mine / "saved").open("wb") as target, pytest.raises(OSError, match="Disk quota exceeded"):
            reserve_space(target.fileno(), 8 << 20)
        cache = mine / "cache"
        cache.mkdir()
        name = hashlib.sha256(source.read_bytes()).hexdigest()
        assert NodeCache(cache, 64 << 20).fill(source, name, lambda: False) is Outcome.NO_ROOM
        assert list(cache.iterdir()) == []


def test_qemu_img_meets_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    where = repositories(small_disk)
    source = tmp_path / "disk"
    source.write_bytes(raw_disk(512) + os.urandom(5 << 19))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "vdi", source, tmp_path / "vdi"], check=True)
    with pytest.raises(HostError, match="too little space") as caught:
        where.import_file(Incoming(tmp_path / "vdi", "a"), quiet)
    assert "free space below" in (caught.value.find_hint() or "")
    assert everything(small_disk) == {"user/.config"}
    assert list((small_disk / "user" / ".tmp").iterdir()) == []


def test_a_read_only_repository_is_readable_and_says_so(small_disk: Path, tmp_path: Path) -> None:
    where = repositories(small_disk)
    import_raw(where, tmp_path, "a")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    try:
        where.verify(where.locate("a"))
        for action in (lambda: import_raw(where, tmp_path, "b"), lambda: where.delete("a")):
            with pytest.raises(HostError, match="Read-only file system"):
                action()
    finally:
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert [found.uri for found in where.list()] == ["user:a@1"]


def test_anothers_repository_can_be_used_but_not_written(tmp_path: Path) -> None:
    # pytest's own directories let nobody else pass; with pytest-xdist there is one more of them.
    for path in takewhile(is_pytests, (tmp_path, *tmp_path.parents)):
        path.chmod(0o755)
    where = repositories(tmp_path / "outside", "site")
    where._home = Path("/nonexistent")
    (tmp_path / "outside").mkdir()
    import_raw(where, tmp_path, "a")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    theirs.chmod(0o777)
    reader = os.fork()
    if reader == 0:
        code = 1
        try:
            os.setuid(65534)
            where.verify(where.locate("a"))
            try:
                import_raw(where, theirs, "b")
            except HostError as err:
                code = 0 if "Permission denied" in str(err) and "of your own" in (err.find_hint() or "") else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1]) == 0
    assert len(where.list_all()) == 1
