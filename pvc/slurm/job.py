# SPDX-License-Identifier: Apache-2.0
"""Facts of the job around this process, and states of jobs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pvc.errors import JobError
from pvc.parse import parse_cpus_per_node, parse_size
from pvc.slurm.ask import ask, ask_rows
from pvc.slurm.nodes import expand_nodes

_MIB = 1024 * 1024
# squeue(1), "JOB STATE CODES": what a running job is called. While Slurm signals it, or changes its size, squeue names
# that in the place of RUNNING, so a job that was just told to go is SIGNALING until all its nodes have answered.
_RUNNING_STATES = frozenset({"RUNNING", "SIGNALING", "RESIZING"})
# In these a job's processes are on its nodes.
_LIVE_STATES = _RUNNING_STATES | {"CONFIGURING", "STAGE_OUT", "STOPPED"}
# States in which a job has its nodes and is not about to leave them, whether its processes go on or stand still.
_HELD_STATES = _RUNNING_STATES | {"SUSPENDED", "STOPPED"}
# squeue(1), "JOB STATE CODES": states in which a job's nodes are, or will be, its own
_OWNING_STATES = _LIVE_STATES | {"PENDING", "SUSPENDED", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"}
# States that a job does not leave again. What is in neither set is no word that it has ended.
_ENDED_STATES = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
)
# States in which a job has no nodes, and will have some.
_WAITING_STATES = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
# Hidden partitions and all; and of a federation's other clusters, which may run what was submitted here. Where there is
# none that is this cluster alone.
SQUEUE = ("squeue", "--noheader", "--all", "--sibling")
_REVOKED = "REVOKED"  # a job that another cluster of the federation runs, in the words of the one that gave it away
_SINFO = ("sinfo", "--noheader", "--all", "--local")


@dataclass(frozen=True)
class JobInfo:
    """A running job; memory is None where Slurm does not limit it."""

    job_id: int
    name: str
    nodes: tuple[str, ...]
    cpus: tuple[int, ...]  # of each node
    memory_per_cpu_mib: int | None
    memory_per_node_mib: int | None

    def node_memory_mib(self, index: int) -> int | None:
        """Memory of the allocation on the node of this index; None: not limited."""
        if self.memory_per_cpu_mib:
            return self.memory_per_cpu_mib * self.cpus[index]
        return self.memory_per_node_mib

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

    @property
    def runs(self) -> bool:
        """Whether it has begun and goes on, whatever Slurm is doing with it."""
        return self.state in _RUNNING_STATES


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
    fields = _read_memory_fields(job_id, name)
    return JobInfo(job_id, name, nodes, cpus, _mib(fields.get("MinMemoryCPU")), _node_memory_mib(fields, len(nodes)))


def _read_memory_fields(job_id: int, name: str) -> dict[str, str]:
    """What scontrol says of a job's memory; these keys come before all texts of the user's but the job's name.

    :raise JobError: Slurm does not know the job, or does not answer.
    """
    text = ask(["scontrol", "--oneliner", "--details", "show", "job", str(job_id)], f"ask Slurm for job {job_id}")
    return parse_fields(text.partition(f" JobName={name} ")[2] or text)


@dataclass(frozen=True)
class JobState:
    """A job that Slurm has, or a component of a heterogeneous one; ``end``: seconds since the epoch, None: no limit."""

    job_id: int
    state: str
    nodes: tuple[str, ...]
    end: float | None

    @property
    def has_ended(self) -> bool:
        """Whether it will never run again."""
        return self.state in _ENDED_STATES

    @property
    def waits(self) -> bool:
        """Whether it has no nodes yet, or has them no more and will get others: it is in the queue."""
        return self.state in _WAITING_STATES

    @property
    def is_suspended(self) -> bool:
        """Whether its processes stand still."""
        return self.state == "SUSPENDED"

    @property
    def lives(self) -> bool:
        """Whether its processes go on."""
        return is_live(self.state)

    @property
    def holds_nodes(self) -> bool:
        """Whether it runs, or is suspended and will go on."""
        return self.state in _HELD_STATES


def is_live(state: str) -> bool:
    """Whether in this state, by squeue's word, a job's processes go on."""
    return state in _LIVE_STATES


_STATE_COLUMNS = ("%A", "%T", "%N", "%e")
# scontrol(1), squeue(1), of Slurm 22.05: said of a number that no job has, or none that Slurm still remembers
_UNKNOWN_JOB = "Invalid job id"


def read_states(job_id: int) -> tuple[JobState, ...]:
    """The components of a heterogeneous job, leader first, or an ordinary job alone; nothing: Slurm knows no such job.

    :raise JobError: Slurm does not answer.
    """
    argv = [*SQUEUE, "--states=all", f"--jobs={job_id}"]
    try:
        rows = ask_rows(argv, _STATE_COLUMNS, f"ask Slurm for job {job_id}")
    except JobError as err:
        if _UNKNOWN_JOB in str(err):
            return ()
        raise
    found = parse_states(rows)
    if not found:
        raise JobError(f"cannot ask Slurm for job {job_id}: squeue said nothing of it")
    return found


def find_job_id(name: str) -> int:
    """The job that Slurm itself numbers otherwise: a task of an array ("24_1"), a component ("24+1").

    :raise JobError: Slurm has no such job, or does not answer.
    """
    _, _, task = name.partition("_")
    leader, _, offset = name.partition("+")
    unknown = JobError(f"Slurm has no job {name}", hint="pvc ps lists your clusters; squeue --me, your jobs")
    if task:
        try:
            rows = ask_rows([*SQUEUE, "--states=all", f"--jobs={name}"], ("%A",), f"ask Slurm for job {name}")
        except JobError as err:
            raise (unknown if _UNKNOWN_JOB in str(err) else err) from None
        # Tasks that have not begun share the number of the whole array: "24_[3-7]".
        found = {int(number) for (number,) in rows if number.strip().isdecimal()}
        if len(found) != 1:
            raise unknown
        return found.pop()
    components = read_states(int(leader))
    if int(offset) >= len(components):
        raise unknown
    return components[int(offset)].job_id


def parse_states(rows: Sequence[Sequence[str]]) -> tuple[JobState, ...]:
    """Rows of squeue in the columns of ``read_states``: of a job that several clusters of a federation have, the one of
    the cluster that runs it.
    """
    found: dict[int, JobState] = {}
    for number, state, nodes, end in rows:
        if not number.strip().isdecimal():
            continue
        job = JobState(int(number), state.strip(), _nodes_of(nodes), parse_moment(end))
        if found.setdefault(job.job_id, job).state == _REVOKED:
            found[job.job_id] = job
    return tuple(sorted(found.values(), key=lambda each: each.job_id))


def _nodes_of(text: str) -> tuple[str, ...]:
    try:
        return expand_nodes(text.strip())
    except ValueError:
        return ()


def has_ended(job_id: int) -> bool:
    """Whether Slurm, asked for this job by its number, says that it is over, or knows nothing of it any more.

    :raise JobError: Slurm does not answer.
    """
    return all(each.has_ended for each in read_states(job_id))


def read_end(job_id: int) -> float | None:
    """When Slurm will end a job, seconds since the epoch; None: it has no limit.

    :raise JobError: Slurm does not know the job, or does not answer.
    """
    states = {each.job_id: each for each in read_states(job_id)}
    if job_id not in states:
        raise JobError(f"Slurm knows no job {job_id}", hint="pvc ps lists your clusters")
    return states[job_id].end


def parse_moment(text: str) -> float | None:
    """Seconds since the epoch, as ``ask`` has them told; None: "Unknown", "NONE" and the like."""
    word = text.strip()
    return float(word) if word.isdecimal() else None


def count_nodes() -> int:
    """Nodes that Slurm has at all, whatever their state.

    :raise JobError: Slurm does not answer.
    """
    return len({name for (name,) in ask_rows([*_SINFO, "--Node"], ("%N",), "ask Slurm for its nodes")})


def read_cluster_name() -> str | None:
    """The name of the Slurm cluster that commands on this machine talk to.

    :raise JobError: Slurm does not answer.
    """
    return _read_setting("ClusterName")


@dataclass(frozen=True)
class Selection:
    """How Slurm chooses nodes: SelectType of slurm.conf(5), such as "select/cons_tres", and SelectTypeParameters."""

    type: str = ""
    parameters: frozenset[str] = frozenset()


def read_selection() -> Selection:
    """How this Slurm does.

    :raise JobError: Slurm does not answer.
    """
    found = read_settings()
    words = found.get("SelectTypeParameters", "").upper().split(",")
    return Selection(found.get("SelectType", ""), frozenset(words) - {""})


@dataclass(frozen=True)
class Partition:
    """One of Slurm's partitions; ``whole_nodes``: a job gets each of its nodes for itself, whatever it asks for.

    ``grace_s``: how long a job that is preempted stays.
    """

    name: str
    is_default: bool
    whole_nodes: bool
    grace_s: float = 0.0


def read_partitions() -> tuple[Partition, ...]:
    """All partitions.

    :raise JobError: Slurm does not answer.
    """
    argv = ["scontrol", "--all", "--local", "--oneliner", "show", "partition"]
    return parse_partitions(ask(argv, "ask Slurm for its partitions"))


def parse_partitions(text: str) -> tuple[Partition, ...]:
    """What ``read_partitions`` is told: a line of settings for each.

    Nodes are given whole by OverSubscribe=EXCLUSIVE, which 26.05 shows as Exclusive=NODE (sinfo does not show it).
    """
    found = []
    for line in text.splitlines():
        settings = {key: value for key, _, value in (word.partition("=") for word in line.split())}
        is_whole = settings.get("OverSubscribe") == "EXCLUSIVE" or settings.get("Exclusive") in {"NODE", "TOPO"}
        if "PartitionName" in settings:
            grace = settings.get("GraceTime", "")
            grace_s = float(grace) if grace.isdecimal() else 0.0
            found.append(Partition(settings["PartitionName"], settings.get("Default") == "YES", is_whole, grace_s))
    return tuple(found)


def read_kill_wait() -> float | None:
    """How long a job's processes have between Slurm's first signal and the last: KillWait of slurm.conf(5), in seconds.

    :raise JobError: Slurm does not answer.
    """
    words = (_read_setting("KillWait") or "").split()
    return float(words[0]) if words and words[0].isdecimal() else None


def _read_setting(name: str) -> str | None:
    return read_settings().get(name)


def read_settings() -> dict[str, str]:
    """Slurm's configuration, as its controller has it (scontrol(1), show config).

    :raise JobError: the controller does not answer.
    """
    lines = ask(["scontrol", "show", "config"], "ask Slurm for its settings").splitlines()
    parts = (line.partition("=") for line in reversed(lines))  # of two of one name the first counts
    return {key.strip(): value.strip() for key, equals, value in parts if equals}


def parse_fields(text: str) -> dict[str, str]:
    """``key=value`` words of scontrol's one-line form; a value with blanks keeps its first word only."""
    fields: dict[str, str] = {}
    for word in text.split():
        key, equals, value = word.partition("=")
        if equals:
            fields.setdefault(key, value)
    return fields


