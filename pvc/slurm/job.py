"""Facts of the job around this process, and states of jobs."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pvc import run
from pvc.errors import CommandError, HostError, JobError
from pvc.parse import parse_cpus_per_node, parse_size
from pvc.slurm.nodes import expand_nodes

_MIB = 1024 * 1024
# squeue(1), "JOB STATE CODES": states in which a job's nodes are, or will be, its own
LIVE_STATES = frozenset(
    {"PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "COMPLETING", "RESIZING"}
    | {"REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"}
)


@dataclass(frozen=True)
class JobInfo:
    """A running job; memory is None where Slurm does not limit it."""

    job_id: int
    name: str
    nodes: tuple[str, ...]
    cpus: tuple[int, ...]  # of each node
    memory_per_cpu_mib: int | None
    memory_per_node_mib: int | None

    def vm_memory_mib(self, cpus_per_vm: int, most_vms_on_a_node: int) -> int | None:
        """Memory of the allocation for one VM, so that all VMs of a node fit; None: not limited."""
        if self.memory_per_cpu_mib:
            return self.memory_per_cpu_mib * cpus_per_vm
        if self.memory_per_node_mib:
            return self.memory_per_node_mib // max(1, most_vms_on_a_node)
        return None


@dataclass(frozen=True)
class QueuedJob:
    """One line of squeue."""

    job_id: int
    name: str
    state: str
    user: str
    elapsed: str
    nodes: str
    reason: str
    comment: str
    component: int = 0  # of a heterogeneous job


def read_components(environ: Mapping[str, str]) -> tuple[JobInfo, ...]:
    """The components of the heterogeneous job around this process, the leader first; of an ordinary job itself.

    Slurm gives every variable of a component with its number: SLURM_JOB_ID_HET_GROUP_0 (salloc(1)).

    :raise JobError: there is no job around this process, or Slurm does not know it.
    """
    count = environ.get("SLURM_HET_SIZE", "")
    # A job that was submitted from inside a heterogeneous one has the variables of that, too.
    if not count.isdecimal() or environ.get("SLURM_JOB_ID_HET_GROUP_0") != environ.get("SLURM_JOB_ID"):
        return (read_job(environ),)
    found = []
    for index in range(int(count)):
        end = f"_HET_GROUP_{index}"
        found.append(read_job({name.removesuffix(end): text for name, text in environ.items() if name.endswith(end)}))
    return tuple(found)


def read_job(environ: Mapping[str, str]) -> JobInfo:
    """The job that ``environ`` describes; asks scontrol once if the memory is not in it.

    :raise JobError: there is no job around this process, or Slurm does not know it.
    """
    try:
        job_id = int(environ["SLURM_JOB_ID"])
        nodes = expand_nodes(environ["SLURM_JOB_NODELIST"])
        cpus = parse_cpus_per_node(environ["SLURM_JOB_CPUS_PER_NODE"])
    except KeyError as err:
        raise JobError(f"not inside a Slurm job ({err.args[0]} is not set)", hint="pvc alloc makes one") from err
    except ValueError as err:
        raise JobError("Slurm's environment cannot be read") from err
    name = environ.get("SLURM_JOB_NAME", "pvc")
    per_cpu, per_node = environ.get("SLURM_MEM_PER_CPU"), environ.get("SLURM_MEM_PER_NODE")
    if per_cpu or (per_node and per_node != "0"):
        return JobInfo(job_id, name, nodes, cpus, _mib(per_cpu), _mib(per_node))
    fields = read_job_fields(job_id)
    return JobInfo(job_id, name, nodes, cpus, _mib(fields.get("MinMemoryCPU")), _node_memory_mib(fields, len(nodes)))


def read_job_fields(job_id: int) -> dict[str, str]:
    """What ``scontrol show job`` says of a job, by key.

    :raise JobError: Slurm does not know the job, or does not answer.
    """
    return parse_fields(_ask(["scontrol", "--oneliner", "show", "job", str(job_id)], f"ask Slurm for job {job_id}"))


def read_end(job_id: int) -> float | None:
    """When Slurm will end a job, seconds since the epoch; None: it has no limit.

    :raise JobError: Slurm does not know the job, or does not answer.
    """
    return parse_moment(read_job_fields(job_id).get("EndTime", ""))


def parse_moment(text: str) -> float | None:
    """Seconds since the epoch of Slurm's local time, as "2026-11-25T02:03:04"; None: "Unknown", "NONE" and the like."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return None


def read_states(job_id: int) -> dict[int, str]:
    """The state of each component of a heterogeneous job, or of an ordinary job alone, by job id.

    :raise JobError: Slurm does not know the job, or does not answer.
    """
    text = _ask(["scontrol", "--oneliner", "show", "job", str(job_id)], f"ask Slurm for job {job_id}")
    lines = [parse_fields(line) for line in text.splitlines() if line.strip()]
    return {int(fields.get("JobId", job_id)): fields.get("JobState", "") for fields in lines}


