# SPDX-License-Identifier: Apache-2.0
"""The virtiofsd of this node, found as QEMU's own descriptors tell (docs/interop/vhost-user.json of QEMU)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pvc.host.descriptors import read_descriptors
from pvc.plan.helpers import ShareDaemon

SYSTEM_DIRS = (Path("/etc/qemu/vhost-user"), Path("/usr/share/qemu/vhost-user"))


def find_virtiofsd(home: Path) -> ShareDaemon | None:
    """The first daemon for file systems that can be run."""
    for descriptor in read_descriptors((home / ".config/qemu/vhost-user", *SYSTEM_DIRS)):
        found = _understand(descriptor)
        if found is not None and os.access(found.binary, os.X_OK):
            return found
    return None


def _understand(descriptor: Any) -> ShareDaemon | None:
    try:
        binary, fits = descriptor["binary"], descriptor["type"] == "fs"
        features = descriptor.get("features", [])
    except (AttributeError, KeyError, TypeError):
        return None
    if not fits or not isinstance(binary, str) or not binary.startswith("/") or not isinstance(features, list):
        return None
    return ShareDaemon(binary, separate="separate-options" in features)
