# SPDX-License-Identifier: Apache-2.0
"""A directory with a quota, on a file system of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def run(*argv: str | Path) -> None:
    """A tool of the file system's."""
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def quota_dir(scratch: Path, limit: str) -> Iterator[Path]:
    """A directory whose content may take ``limit`` (as "4M"): a subvolume of btrfs, whose quotas hold for root, too."""
    image, mount = scratch / "btrfs.img", scratch / "btrfs"
    with image.open("wb") as stream:
        stream.truncate(256 << 20)
    run("mkfs.btrfs", "-q", image)
    mount.mkdir()
    run("mount", "-o", "loop", image, mount)
    try:
        run("btrfs", "quota", "enable", mount)
        run("btrfs", "subvolume", "create", mount / "mine")
        set_quota(mount / "mine", limit)
        yield mount / "mine"
    finally:
        run("umount", mount)
        image.unlink()


def set_quota(directory: Path, limit: str) -> None:
    """Another limit."""
    run("btrfs", "qgroup", "limit", limit, directory)
    run("sync", "-f", directory)