_COLUMNS = ("%A", "%j", "%T", "%u", "%M", "%N", "%r", "%k", "%i")


def read_queue(*, all_users: bool = False) -> tuple[QueuedJob, ...]:
    """Jobs of this user, or of all, that Slurm still has. A job that is missing here has not therefore ended.

    :raise JobError: Slurm does not answer.
    """
    owner = [] if all_users else [f"--user={os.getuid()}"]
    return parse_queue(ask_rows([*SQUEUE, "--states=all", *owner], _COLUMNS, "ask Slurm for jobs"))


def parse_queue(rows: Sequence[Sequence[str]]) -> tuple[QueuedJob, ...]:
    """Rows of squeue in the columns of ``read_queue``; of an array's tasks, each is a job. One that waits in several
    clusters of a federation is one job.
    """
    jobs: dict[int, QueuedJob] = {}
    for number, name, state, user, elapsed, nodes, reason, comment, place in rows:
        if number.strip().isdecimal() and state in _OWNING_STATES:
            component = _parse_component(place)
            job = QueuedJob(int(number), name, state, user, elapsed, nodes, reason, comment, component)
            jobs.setdefault(job.job_id, job)
    return tuple(jobs.values())


def _parse_component(text: str) -> int:
    """The number behind the leader's job id: "7+1" (squeue(1), "%i")."""
    _, _, number = text.strip().partition("+")
    return int(number) if number.isdecimal() else 0


