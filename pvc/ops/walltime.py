# SPDX-License-Identifier: Apache-2.0
"""Warnings before Slurm ends a job."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from pvc.errors import JobError
from pvc.slurm.clock import read_left

# The limit of a job can be changed while it runs, so Slurm is asked again now and then, and before each warning.
_ASK_S = 300.0
_FRESH_S = 10.0


class Walltime:
    """``tick`` is to be called often; it calls ``warn(left_s)`` once for each of ``moments`` (seconds before the end).

    A moment that is over when the job begins is left out. Slurm is asked in a thread: it may be slow. What is asked
    for is the time that is left: the end itself is by the clock of Slurm's controller, and this machine's is another.
    """

    def __init__(
        self,
        job_id: int,
        moments: Sequence[float],
        warn: Callable[[float], None],
        read: Callable[[int], float | None] = read_left,
    ) -> None:
        self._job_id = job_id
        self._moments = sorted(moments, reverse=True)
        self._warn = warn
        self._read = read
        self._end: float | None = None
        self._asked: float | None = None
        self._asking: threading.Thread | None = None
        self._known = False

    def tick(self) -> None:
        """Warn if it is time to."""
        if not self._moments or (self._asking is not None and self._asking.is_alive()):
            return
        if self._asking is not None:
            self._asking.join()
            self._asking = None
            self._learn()
        age_s = None if self._asked is None else time.monotonic() - self._asked
        if age_s is None or age_s >= _ASK_S or (self._is_due() and age_s >= _FRESH_S):
            self._ask()
        elif self._is_due() and self._end is not None:
            left_s = self._end - time.monotonic()
            self._moments = [each for each in self._moments if each < left_s]
            self._warn(max(0.0, left_s))

    def _is_due(self) -> bool:
        return self._end is not None and bool(self._moments) and self._end - time.monotonic() <= self._moments[0]

    def _ask(self) -> None:
        self._asking = threading.Thread(target=self._ask_slurm, daemon=True)
        self._asking.start()

    def _ask_slurm(self) -> None:
        try:
            left_s = self._read(self._job_id)
            self._end = None if left_s is None else time.monotonic() + left_s
        except JobError:
            return  # the last answer counts, until the next one
        finally:
            self._asked = time.monotonic()

    def _learn(self) -> None:
        if self._known or self._end is None:
            return
        self._known = True
        left_s = self._end - time.monotonic()
        self._moments = [each for each in self._moments if each < left_s]


def format_warning(job_id: int, left_s: float) -> str:
    """What is told, in the shell and in the guests."""
    return f"job {job_id} and its VMs end in {_format_left(left_s)}: its time is over then; save what you need"


def format_preemption(job_id: int, left_s: float | None) -> str:
    """What is told when Slurm wants the job's nodes for another job."""
    when = "soon" if left_s is None else f"in {_format_left(left_s)}"
    return f"job {job_id} and its VMs end {when}: Slurm wants its nodes for another job; save what you need"


def _format_left(left_s: float) -> str:
    minutes, seconds = divmod(round(left_s), 60)
    if minutes >= 5 or (minutes and not seconds):
        return f"{minutes} minute{'s' if minutes != 1 else ''}"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
