# SPDX-License-Identifier: Apache-2.0
"""Arguments of salloc, sbatch and srun: pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Which Slurm it is, and how its programs write times for whoever reads them; all else that begins with SLURM is of a
# job around this process, or would be taken for a wish.
_SITE = _words("SLURM_CONF SLURM_CONF_SERVER SLURM_JWT SLURM_TIME_FORMAT")
# salloc(1), sbatch(1), INPUT ENVIRONMENT VARIABLES, behind SALLOC_ and SBATCH_: what a user may wish of any job. What
# speaks of tasks, cores or memory is left out: the definition, -c and -m say that.
_WISHES = _words("""
    ACCOUNT ACCTG_FREQ ARRAY_INX BATCH BELL BURST_BUFFER CLUSTER_CONSTRAINT CLUSTERS CONSTRAINT CORE_SPEC CPU_FREQ_REQ
    DELAY_BOOT ERROR EXCLUSIVE EXPORT GET_USER_ENV GPUS GPU_BIND GPU_FREQ GPUS_PER_NODE GPUS_PER_SOCKET GPUS_PER_TASK
    GRES GRES_FLAGS IGNORE_PBS IMMEDIATE INPUT KILL_CMD NETWORK NO_BELL NO_KILL NO_REQUEUE OPEN_MODE OUTPUT PARTITION
    POWER PROFILE QOS REQ_SWITCH REQUEUE RESERVATION SIGNAL SPREAD_JOB THREAD_SPEC TIMELIMIT USE_MIN_NODES WAIT
    WAIT_ALL_NODES WAIT4SWITCH WCKEY
""")
# What srun has to know of its job, and what hooks may want to; for components of a heterogeneous job with a number
# behind it. All else is the layout of the job's tasks, or a wish of the user's, and would be taken for the step's.
_JOB = _words("""
    SLURM_JOB_ID SLURM_JOBID SLURM_JOB_NAME SLURM_JOB_NODELIST SLURM_JOB_NUM_NODES SLURM_JOB_CPUS_PER_NODE
    SLURM_JOB_PARTITION SLURM_JOB_ACCOUNT SLURM_JOB_QOS SLURM_JOB_RESERVATION SLURM_JOB_UID SLURM_JOB_USER
    SLURM_CLUSTER_NAME SLURM_WORKING_CLUSTER SLURM_NODE_ALIASES SLURM_HET_SIZE SLURM_SUBMIT_DIR SLURM_SUBMIT_HOST
    SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID SLURM_RESTART_COUNT
