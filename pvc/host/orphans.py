# SPDX-License-Identifier: Apache-2.0
"""Processes whose parents ended come to this one, so that it learns how they end."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def adopt_orphans() -> None:
    """From now on this process is the parent of descendants that lose theirs: prctl(2), PR_SET_CHILD_SUBREAPER.

    :raise OSError: the kernel refused.
    """
    if _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def reap_orphans() -> dict[int, int]:
    """Exit codes (or minus signals) of adopted processes that have ended since the last call, by process id.

    Programs that become daemons are in a session of their own; children that this process has started itself are in its
    own session, and whoever started them waits for them. The kernel gives orphans to the process's first thread.
    """
    found = {}
    mine = os.getsid(0)
    for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        pid = int(word)
        try:
            if os.getsid(pid) == mine:
                continue
            ended, status = os.waitpid(pid, os.WNOHANG)
        except (ProcessLookupError, ChildProcessError):
            continue
        if ended:
            found[pid] = os.waitstatus_to_exitcode(status)
    return found