def count_nodes() -> int:
    """Nodes that Slurm has at all, whatever their state.

    :raise JobError: Slurm does not answer.
    """
    return len(set(_ask(["sinfo", "--noheader", "--Node", "--format", "%N"], "ask Slurm for its nodes").split()))


def read_cluster_name() -> str | None:
    """The name of the Slurm cluster that commands on this machine talk to.

    :raise JobError: Slurm does not answer.
    """
    return _read_setting("ClusterName")


def read_kill_wait() -> float | None:
    """How long a job's processes have between Slurm's first signal and the last: KillWait of slurm.conf(5), in seconds.

    :raise JobError: Slurm does not answer.
    """
    words = (_read_setting("KillWait") or "").split()
    return float(words[0]) if words and words[0].isdecimal() else None


def _read_setting(name: str) -> str | None:
    for line in _ask(["scontrol", "show", "config"], "ask Slurm for its settings").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == name:
            return value.strip()
    return None


def parse_fields(text: str) -> dict[str, str]:
    """``key=value`` words of scontrol's one-line form; a value with blanks keeps its first word only."""
    fields: dict[str, str] = {}
    for word in text.split():
        key, equals, value = word.partition("=")
        if equals:
            fields.setdefault(key, value)
    return fields


# Unit separator: no job name or comment can hold it on a command line that people type
_SEPARATOR = "\x1f"
_COLUMNS = ("%A", "%j", "%T", "%u", "%M", "%N", "%r", "%k", "%i")


def read_queue(*, all_users: bool = False) -> tuple[QueuedJob, ...]:
    """Jobs of this user, or of all, that Slurm still has.

    :raise JobError: Slurm does not answer.
    """
    owner = [] if all_users else ["--user", str(os.getuid())]
    argv = ["squeue", "--noheader", "--states=all", *owner, "--format", _SEPARATOR.join(_COLUMNS)]
    return parse_queue(_ask(argv, "ask Slurm for jobs"))


def parse_queue(text: str) -> tuple[QueuedJob, ...]:
    """Lines of squeue in the columns of ``read_queue``; of an array's tasks, each is a job."""
    jobs = []
    for line in text.splitlines():
        parts = line.split(_SEPARATOR)
        if len(parts) == len(_COLUMNS) and parts[0].strip().isdigit() and parts[2] in LIVE_STATES:
            name, state, user, elapsed, nodes, reason, comment, place = parts[1:]
            component = _parse_component(place)
            jobs.append(QueuedJob(int(parts[0]), name, state, user, elapsed, nodes, reason, comment, component))
    return tuple(jobs)


def _parse_component(text: str) -> int:
    """The number behind the leader's job id: "7+1" (squeue(1), "%i")."""
    _, _, number = text.strip().partition("+")
    return int(number) if number.isdigit() else 0


def read_reasons(nodes: Sequence[str]) -> dict[str, str]:
    """Why nodes are out of service, by node, as ``sinfo -R`` tells it; nodes in service are left out.

    :raise JobError: Slurm does not answer.
    """
    argv = ["sinfo", "--noheader", "--Node", "--nodes", ",".join(nodes), "--format", _SEPARATOR.join(("%N", "%E"))]
    return parse_reasons(_ask(argv, "ask Slurm for the state of nodes"))


def parse_reasons(text: str) -> dict[str, str]:
    """Lines of sinfo as ``read_reasons`` asks for them; "none" is sinfo's word for no reason."""
    pairs = (line.split(_SEPARATOR, 1) for line in text.splitlines() if _SEPARATOR in line)
    return {node.strip(): reason.strip() for node, reason in pairs if reason.strip() not in ("", "none")}


def cancel_job(job_id: int) -> None:
    """End a job; one that has ended already is fine.

    :raise JobError: Slurm refuses or does not answer.
    """
    _ask(["scancel", "--quiet", str(job_id)], f"cancel job {job_id}")


def _ask(argv: list[str], what: str) -> str:
    try:
        return run.run(argv, env=os.environ, timeout_s=30)
    except CommandError as err:
        raise JobError(f"cannot {what}: {err.stderr.strip() or err}") from None
    except HostError as err:
        raise JobError(f"cannot {what}", hint="install Slurm's client commands on this machine") from err


def _mib(text: str | None) -> int | None:
    """Slurm's memory text ("100M", "2G", "4096") in MiB; 0 means no limit."""
    if not text:
        return None
    try:
        return parse_size(text, default_unit="m") // _MIB or None
    except ValueError:
        return None


def _node_memory_mib(fields: Mapping[str, str], nodes: int) -> int | None:
    """Memory of a node: its own limit, else an even part of what the job was given in all (TRES)."""
    own = _mib(fields.get("MinMemoryNode"))
    if own:
        return own
    for part in fields.get("TRES", "").split(","):
        key, _, value = part.partition("=")
        if key == "mem":
            total = _mib(value)
            return total // max(1, nodes) if total else None
    return None
