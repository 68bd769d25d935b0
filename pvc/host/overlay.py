# SPDX-License-Identifier: Apache-2.0
"""Copy-on-write disk overlays as files."""

from __future__ import annotations

import os
from pathlib import Path

from pvc.plan.disks import Overlay


def write_overlay(path: Path, overlay: Overlay) -> None:
    """Create ``path`` with the overlay's bytes, sparse, readable by its owner only.

    :raise OSError: it exists, or its directory is missing or full.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for extent in overlay.extents:
            written = os.pwrite(fd, extent.data, extent.offset)
            if written != len(extent.data):
                raise OSError(28, "No space left on device", os.fspath(path))
        os.ftruncate(fd, overlay.length)
    finally:
        os.close(fd)
