# SPDX-License-Identifier: Apache-2.0
"""Ending a cluster from outside its launcher."""

from __future__ import annotations

import os
import time

from pvc.errors import EndedError, HostError, PvcError, SuspendedError
from pvc.model.cluster import ClusterRecord
from pvc.ops.control import Control
from pvc.ops.jobdir import JobDir
from pvc.slurm.job import cancel_job

_MARGIN_S = 30.0  # guests with persistent drives have 20 s to power down
_POLL_S = 0.05


def stop_cluster(record: ClusterRecord, *, grace_s: float) -> None:
    """Shut all VMs down, wait until the launcher has gone; a job whose nodes do not answer is cancelled.

    ``grace_s``: how long a guest may take to shut down before it is switched off.

    The job of suspended VMs is cancelled at once: their guests cannot shut down.

    :raise HostError: some nodes did not answer; their job was cancelled.
    """
    jobdir = JobDir.of(record.job_id)
    try:
        errors = _ask_nodes(record, jobdir, grace_s)
    except SuspendedError:
        _cancel(record, jobdir)
        return
    if not errors:
        # The launcher sees its supervisors leave and does the rest; a shared home may show that late
        _wait_gone(jobdir, _MARGIN_S)
        return
    _cancel(record, jobdir)
    node, error = next(iter(errors.items()))
    raise HostError(
        f"{len(errors)} of {len(record.endpoints)} nodes did not stop their VMs ({node}: {error}); "
        f"job {record.job_id} was cancelled"
    )


def _ask_nodes(record: ClusterRecord, jobdir: JobDir, grace_s: float) -> dict[str, str]:
    try:
        return Control(record, jobdir).stop(grace_s=grace_s, timeout_s=grace_s + _MARGIN_S)
    except SuspendedError:
        raise
    except EndedError:
        return {}  # the launcher removed the keys at this moment: it is ending
    except PvcError as err:
        return {"": str(err)}


def _cancel(record: ClusterRecord, jobdir: JobDir) -> None:
    cancel_job(record.job_id)
    if not _wait_gone(jobdir, _MARGIN_S) and not jobdir.is_claimed():
        jobdir.remove()


def _wait_gone(jobdir: JobDir, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while os.path.exists(jobdir.path):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
