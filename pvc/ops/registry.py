# SPDX-License-Identifier: Apache-2.0
"""Which clusters there are: the caller's directories compared with Slurm's jobs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pvc.errors import EndedError, JobError, SuspendedError, UsageError
from pvc.files import read_text
from pvc.model.cluster import ClusterRecord
from pvc.ops.jobdir import JobDir, list_job_dirs
from pvc.slurm.job import QueuedJob, has_ended, read_cluster_name, read_queue, read_states

COMMENT_PREFIX = "pvc "


@dataclass(frozen=True)
class ListedCluster:
    """A line of ``pvc ps``; ``vms`` None: not known, as for another user's cluster."""

    job_id: int
    name: str
    user: str
    state: str
    vms: int | None
    nodes: str
    elapsed: str
    definition: str


def list_clusters(*, all_users: bool = False) -> tuple[ListedCluster, ...]:
    """Clusters that run or wait, by job number; directories of jobs that have ended are removed.

    :raise JobError: Slurm does not answer.
    """
    queue = {job.job_id: job for job in read_queue(all_users=all_users)}
    records = _records(sweep(queue))
    listed = []
    for job_id, job in sorted(queue.items()):
        record = records.get(job_id)
        if job.component:
            continue  # its leader stands for all
        if record is None and not job.comment.startswith(COMMENT_PREFIX):
            continue
        listed.append(_list(job, record, _join_nodes(job, queue)))
    return tuple(listed)


def _join_nodes(leader: QueuedJob, queue: Mapping[int, QueuedJob]) -> str:
    """The nodes of all components of a heterogeneous job: their ids follow one another (salloc(1))."""
    found = [leader.nodes]
    number = 1
    while (next_one := queue.get(leader.job_id + number)) is not None and next_one.component == number:
        found.append(next_one.nodes)
        number += 1
    return ",".join(nodes for nodes in found if nodes)


def _list(job: QueuedJob, record: ClusterRecord | None, nodes: str) -> ListedCluster:
    waits = job.state == "PENDING"
    definition = record.definition if record else job.comment.removeprefix(COMMENT_PREFIX)
    state = "running" if job.runs else job.state.lower()
    if record is None and job.runs and job.user == _user_name():
        state = "starting"
    return ListedCluster(
        job_id=job.job_id,
        name=job.name,
        user=job.user,
        state=f"{state} ({job.reason})" if waits else state,
        vms=record.placement.count if record else _count(definition),
        nodes=nodes,
        elapsed=job.elapsed,
        definition=definition,
    )


def _count(definition: str) -> int | None:
    from pvc.model.request import parse_definition

    try:
        return sum(item.count for item in parse_definition(definition))
    except ValueError:
        return None


def _user_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


# Each is a question to Slurm; what is left over is looked at the next time.
_MOST_SWEPT = 8


def sweep(
    queue: Mapping[int, QueuedJob],
    read_cluster: Callable[[], str | None] = read_cluster_name,
    ask_ended: Callable[[int], bool] = has_ended,
) -> tuple[JobDir, ...]:
    """The caller's directories, without those whose jobs are known to have ended: these are removed.

    That a job is missing in ``queue`` is only a reason to ask for it by its number. A directory whose launcher lives is
    kept whatever Slurm says, and one of another Slurm cluster, with which the home is shared, is none of this one's.
    """
    kept = []
    here: str | None = None
    questions = 0
    for jobdir in list_job_dirs():
        job_id = int(jobdir.path.name)
        if job_id in queue or jobdir.is_claimed():
            kept.append(jobdir)
            continue
        cluster = read_text(jobdir.cluster_name_path, "")
        here = here or (read_cluster() if cluster else None)
        if cluster and cluster != here:
            continue
        questions += 1
        if questions <= _MOST_SWEPT and _is_over(job_id, ask_ended):
            jobdir.remove()  # what cannot be is passed over, with a word
        else:
            kept.append(jobdir)
    return tuple(kept)


