# SPDX-License-Identifier: Apache-2.0
"""Servers that clusters need and that this node starts again when they end: by an event of the kernel, not by looking.

A pidfd becomes readable when its process ends (pidfd_open(2)). What is to be watched is read from the ledger, so a
daemon that was away finds what ended meanwhile.
"""

from __future__ import annotations

import logging
import os
import selectors
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pvc.errors import PvcError
from pvc.host import dnsmasq
from pvc.node.context import Context
from pvc.plan import actions
from pvc.state.ledger import Ledger, read_jobs

LOG = logging.getLogger(__name__)
# A server that ends as soon as it starts is left alone for a while.
_TRIES, _WITHIN_S = 5, 60.0


@dataclass(frozen=True)
class Watched:
    """A process, None when it has ended already; ``repair`` starts another one if that is still wanted."""

    name: str
    pid: int | None
    repair: Callable[[], None]


class Watch:
    """A thread that keeps what ``find`` names alive."""

    def __init__(self, find: Callable[[], Sequence[Watched]]) -> None:
        self._find = find
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._deaths: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_TRIES))

    def start(self) -> None:
        """Watch until the process ends."""
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def refresh(self) -> None:
        """What is to be watched may have changed."""
        os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        while True:
            try:
                self._wait(self._find())
            except Exception:  # the clusters run without a watch, too; the next change tries again
                LOG.exception("watching servers failed")
                time.sleep(1.0)

    def _wait(self, found: Sequence[Watched]) -> None:
        """Return when one has ended and was seen to, when a refused one's time has come, or after ``refresh``."""
        handles: list[int] = []
        retry_s: float | None = None
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            try:
                for each in found:
                    handle = _open(each.pid)
                    if handle is None:
                        pause_s = self._repair(each)
                        retry_s = pause_s if retry_s is None else min(retry_s, pause_s)
                    else:
                        handles.append(handle)
                        selector.register(handle, selectors.EVENT_READ, each)
                for key, _ in selector.select(retry_s):
                    if key.data is not None:
                        self._repair(key.data)
            finally:
                for handle in handles:
                    os.close(handle)
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def _repair(self, each: Watched) -> float:
        """Start it again, unless that has been tried too often lately; seconds until it is worth looking again."""
        now = time.monotonic()
        deaths = self._deaths[each.name]
        if len(deaths) == _TRIES and now - deaths[0] < _WITHIN_S:
            return _WITHIN_S - (now - deaths[0])
        deaths.append(now)
        try:
            each.repair()
        except (PvcError, OSError) as err:
            LOG.error("cannot start %s again: %s", each.name, err)
            return 1.0
        return 0.0


def find_servers(context: Context) -> list[Watched]:
    """The DHCP and DNS servers of all clusters that are set up on this node."""
    found = []
    for job_id in read_jobs(context.state_dir):
        ledger = Ledger(context.state_dir, job_id)
        try:
            if ledger.read_ready() is None:
                continue
            steps = [step for step in ledger.read_actions() if isinstance(step, actions.StartDnsmasq)]
        except PvcError as err:
            context.tell(job_id, str(err))
            continue
        found += [_watch_dnsmasq(context, ledger, job_id, step) for step in steps]
    return found


def _watch_dnsmasq(context: Context, ledger: Ledger, job_id: int, step: actions.StartDnsmasq) -> Watched:
    directory = Path(step.directory)
    name = f"dnsmasq of job {job_id}"

    def repair() -> None:
        # A tear-down ends it on purpose: before it does so, the job is not ready any more.
        if ledger.read_ready() is None:
            return
        with context.job_lock(job_id):
            if ledger.read_ready() is None:
                if not ledger.exists():
                    context.forget_lock(job_id)
                return
            if not dnsmasq.is_running(directory):
                LOG.warning("%s has ended, starting it again", name)
                dnsmasq.start_again(step.netns, directory)

    return Watched(name, dnsmasq.find_process(directory), repair)


def _open(pid: int | None) -> int | None:
    if pid is None:
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
