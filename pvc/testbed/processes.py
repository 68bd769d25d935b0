"""Processes remembered across commands by pid and start time."""

from __future__ import annotations

from pathlib import Path

from pvc import codec, files
from pvc.testbed.model import Daemon


def read_start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is none, or only its corpse.

    Field 22 of /proc/PID/stat, counted behind the last ")" since the name may hold anything (proc(5)).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])


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
