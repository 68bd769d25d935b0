"""What ``pvc alloc`` and ``pvc batch`` do before Slurm takes over: check everything, then become salloc or sbatch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pvc.config.load import load_user_config
from pvc.config.mounts import parse_mount
from pvc.errors import HostError, JobError, UsageError
from pvc.model.vm import Accel
from pvc.ops import handover, shell
from pvc.ops.definition import Overrides, find_size, find_slurm_args, parse_image_overrides, resolve
from pvc.ops.launch import find_pvc
from pvc.ops.registry import COMMENT_PREFIX
from pvc.parse import parse_size
from pvc.slurm.options import find_slurm_option
from pvc.slurm.submit import JobWishes, allocation_argv, batch_script, salloc_argv, sbatch_argv

_MIB = 1024 * 1024

# Slurm's ways to say what the definition, -c and -m say already
_CLAIMED = (
    ("--ntasks", "-n", "the number of VMs is in the definition, as debian:4"),
    ("--mem", "", "give each VM's memory with -m"),
    ("--mem-per-cpu", "", "give each VM's memory with -m"),
    ("--pvc", "", "the definition is the first word without a dash"),
)


@dataclass(frozen=True)
class ClusterWishes:
    """The options of ``pvc alloc`` and ``pvc batch``; ``memory`` is each guest's, as text."""

    definition: str | None
    slurm: tuple[str, ...] = ()
    cpus: int | None = None  # None: as the templates say
    memory: str | None = None
    nodes: str | None = None
    name: str = "pvc"
    images: tuple[str, ...] = ()
    user_data: str | None = None
    mounts: tuple[str, ...] = ()
    resource_set: str | None = None
    wait: bool | None = None
    quiet: bool = False


def run_alloc(wishes: ClusterWishes, script: Sequence[str]) -> NoReturn:
    """Check all, then become salloc, which runs the launcher in the job.

    :raise PvcError: something is wrong; nothing was asked of Slurm.
    """
    submission = prepare(wishes)
    words = ["--script", "--", *shell.find_script(script)] if script else []
    command = [find_pvc(), "launch", "--watch-parent", *words]
    _become(salloc_argv(submission.options, command), {**submission.variables, handover.VARIABLE: submission.text})


def run_batch(wishes: ClusterWishes, script: Sequence[str]) -> NoReturn:
    """Check all, then become sbatch, which queues a job that runs the launcher.

    :raise PvcError: something is wrong; nothing was asked of Slurm.
    """
    submission = prepare(wishes)
    if not script:
        raise UsageError("a batch job needs a script", hint="pvc batch -E SCRIPT DEFINITION [ARGUMENTS]")
    words = shell.find_script(script)
    command = [find_pvc(), "launch", "--script", "--", *words]
    job_text = batch_script(command, {handover.VARIABLE: submission.text})
    fd = os.memfd_create("pvc-batch")
    os.write(fd, job_text.encode())
    os.lseek(fd, 0, os.SEEK_SET)
    os.dup2(fd, 0)
    _become(sbatch_argv(submission.options), submission.variables)


@dataclass(frozen=True)
class Submission:
    """Slurm's options, the hand-over to the launcher, and what the shim's ``pvc resolve`` has to know."""

    options: list[str]
    text: str
    variables: dict[str, str]


def prepare(wishes: ClusterWishes) -> Submission:
    """Resolve and check everything that can be checked before the job exists.

    :raise PvcError: a wish is wrong, or what it names is missing.
    """
    if wishes.definition is None:
        raise UsageError("which VMs? a definition is missing", hint="for instance: pvc alloc debian:4")
    for long, short, advice in _CLAIMED:
        if find_slurm_option(wishes.slurm, long, short):
            raise UsageError(f"{long} is not for a cluster of VMs", hint=advice)
    config = load_user_config()
    overrides = Overrides(
        images=parse_image_overrides(wishes.images, wishes.definition),
        user_data=read_user_data(wishes.user_data) if wishes.user_data else None,
        resource_set=wishes.resource_set,
        mounts=tuple(parse_mount(each, os.getcwd()) for each in wishes.mounts),
    )
    size = find_size(wishes.definition, config, wishes.cpus, wishes.memory is not None)
    memory = wishes.memory if size.memory_mib is None else f"{size.memory_mib}M"
    order = resolve(wishes.definition, config, overrides, size.cpus)
    job = JobWishes(
        definition=wishes.definition,
        count=order.request.count,
        cpus=size.cpus,
        name=wishes.name,
        memory_mib=None if memory is None else allocated_memory_mib(memory, order.accel),
        nodes=wishes.nodes,
        quiet=wishes.quiet,
        comment=None if find_slurm_option(wishes.slurm, "--comment") else COMMENT_PREFIX + wishes.definition,
    )
    text = handover.encode(handover.Handover(order, wishes.wait, wishes.quiet))
    variables = {
        handover.CPUS_VARIABLE: str(size.cpus),
        handover.RESOLVED_VARIABLE: f"{wishes.definition} {order.request.encode()}",
    }
    before = (*config.batch.batch_args, *find_slurm_args(wishes.definition, config))
    return Submission(allocation_argv(job, before, wishes.slurm), text, variables)


def allocated_memory_mib(text: str, accel: Accel) -> int:
    """What to ask of Slurm for one VM whose guest shall have ``text`` of memory.

    :raise UsageError: not a size, or too little for any guest.
    """
    from pvc.plan.qemu import MIN_GUEST_MIB, guest_memory_mib

    try:
        wanted = parse_size(text, default_unit="m") // _MIB
    except ValueError as err:
        raise UsageError(f"-m {text}: {err}") from None
    if wanted < MIN_GUEST_MIB:
        raise UsageError(f"-m {text}: a guest needs {MIN_GUEST_MIB} MiB at least")
    plenty = 1 << 30
    return wanted + plenty - guest_memory_mib(plenty, accel)


def read_user_data(name: str) -> str:
    """The text of a --user-data file.

    :raise UsageError: it cannot be read, is empty, or is no text.
    """
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(f"cannot read --user-data {name}") from err
    if not text.strip():
        raise UsageError(f"--user-data {name} is empty")
    return text


def _become(argv: Sequence[str], variables: dict[str, str]) -> NoReturn:
    try:
        os.execvpe(argv[0], list(argv), {**os.environ, **variables})
    except FileNotFoundError as err:
        raise JobError(f"there is no {argv[0]}", hint="install Slurm's client commands on this machine") from err
    except OSError as err:
        raise HostError(f"cannot start {argv[0]}") from err