def _is_over(job_id: int, ask_ended: Callable[[int], bool]) -> bool:
    try:
        return ask_ended(job_id)
    except JobError:
        return False  # no answer is no word that it has ended


def _records(dirs: tuple[JobDir, ...]) -> dict[int, ClusterRecord]:
    records = {}
    for jobdir in dirs:
        try:
            record = jobdir.read_record()
        except JobError:
            continue  # still being set up
        records[record.job_id] = record
    return records


def _read_record(job_id: int) -> ClusterRecord:
    """The cluster of a job, or of the heterogeneous job that it is a component of.

    :raise EndedError: it has ended.
    :raise JobError: there is none.
    """
    jobdir = JobDir.of(job_id)
    if not os.path.exists(jobdir.record_path):
        for record in _records(list_job_dirs()).values():
            if job_id in record.jobs:
                return record
        _check_ended(job_id)
    return jobdir.read_record()


def _check_ended(job_id: int) -> None:
    """:raise EndedError: Slurm knows the job, and that it is over.
    :raise SuspendedError: it was suspended while its VMs were started.
    :raise JobError: it is still to come.
    """
    try:
        states = read_states(job_id)
    except JobError:
        return
    if waiting := [each for each in states if each.waits]:
        raise JobError(
            f"cluster {job_id} does not run yet: its job is in Slurm's queue ({waiting[0].state})",
            hint=f"pvc ps tells why; squeue --start -j {job_id}, when it may begin",
        )
    if suspended := [each for each in states if each.is_suspended]:
        raise _suspended(suspended[0].job_id)
    if states and all(each.has_ended for each in states):
        raise EndedError(
            f"cluster {job_id} has ended; Slurm says of its job: {states[0].state}", hint="pvc ps lists those that run"
        )


def _check_coming(queue: Sequence[QueuedJob], name: str | None) -> None:
    """:raise JobError: a cluster will be there before long; SuspendedError, if it was suspended on its way."""
    for job in queue:
        if job.comment.startswith(COMMENT_PREFIX) and not job.component and name in (None, job.name):
            if job.state == "SUSPENDED":
                raise _suspended(job.job_id)
            state = "is still starting" if job.runs else f"does not run yet: its job is {job.state.lower()}"
            raise JobError(f"cluster {job.job_id} {state}", hint="pvc ps shows it; try again when it runs")


def _suspended(job_id: int) -> SuspendedError:
    return SuspendedError(
        f"job {job_id} is suspended, and its VMs do not run yet", hint=f"let it go on: scontrol resume {job_id}"
    )


def find_cluster(job_id: int | None, name: str | None, environ: Mapping[str, str] = os.environ) -> ClusterRecord:
    """The cluster that --job, --name or SLURM_JOB_ID means, else the only one.

    :raise JobError: there is no such cluster, or Slurm does not answer.
    :raise UsageError: more than one could be meant.
    """
    if job_id is None and name is None:
        text = environ.get("SLURM_JOB_ID", "")
        job_id = int(text) if text.isdecimal() else None
    if job_id is not None:
        record = _read_record(job_id)
        if name is not None and record.name != name:
            raise JobError(f"job {job_id} is called {record.name!r}, not {name!r}")
        return record
    queue = read_queue()
    records = _records(sweep({job.job_id: job for job in queue}))
    found = [record for record in records.values() if name is None or record.name == name]
    if not found:
        _check_coming(queue, name)
        which = f"no cluster of yours is called {name!r}" if name else "no cluster of yours runs"
        raise JobError(which, hint="pvc ps lists them; pvc alloc DEFINITION boots one")
    if len(found) > 1:
        numbers = ", ".join(str(record.job_id) for record in found)
        raise UsageError(f"several clusters could be meant: jobs {numbers}", hint="choose one with --job")
    return found[0]
