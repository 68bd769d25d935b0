# SPDX-License-Identifier: Apache-2.0
"""Whether an administrator has taken this node out of service for new clusters: <state>/drain.json, root's alone.

It is a file, so that it outlives pvc-node and the node's boot.
"""

from __future__ import annotations

import os
from pathlib import Path

from pvc.codec import Format
from pvc.errors import JobError
from pvc.files import write_atomic
from pvc.model.nodeview import Drain

_FILE = "drain.json"
DRAIN = Format(1, 0)


class OutOfServiceError(JobError):
    """An administrator lets no new cluster be set up on this node."""


def write_drain(state: Path, drain: Drain) -> None:
    """Take the node out of service; it is on the disk when this returns.

    :raise OSError: the state directory cannot be written.
    """
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(state / _FILE, DRAIN.dumps(drain), mode=0o600, sync=True)


def read_drain(state: Path) -> Drain | None:
    """Why the node is out of service; None: it is not. A file that is not understood was written to refuse, too."""
    path = state / _FILE
    try:
        return DRAIN.loads(Drain, path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return Drain(f"{path} cannot be read", 0.0)


def remove_drain(state: Path) -> bool:
    """Put the node back into service; whether it was out of it.

    :raise OSError: the file cannot be removed.
    """
    try:
        os.unlink(state / _FILE)
    except FileNotFoundError:
        return False
    return True
