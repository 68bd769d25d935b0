# SPDX-License-Identifier: Apache-2.0
"""Images that rest on others, with QEMU's own tools and a real file system."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from pvc.host.reserve import release_space, reserve_space
from pvc.images.repository import FoundImage, Repositories
from pvc.images.save import Changed, save_changed
from pvc.images.verify import verify_store
from tests.unit.images.disks import import_raw, quiet, repositories
from tests.unit.images.faults import boundaries
from tests.unit.images.test_faults import ACTIONS, check, check_clean, prepared

pytestmark = pytest.mark.host


def save(where: Repositories, image: str, size: int, word: str) -> FoundImage:
    """A revision over ``image`` that has ``word`` at its MiB 1."""
    found = where.locate(image)

    def fill(path: Path) -> None:
        # By hand, as QEMU's job does: below the data directory the relative name leads to the layer.
        inside = where.store().path / "data" / "00"
        inside.mkdir(exist_ok=True)
        moved = path.rename(inside / "work")
        argv = ["qemu-io", "-f", "qcow2", "-c", f"write -P {ord(word)} 1M 64k", moved]
        subprocess.run(argv, check=True, capture_output=True)
        moved.rename(path)

    changed = Changed(size, found.image, where.store())
    return FoundImage("user", save_changed(changed, where.store(), found.image.name, "me", fill, quiet))


def test_layers_grow_travel_and_read_as_one_disk(tmp_path: Path) -> None:
    where = repositories(tmp_path, "user", "site")
    import_raw(where, tmp_path, "a", b"base")
    save(where, "a", 4 << 20, "x")
    larger = where.resize(where.locate("a"), 8 << 20, "me", quiet)
    assert (larger.image.size, len(larger.image.layers)) == (8 << 20, 2)
    save(where, "a", 8 << 20, "y")
    archive = tmp_path / "a.tar"
    where.export([where.locate("a")], archive, quiet)
    (there,) = where.import_archive(archive, "b", "me", quiet, repository="site")
    assert len(there.image.layers) == 3
    for found in (where.locate("a"), there):
        where.verify(found)
        path = where.store(found.repository).blob_path(found.image.disk)
        raw = tmp_path / "whole"
        subprocess.run(["qemu-img", "convert", "-O", "raw", path, raw], check=True)
        whole = raw.read_bytes()
        assert len(whole) == 8 << 20
        assert (whole[:4], whole[1 << 20 : (1 << 20) + 65536]) == (b"base", b"y" * 65536)
        chain = json.loads(
            subprocess.run(
                ["qemu-img", "info", "--backing-chain", "--output=json", path], check=True, capture_output=True
            ).stdout
        )
        assert len(chain) == 3
    assert [each.problem for name in ("user", "site") for each in verify_store(where.store(name), quiet)] == [None] * 5


def test_two_savers_at_any_call_both_have_their_revision(tmp_path: Path) -> None:
    where = repositories(tmp_path)
    (tmp_path / "other").mkdir()

    def other() -> None:
        ACTIONS["save"](where, tmp_path / "other")
        where.delete("a@1")

    for _ in boundaries(lambda: ACTIONS["save"](where, tmp_path), other, prepared(where, tmp_path)):
        assert check(where) == {"a@2", "a@3", "a@4"}
        assert where.find("a@3").disk != where.find("a@4").disk
        check_clean(where)


def test_room_is_taken_and_given_back(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "pvc-test", small], check=True)
    try:
        fd = os.open(small / "x", os.O_RDWR | os.O_CREAT)
        try:
            with pytest.raises(OSError, match="No space left"):
                reserve_space(fd, 3 << 20)
            reserve_space(fd, 1 << 20)
            assert os.fstat(fd).st_size == 0
            assert os.fstat(fd).st_blocks * 512 == 1 << 20
            os.pwrite(fd, b"x", 5000)
            release_space(fd)
            assert os.fstat(fd).st_size == 5001
            assert os.fstat(fd).st_blocks * 512 <= 8192
        finally:
            os.close(fd)
    finally:
        subprocess.run(["umount", small], check=True)
