# SPDX-License-Identifier: Apache-2.0
"""A process id is given again; with the start of the process it is its own."""

from __future__ import annotations

from pathlib import Path


def read_start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is none, or only its corpse.

    Field 22 of /proc/PID/stat, counted behind the last ")" since the name may hold anything (proc(5)).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])
