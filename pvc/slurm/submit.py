"""Arguments of salloc, sbatch and srun: pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# What a job's environment says of its tasks and memory: srun would take it for wishes of the step.
_STEP_WISHES = (
    "SLURM_CPUS_PER_TASK",
    "SLURM_CPU_BIND",
    "SLURM_DISTRIBUTION",
    "SLURM_EXACT",
    "SLURM_EXCLUSIVE",
    "SLURM_GRES",
    "SLURM_HINT",
    "SLURM_LABELIO",
    "SLURM_MEM_BIND",
    "SLURM_MEM_PER_CPU",
    "SLURM_MEM_PER_GPU",
    "SLURM_MEM_PER_NODE",
    "SLURM_NNODES",
    "SLURM_NPROCS",
    "SLURM_NTASKS",
    "SLURM_NTASKS_PER_CORE",
    "SLURM_NTASKS_PER_GPU",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_NTASKS_PER_SOCKET",
    "SLURM_NUM_NODES",
    "SLURM_STDINMODE",
    "SLURM_STDOUTMODE",
    "SLURM_STDERRMODE",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_TASKS_PER_NODE",
    "SLURM_THREADS_PER_CORE",
    "SLURM_TRES_PER_TASK",
    "SLURM_UNBUFFEREDIO",
    "SLURM_KILL_BAD_EXIT",
    "SLURM_WAIT",
    "SLURM_WORKING_DIR",
)


@dataclass(frozen=True)
class PartWishes:
    """VMs of one size, which are one component of the job; ``memory_mib`` is of the allocation, for one VM.

    ``args``: Slurm's options for this component, as its templates say.
    """

    count: int
    cpus: int
    memory_mib: int | None = None
    nodes: str | None = None
    args: tuple[str, ...] = ()


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
            words.append(f"--mem-per-cpu={-(-part.memory_mib // part.cpus)}M")
        if part.nodes is not None:
            words.append(f"--nodes={part.nodes}")
        words += [*site_args, *part.args, *user_args]
    return words


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
    words += ["--kill-on-bad-exit=0", "--no-kill", "--wait=0", "--quit-on-interrupt", "--disable-status", "--quiet"]
    return [*words, *command]


def step_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for ``supervisors_argv``: ``environ`` without the job's own task layout."""
    return {
        name: value
        for name, value in environ.items()
        if name not in _STEP_WISHES and not name.startswith(("SRUN_", "PVC_LAUNCH"))
    }
