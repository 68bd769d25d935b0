"""Find what no epilog will undo: jobs of an earlier boot, and jobs that Slurm no longer has on this node."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from pvc.errors import JobError, PvcError
from pvc.node.context import Context, read_boot_id
from pvc.node.teardown import tear_down
from pvc.slurm import control
from pvc.state import membership
from pvc.state.ledger import Ledger, Record, read_jobs

LOG = logging.getLogger(__name__)


def reclaim(context: Context, node: str | None) -> bool:
    """Undo what belongs to no job. ``node`` is this node's name in Slurm; None: not known yet.

    A node that crashed is told nothing of its jobs' end, not even after its boot; so everything of an
    earlier boot goes, whatever Slurm thinks. True when nothing is left to look at again.
    """
    found = {job_id: Ledger(context.state_dir, job_id).read_record() for job_id in read_jobs(context.state_dir)}
    boot = read_boot_id()
    clean = True
    for job_id, record in found.items():
        if record is None or record.boot != boot:
            # One without a record may be a set-up that begins this moment: that shows when its lock is free.
            clean = _undo(context, job_id, "of an earlier boot", lambda now: now is None or now.boot != boot) and clean
    live = {job_id: record for job_id, record in found.items() if record is not None and record.boot == boot}
    if live:
        clean = _reclaim_ended(context, live, node) and clean
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


def _reclaim_ended(context: Context, jobs: Mapping[int, Record], node: str | None) -> bool:
    if node is None:
        return False
    try:
        active = control.read_node_jobs(node)
    except JobError as err:
        LOG.warning("%s; orphans are looked for again later", err)
        return False
    # Jobs that live are looked at again: their epilog may never come.
    clean = active.isdisjoint(jobs)
    for job_id, record in jobs.items():
        if job_id not in active:
            clean = _undo(context, job_id, "that Slurm no longer has here", is_still(record)) and clean
    return clean


def is_still(record: Record) -> Callable[[Record | None], bool]:
    """A job that was put back into the queue has its number, but is another set-up."""
    return lambda now: now is None or now.opened_ns == record.opened_ns


def _undo(context: Context, job_id: int, why: str, wanted: Callable[[Record | None], bool]) -> bool:
    """Whether nothing of the job is left."""

    def is_wanted(record: Record | None) -> bool:
        if not wanted(record):
            return False
        LOG.warning("job %d: undoing what is left of a job %s", job_id, why)
        return True

    try:
        tear_down(context, job_id, is_wanted)
    except PvcError as err:
        LOG.warning("job %d: %s", job_id, err)
        return False
    return not Ledger(context.state_dir, job_id).exists()
