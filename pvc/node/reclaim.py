"""Find what no epilog will undo: jobs of an earlier boot, and jobs that Slurm no longer has on this node."""

from __future__ import annotations

import logging

from pvc.errors import JobError, PvcError
from pvc.node.context import Context, read_boot_id
from pvc.node.teardown import tear_down
from pvc.slurm import control
from pvc.state import membership
from pvc.state.ledger import Ledger, read_jobs

LOG = logging.getLogger(__name__)


def reclaim(context: Context, node: str | None) -> bool:
    """Undo what belongs to no job. ``node`` is this node's name in Slurm; None: not known yet.

    A node that crashed is told nothing of its jobs' end, not even after its boot; so everything of an
    earlier boot goes, whatever Slurm thinks. True when nothing is left to look at again.
    """
    recorded = read_jobs(context.state_dir)
    boot = read_boot_id()
    dead = [job_id for job_id in recorded if _boot_of(context, job_id) != boot]
    clean = _tear_down_all(context, dead, "of an earlier boot")
    rest = [job_id for job_id in recorded if job_id not in dead]
    if rest:
        clean = _reclaim_ended(context, rest, node) and clean
    return clean


def reclaim_memberships(context: Context, node: str) -> None:
    """Leave clusters that the store counts this node to, without a ledger or a job: after a lost disk.

    :raise PvcError: Slurm or the store does not answer.
    """
    store = context.store()
    # The order matters: a job that starts in between is in Slurm's answer, not in the store's.
    held = membership.read_jobs(store, node)
    if held:
        active = control.read_node_jobs(node) | set(read_jobs(context.state_dir))
        for job_id in sorted(held - active):
            LOG.warning("job %d: leaving a cluster that has no job", job_id)
            membership.leave(store, job_id, node)


def _reclaim_ended(context: Context, jobs: list[int], node: str | None) -> bool:
    if node is None:
        return False
    try:
        active = control.read_node_jobs(node)
    except JobError as err:
        LOG.warning("%s; orphans are looked for again later", err)
        return False
    ended = [job_id for job_id in jobs if job_id not in active]
    # Jobs that live are looked at again: their epilog may never come.
    return _tear_down_all(context, ended, "that Slurm no longer has here") and len(ended) == len(jobs)


def _tear_down_all(context: Context, jobs: list[int], why: str) -> bool:
    clean = True
    for job_id in jobs:
        LOG.warning("job %d: undoing what is left of a job %s", job_id, why)
        try:
            tear_down(context, job_id)
            clean = clean and not Ledger(context.state_dir, job_id).exists()
        except PvcError as err:
            LOG.warning("job %d: %s", job_id, err)
            clean = False
    return clean


def _boot_of(context: Context, job_id: int) -> str | None:
    record = Ledger(context.state_dir, job_id).read_record()
    return record.boot if record is not None else None
