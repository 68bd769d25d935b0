# SPDX-License-Identifier: Apache-2.0
"""Find what no epilog will undo: jobs of an earlier boot, and jobs that Slurm no longer has on this node."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

from pvc.errors import JobError, PvcError
from pvc.node import memberships
from pvc.node.context import Context, read_boot_id
from pvc.node.strays import adopt
from pvc.node.strays import find as find_strays
from pvc.node.teardown import tear_down
from pvc.slurm import control
from pvc.state import membership
from pvc.state.ledger import ForeignError, Ledger, Record, UnreadableError, read_jobs

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """``clean``: nothing is left to look at again. ``unasked``: why Slurm was not asked, which was needed; ``strays``:
    the jobs without a ledger of which something stays.
    """

    clean: bool
    unasked: str | None = None
    strays: Set[int] = frozenset()


def reclaim(context: Context, node: str | None) -> Outcome:
    """Undo what belongs to no job. ``node`` is this node's name in Slurm; None: not known yet.

    A node that crashed is told nothing of its jobs' end, not even after its boot; so everything of an
    earlier boot goes, whatever Slurm thinks.
    """
    boot = read_boot_id()
    live: dict[int, Callable[[Ledger], bool]] = {}
    clean = True
    for job_id in sorted({*read_jobs(context.runtime_dir), *read_jobs(context.state_dir)}):
        try:
            record = context.read_record(job_id)
        except UnreadableError as err:
            context.tell(job_id, f"{err}; {err.find_hint()}")
            if not isinstance(err, ForeignError):  # which is for another version, so there is nothing to look at again
                live[job_id] = is_unreadable
            continue
        if record is None or record.boot != boot:
            # One without a record may be a set-up that begins this moment: that shows when its lock is free.
            clean = _undo(context, job_id, "of an earlier boot", lambda ledger: _is_of_earlier(ledger, boot)) and clean
        else:
            live[job_id] = is_still(record)
    strays = find_strays(context)
    if not live and not strays:
        return Outcome(clean)
    try:
        active = control.read_node_jobs(node) if node is not None else None
    except JobError as err:
        LOG.warning("%s; orphans are looked for again later", err)
        return Outcome(False, str(err), strays)
    if active is None:
        return Outcome(False, None, strays)
    clean = _reclaim_ended(context, live, strays, active) and clean
    return Outcome(clean, None, strays & active)


def remove_left_over(context: Context, node: str, job_id: int) -> str:
    """Undo what is here of a job that Slurm does not have here any more; a line for people.

    What only another version of pvc can undo goes by its name: root was asked.

    :raise PvcError: Slurm has it, or does not answer; or something could not be undone.
    """
    if job_id in control.read_node_jobs(node):
        raise JobError(f"Slurm has job {job_id} on this node")
    adopt(context, job_id)
    said = tear_down(context, job_id, by_name=True)
    if context.forgetful:  # no action said so, but the store may count this node to the job's cluster
        reclaim_memberships(context, node)
    return said


def reclaim_memberships(context: Context, node: str) -> bool:
    """Leave clusters that the store counts this node to, without a ledger or a job: after a lost disk.

    True when there are none left, also of jobs that still end.

    :raise PvcError: Slurm or the store does not answer.
    """
    store = context.store()
    # The order matters: a job that starts in between is in Slurm's answer, not in the store's.
    noted = membership.read_jobs(store, node)
    if not noted:
        return True
    active, recorded = control.read_node_jobs(node), set(read_jobs(context.state_dir))
    member = memberships.read_member(context, node)
    held = {job_id for job_id, value in noted.items() if member.is_mine(value)}
    if others := noted.keys() - held - recorded:
        context.tell(
            min(others),
            f"the store has a node {node} that is another machine ({noted[min(others)]}): its clusters are left alone; "
            "give each site an etcd-prefix of its own",
        )
    for job_id in sorted(held - active - recorded):
        LOG.warning("job %d: leaving a cluster that has no job", job_id)
        membership.leave(store, job_id, node)
    return not (held & active) - recorded


def _reclaim_ended(
    context: Context, jobs: Mapping[int, Callable[[Ledger], bool]], strays: Set[int], active: Set[int]
) -> bool:
    # Jobs that live are looked at again: their epilog may never come.
    clean = active.isdisjoint(jobs)
    for job_id, wanted in jobs.items():
        if job_id not in active:
            clean = _undo(context, job_id, "that Slurm no longer has here", wanted) and clean
    for job_id in sorted(strays):
        if job_id in active:
            clean = False
            context.tell(job_id, "no record says what was set up for it; what there is stays until Slurm ends the job")
        elif adopt(context, job_id):
            clean = _undo(context, job_id, "that nobody remembers", lambda _: True) and clean
    return clean


def is_still(record: Record) -> Callable[[Ledger], bool]:
    """A job that was put back into the queue has its number, but is another set-up."""

    def is_it(ledger: Ledger) -> bool:
        now = ledger.read_record()
        return now is None or now.opened_ns == record.opened_ns

    return is_it


def is_unreadable(ledger: Ledger) -> bool:
    """Whether the record is one that is not understood: a set-up writes its own anew."""
    try:
        ledger.read_record()
    except UnreadableError:
        return True
    return False


def _is_of_earlier(ledger: Ledger, boot: str) -> bool:
    record = ledger.read_record()
    return record is None or record.boot != boot


def _undo(context: Context, job_id: int, why: str, wanted: Callable[[Ledger], bool]) -> bool:
    """Whether nothing of the job is left."""

    def is_wanted(ledger: Ledger) -> bool:
        if not wanted(ledger):
            return False
        context.tell(job_id, f"undoing what is left of a job {why}")
        return True

    try:
        tear_down(context, job_id, is_wanted)
    except PvcError as err:
        context.tell(job_id, str(err))
        return False
    return not Ledger(context.state_dir, job_id).exists()
