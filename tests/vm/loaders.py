# SPDX-License-Identifier: Apache-2.0
"""Debian's signed boot loaders, unpacked from their packages, and the small guest on a disk that UEFI boots."""

from __future__ import annotations

import fcntl
import subprocess
import uuid
from pathlib import Path

from guests import build_guest

from pvc.images.uefidisk import UefiParts, find_loaders, make_uefi_disk

CACHE = Path("/var/tmp/pvc-test-loaders-1")


def make_guest_disk(disk: Path, work: Path, **changes: Path) -> None:
    """The small guest behind shim and GRUB, or with other parts."""
    guest = build_guest()
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (CACHE / "unpacked").exists():
            packages = ["shim-signed", "grub-efi-amd64-signed"]
            subprocess.run(["apt-get", "-q", "download", *packages], check=True, cwd=CACHE)
            for package in CACHE.glob("*.deb"):
                subprocess.run(["dpkg-deb", "-x", package, CACHE / "work"], check=True)
            (CACHE / "work").rename(CACHE / "unpacked")
    shim, grub = find_loaders(CACHE / "unpacked")
    kernel = changes.get("kernel", guest.kernel)
    parts = UefiParts(shim, grub, kernel, guest.initrd, guest.append, None)
    make_uefi_disk(disk, parts, uuid.UUID("0b6c2d9e-6f0f-4a53-9d0c-7c8a5a0a3b11"), work)
