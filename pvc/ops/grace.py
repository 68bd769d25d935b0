# SPDX-License-Identifier: Apache-2.0
"""What a SIGTERM of Slurm's means to the VMs of a job: its end, or that it ends after a time of grace."""

from __future__ import annotations

import time
from collections.abc import Callable

from pvc.errors import JobError
from pvc.slurm.preemption import Grace, find_grace, read_preempted

# The supervisors of all nodes ask at nearly the same time.
_BELIEVED_S = 1.0


class GraceWatch:
    """What Slurm says of one job; ``warn`` is called once for each time that the job is told to go."""

    def __init__(
        self, job_id: int, warn: Callable[[float | None], None], find: Callable[[int], Grace | None] = find_grace
    ) -> None:
        self._job_id = job_id
        self._warn = warn
        self._find = find
        self._asked: float | None = None
        self._found: Grace | None = None

    def may_stay(self) -> bool:
        """Whether the job goes on for now; not where Slurm does not answer: then it is the end that it looks like."""
        now = time.monotonic()
        if self._asked is None or now - self._asked >= _BELIEVED_S:
            was_told = self._found is not None
            try:
                self._found = self._find(self._job_id)
            except JobError:
                self._found = None
            self._asked = time.monotonic()
            if self._found is not None and not was_told:
                self._warn(self._found.left_s)
        return self._found is not None


def was_preempted(job_id: int) -> bool:
    """Whether a job that is over, or is in the queue again, was told to go; not known counts as no."""
    try:
        return bool(read_preempted(job_id))
    except JobError:
        return False
