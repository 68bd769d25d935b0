# SPDX-License-Identifier: Apache-2.0
"""Processes remembered across commands by pid and start time."""

from __future__ import annotations

from pathlib import Path

from pvc import codec, files
from pvc.host.processes import read_start_ticks
from pvc.testbed.model import Daemon


def write_daemon(path: Path, pid: int) -> None:
    """Remember a running process.

    :raise OSError: the file cannot be written.
    """
    files.write_atomic(path, codec.dumps(Daemon(pid, read_start_ticks(pid) or 0)))


def find_daemon(path: Path) -> int | None:
    """The pid of a remembered process that still runs."""
    try:
        daemon = codec.loads(Daemon, path.read_bytes())
    except (OSError, ValueError):
        return None
    return daemon.pid if read_start_ticks(daemon.pid) == daemon.start_ticks else None