def read_reasons(nodes: Sequence[str]) -> dict[str, str]:
    """Why nodes are out of service, by node, as ``sinfo -R`` tells it; nodes in service are left out.

    :raise JobError: Slurm does not answer.
    """
    argv = [*_SINFO, "--Node", f"--nodes={','.join(nodes)}"]
    return parse_reasons(ask_rows(argv, ("%N", "%E"), "ask Slurm for the state of nodes"))


def parse_reasons(rows: Sequence[Sequence[str]]) -> dict[str, str]:
    """Rows of sinfo as ``read_reasons`` asks for them; "none" is sinfo's word for no reason."""
    return {node.strip(): reason.strip() for node, reason in rows if reason.strip() not in ("", "none")}


def cancel_job(job_id: int) -> None:
    """End a job; one that has ended already is fine.

    :raise JobError: Slurm refuses or does not answer.
    """
    ask(["scancel", "--quiet", str(job_id)], f"cancel job {job_id}")


def _mib(text: str | None) -> int | None:
    """Slurm's memory text ("100M", "2G", "4096") in MiB; 0 means no limit."""
    if not text:
        return None
    try:
        return parse_size(text, default_unit="m") // _MIB or None
    except ValueError:
        return None


def _node_memory_mib(fields: Mapping[str, str], nodes: int) -> int | None:
    """Memory of a node: its own limit, else what the job has on the first of its nodes (Mem, of --details), which is
    all that the node has, else an even part of what the job was given in all (TRES).
    """
    own = _mib(fields.get("MinMemoryNode")) or _mib(fields.get("Mem"))
    if own:
        return own
    for part in fields.get("TRES", "").split(","):
        key, _, value = part.partition("=")
        if key == "mem":
            total = _mib(value)
            return total // max(1, nodes) if total else None
    return None
