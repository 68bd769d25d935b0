# SPDX-License-Identifier: Apache-2.0
"""Whether a cluster still runs, asked by whoever gets no answer from one of its supervisors."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from pvc.errors import EndedError, JobError, SuspendedError
from pvc.model.cluster import ClusterRecord
from pvc.ops.jobdir import JobDir
from pvc.slurm.job import JobState, read_states

# Many threads may miss an answer at the same time, and who waits misses one again and again.
_BELIEVED_S = 1.0


class Pulse:
    """What Slurm says of one cluster's job."""

    def __init__(
        self, record: ClusterRecord, jobdir: JobDir, read: Callable[[int], tuple[JobState, ...]] | None = None
    ) -> None:
        self._record = record
        self._jobdir = jobdir
        self._read = read or read_states
        self._lock = threading.Lock()
        self._asked: float | None = None

    def check(self) -> None:
        """Return if the cluster runs as far as anybody can tell; Slurm is asked at most once a second.

        :raise EndedError: its launcher has removed its keys, or Slurm says that its job runs no more.
        :raise SuspendedError: its processes stand still.
        """
        if not os.path.exists(self._jobdir.tls_key):
            raise EndedError(f"cluster {self._record.job_id} has ended", hint="pvc ps lists those that run")
        with self._lock:
            now = time.monotonic()
            if self._asked is not None and now - self._asked < _BELIEVED_S:
                return
            try:
                states = self._read(self._record.job_id)
            except JobError:
                return  # no answer is no word that it has ended
            judge(self._record, states)
            self._asked = time.monotonic()


def judge(record: ClusterRecord, states: tuple[JobState, ...]) -> None:
    """What these states of a cluster's job, or of the components of a heterogeneous one, mean for the cluster.

    :raise EndedError: one of them runs no more, so the cluster ends.
    :raise SuspendedError: one is suspended.
    """
    known = {each.job_id: each for each in states}
    for job_id in record.jobs or (record.job_id,):
        found = known.get(job_id)
        if found is not None and found.is_suspended:
            raise SuspendedError(
                f"job {job_id} is suspended, and so are its VMs", hint=f"let it go on: scontrol resume {job_id}"
            )
        if found is not None and found.waits:
            raise EndedError(
                f"cluster {record.job_id} has ended; Slurm has put its job back into the queue ({found.state})",
                hint="pvc ps tells when it runs again; a batch job's script boots its VMs anew",
            )
        if found is None or not found.lives:
            why = "Slurm does not know its job any more" if found is None else f"Slurm says of its job: {found.state}"
            raise EndedError(f"cluster {record.job_id} has ended; {why}", hint="pvc ps lists those that run")
