# SPDX-License-Identifier: Apache-2.0
"""Removing what users' jobs have left: in a thread of its own, behind everybody else, and again after a restart."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

from pvc.errors import ConfigError
from pvc.host import ended
from pvc.node.context import Context

LOG = logging.getLogger(__name__)
_NICE = 10
# What cannot be removed now is tried again, less and less often.
_RETRY_S, _MOST_S = 15.0, 3600.0


class Sweeper:
    """A thread that removes what was put aside; ``wake`` it when something was."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._wake = threading.Event()

    def start(self) -> None:
        """Sweep until the process ends: it may end at any point."""
        threading.Thread(target=self._run, name="sweeper", daemon=True).start()

    def wake(self) -> None:
        """Something may have been put aside."""
        self._wake.set()

    def _run(self) -> None:
        # Of this thread alone (setpriority(2)): a user's millions of files cost the other users as little as may be.
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        pause_s, said = _RETRY_S, ""
        while True:
            self._wake.clear()
            swept = ended.Swept(False)
            try:
                swept = sweep(self._context)
            except Exception:  # it is tried again; the daemon serves meanwhile
                LOG.exception("removing what ended jobs left failed")
            if swept.error is not None and said != (said := explain(swept.error)):
                LOG.warning("%s", said)
            woken = self._wake.wait(None if swept.clean else pause_s)
            pause_s = _RETRY_S if woken else min(2 * pause_s, _MOST_S)


def sweep(context: Context) -> ended.Swept:
    """Remove what was put aside on this node."""
    place = _find_place(context)
    return ended.Swept(True) if place is None else ended.sweep(place)


def explain(error: OSError) -> str:
    """Why something stays, without its name, which is a user's."""
    return f"something that an ended job left cannot be removed now: {os.strerror(error.errno or 0)}"


def is_clean(context: Context) -> bool:
    """Whether nothing is put aside on this node."""
    place = _find_place(context)
    return place is None or ended.is_swept(place)


def _find_place(context: Context) -> Path | None:
    try:
        return Path(context.config().batch.run_dir)
    except ConfigError:
        return None  # nothing can be set up either; the next wake-up looks again
