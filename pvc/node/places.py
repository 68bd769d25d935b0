# SPDX-License-Identifier: Apache-2.0
"""Who may talk to pvc-node at the same time. Root's callers are Slurm's own and few; everybody else has a share.

Shares belong to the owners of this node's jobs, not to uids: a user has thousands of these where /etc/subuid gives
them (user namespaces), but owns jobs by one. A job that was refused is one, too, as long as Slurm has it here: its
launcher asks for the reason, wherever that is recorded. All who own none here share a few places, for an answer that
says so.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from pathlib import Path

from pvc.state.ledger import Ledger, Record, UnreadableError, read_jobs

MOST_OF_OWNER, MOST_OF_STRANGERS = 8, 8
# When owners have so many in all, each has two at least.
MANY, LEAST_OF_OWNER = 64, 2
_STRANGERS = -1
# A directory's time does not tell two changes of one tick apart.
_TICK_NS = 1_000_000_000


class Places:
    """Counts callers; may be asked by all threads."""

    def __init__(self, *records: Path) -> None:
        """``records``: the directories that have ledgers."""
        self._records = records
        self._held: Counter[int] = Counter()
        self._owners: frozenset[int] = frozenset()
        self._stamps: list[int] = []
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)

    def take(self, uid: int) -> int | None:
        """Whose share a caller has a place of, to be given back; None: there is none left."""
        with self._lock:
            share = uid if uid == 0 or self._is_owner(uid) else _STRANGERS
            held, users = self._held[share], self._held.total() - self._held[0]
            if share > 0 and held >= (MOST_OF_OWNER if users < MANY else LEAST_OF_OWNER):
                return None
            if share < 0 and held >= MOST_OF_STRANGERS:
                return None
            self._held[share] += 1
            return share

    def give_back(self, share: int) -> None:
        """The caller has left."""
        with self._lock:
            self._held[share] -= 1
            self._idle.notify_all()

    def wait_idle(self, timeout_s: float) -> None:
        """Return when nobody is served any more, or after ``timeout_s``."""
        with self._lock:
            self._idle.wait_for(lambda: not self._held.total(), timeout=timeout_s)

    def is_stranger(self, share: int) -> bool:
        """Whether a share is that of those who own no job here."""
        return share == _STRANGERS

    def _is_owner(self, uid: int) -> bool:
        """From the ledgers, which are read again only when a job has come or gone."""
        stamps = [_read_stamp(place / "jobs") for place in self._records]
        if stamps != self._stamps:
            found = [_read_record(Ledger(place, job_id)) for place in self._records for job_id in read_jobs(place)]
            self._owners = frozenset(record.uid for record in found if record is not None)
            settled = None not in found and time.time_ns() - max(stamps) > _TICK_NS
            self._stamps = stamps if settled else []
        return uid in self._owners


def _read_record(ledger: Ledger) -> Record | None:
    try:
        return ledger.read_record()
    except UnreadableError:
        return None


def _read_stamp(path: Path) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0