""")
# What plug-ins noted for the job's steps (spank(8), job control environment), ours among them: a step that comes before
# its prolog has its node set up by it. Options of plug-ins come as such notes, too, and are the job's, not the step's.
_NOTE = re.compile(r"SLURM_SPANK_(?!_SLURM_SPANK_OPTION_)")
_GROUP = re.compile(r"_HET_GROUP_\d+\Z", re.ASCII)
# Handed from pvc to the plug-in and the launcher: those of a job around this process are not for the next one.
_PRIVATE = _words("PVC_LAUNCH PVC_RESOLVED PVC_CPUS_PER_VM PVC_DEFINITION PVC_JOB_DIR")
# Of other programs that read an environment for their options, or tell a task of a step who it is.
_FOREIGN = ("SPANK_", "_SLURM_", "PMI_", "PMIX_", "PMI2_")
_LAUNCH_S = 60


@dataclass(frozen=True)
class PartWishes:
    """VMs of one size, which are one component of the job; ``memory_mib`` is of the allocation, for one VM.

    ``on_node``: the memory of so many VMs is asked for on each node, 0: all that the node has; None: for each CPU.
    ``args``: Slurm's options for this component, as its templates say.
    """

    count: int
    cpus: int
    memory_mib: int | None = None
    nodes: str | None = None
    args: tuple[str, ...] = ()
    on_node: int | None = None


@dataclass(frozen=True)
class JobWishes:
    """What an allocation for a cluster needs; with more than one part it is a heterogeneous job."""

    definition: str
    name: str
    parts: tuple[PartWishes, ...]
    quiet: bool = False
    comment: str | None = None


def allocation_argv(wishes: JobWishes, site_args: Sequence[str], user_args: Sequence[str]) -> list[str]:
    """Options of an allocation; the user's come last, so that they win over the site's and the templates'.

    Both are repeated for each component, because Slurm carries few of them over (salloc(1), sbatch(1)).
    """
    words = [f"--pvc={wishes.definition}", f"--job-name={wishes.name}"]
    if wishes.quiet:
        words.append("--quiet")
    if wishes.comment is not None:
        words.append(f"--comment={wishes.comment}")
    for index, part in enumerate(wishes.parts):
        words += [":"] if index else []
        words += [f"--ntasks={part.count}", f"--cpus-per-task={part.cpus}"]
        if part.memory_mib is not None:
            words.append(_memory_option(part.memory_mib, part))
        if part.nodes is not None:
            words.append(f"--nodes={part.nodes}")
        words += [*site_args, *part.args, *user_args]
    return words


def _memory_option(memory_mib: int, part: PartWishes) -> str:
    if part.on_node is None:
        return f"--mem-per-cpu={-(-memory_mib // part.cpus)}M"
    return f"--mem={part.on_node * memory_mib}M" if part.on_node else "--mem=0"


def salloc_argv(options: Sequence[str], command: Sequence[str]) -> list[str]:
    """The command salloc, which runs ``command`` on this machine while the job lasts."""
    return ["salloc", *options, "--", *command]


def sbatch_argv(options: Sequence[str]) -> list[str]:
    """The command sbatch, which reads the script from standard input."""
    return ["sbatch", *options]


def batch_script(command: Sequence[str], variables: Mapping[str, str]) -> str:
    """A batch script that becomes ``command``; every word is quoted, nothing is left to the shell."""
    lines = ["#!/bin/sh"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items())]
    return "\n".join([*lines, f"exec {shlex.join(command)}", ""])


def supervisors_argv(nodes: Sequence[str], command: Sequence[str], component: int | None = None) -> list[str]:
    """The step that starts one task on each of ``nodes``, with all of the job's memory and cores there.

    No ``--unbuffered``: it would give the tasks a pseudo terminal. No ``-c``: it implies ``--exact``, and a
    step without it has every core of the job. No ``--input``: standard input goes to every task already.
    ``component``: that of a heterogeneous job which the nodes are of.
    """
    count = str(len(nodes))
    words = ["srun"] if component is None else ["srun", f"--het-group={component}"]
    words += ["--overlap", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1"]
    words += [f"--nodelist={','.join(nodes)}", "--mem=0", "--cpu-bind=none", "--mpi=none", "--job-name=pvc"]
    # The limits of a login (ulimit) are not meant for VMs: the step has those of the node's slurmd.
    words += ["--export=ALL", "--propagate=NONE"]
    # A busy node may take longer to start a task than Slurm's daemons wait for one another (MessageTimeout, 10 s), and
    # then srun would give up all nodes for one ("Socket timed out on send/recv operation").
    words += [f"--msg-timeout={_LAUNCH_S}"]
    words += ["--kill-on-bad-exit=0", "--no-kill", "--wait=0", "--quit-on-interrupt", "--disable-status", "--quiet"]
    return [*words, *command]


def submission_environment(environ: Mapping[str, str], program: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """What salloc or sbatch, and so the script, gets of the caller's; and the user's wishes that are left out.

    Nothing of a job around this process is among it: a job that is asked for inside of another is one of its own.
    """
    prefix = f"{program.upper()}_"
    kept, ignored = {}, []
    for name, value in environ.items():
        if name.startswith(prefix):
            if name.removeprefix(prefix) in _WISHES:
                kept[name] = value
            else:
                ignored.append(name)
        elif name in _SITE or name == "SLURM_CLUSTERS" or not _is_of_a_job(name):
            kept[name] = value
    return kept, tuple(sorted(ignored))


def step_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for ``supervisors_argv``: the user's own variables, and which job it is."""
    kept = {}
    for name, value in environ.items():
        is_needed = name in _SITE or name in _JOB or _GROUP.sub("", name) in _JOB or _NOTE.match(name) is not None
        if is_needed or not (_is_of_a_job(name) or name.startswith("SRUN_")):
            kept[name] = value
    return kept


def _is_of_a_job(name: str) -> bool:
    return name.startswith(("SLURM", *_FOREIGN)) or name in _PRIVATE
