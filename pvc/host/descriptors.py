# SPDX-License-Identifier: Apache-2.0
"""What this node offers QEMU, as JSON files say: firmware, and daemons of vhost-user devices (docs/interop of QEMU).

A file of the user's hides the site's of the same name, and the site's the distribution's; an empty one hides, too.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOG = logging.getLogger(__name__)
_MAX_BYTES = 64 << 10
_MAX_FILES = 256


def read_descriptors(directories: tuple[Path, ...]) -> Iterator[Any]:
    """The descriptors of directories, the user's first, in the order of their names."""
    files: dict[str, Path] = {}
    for directory in reversed(directories):
        try:
            names = sorted(entry for entry in os.listdir(directory) if entry.endswith(".json"))
        except OSError:
            continue
        files |= {entry: directory / entry for entry in names[:_MAX_FILES]}
    for entry in sorted(files):
        try:
            with files[entry].open("rb") as stream:
                data = stream.read(_MAX_BYTES)
            if data:
                yield json.loads(data)
        except (OSError, ValueError, RecursionError) as err:
            LOG.warning("%s: not used: %s", files[entry], err)
