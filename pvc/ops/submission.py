"""What ``pvc alloc`` and ``pvc batch`` do before Slurm takes over: check everything, then become salloc or sbatch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from pvc.config.load import load_user_config
from pvc.config.mounts import parse_mount
from pvc.errors import HostError, JobError, UsageError
from pvc.model.site import SiteConfig
from pvc.model.vm import Accel, needs_libvirt
from pvc.ops import handover, shell
from pvc.ops.definition import LaunchOrder, Overrides, parse_image_overrides, resolve
from pvc.ops.launch import find_pvc
from pvc.ops.registry import COMMENT_PREFIX
from pvc.ops.sizing import Part, find_parts, find_shared_args, make_sizes, spread_nodes
from pvc.parse import parse_duration, parse_size
from pvc.slurm.job import count_nodes
from pvc.slurm.options import find_slurm_option
from pvc.slurm.submit import JobWishes, PartWishes, allocation_argv, batch_script, salloc_argv, sbatch_argv

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
    warn: tuple[str, ...] = ()  # how long before the job's end, as text


def run_alloc(wishes: ClusterWishes, script: Sequence[str]) -> NoReturn:
    """Check all, then become salloc, which runs the launcher in the job.

    :raise PvcError: something is wrong; nothing was asked of Slurm.
    """
    submission = prepare(wishes)
    _check_components(submission)
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
    _check_components(submission)
    words = shell.find_script(script)
    command = [find_pvc(), "launch", "--script", "--", *words]
    job_text = batch_script(command, {handover.VARIABLE: submission.text})
    fd = os.memfd_create("pvc-batch")
    os.write(fd, job_text.encode())
    os.lseek(fd, 0, os.SEEK_SET)
    os.dup2(fd, 0)
    _become(sbatch_argv(submission.options), submission.variables)


def holder_argv(wishes: ClusterWishes) -> tuple[list[str], dict[str, str]]:
    """Command line and variables of an alloc that tells its job's number once the VMs run, and lasts as long as its
    standard input.

    :raise PvcError: something is wrong; nothing was asked of Slurm.
    """
    submission = prepare(wishes)
    _check_components(submission)
    script = ["/bin/sh", "-c", "echo $SLURM_JOB_ID; exec cat >/dev/null"]
    command = [find_pvc(), "launch", "--watch-parent", "--script", "--", *script]
    return salloc_argv(submission.options, command), {**submission.variables, handover.VARIABLE: submission.text}


@dataclass(frozen=True)
class Submission:
    """Slurm's options, the hand-over to the launcher, and what the shim's ``pvc resolve`` has to know."""

    options: list[str]
    text: str
    variables: dict[str, str]
    components: int = 1


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
    memory = None if wishes.memory is None else parse_guest_memory(wishes.memory)
    parts = find_parts(wishes.definition, config, wishes.cpus, memory)
    order = resolve(wishes.definition, config, overrides, parts[0].cpus, make_sizes(parts, with_cpus=True))
    asked = _ask_for(parts, wishes.nodes, order, config)
    if len(asked) < len(parts):
        order = replace(order, memory_mib=tuple(_allocated(part, order) for part in parts))
    _check_options(wishes, len(asked))
    job = JobWishes(
        definition=wishes.definition,
        name=wishes.name,
        parts=asked,
        quiet=wishes.quiet,
        comment=None if find_slurm_option(wishes.slurm, "--comment") else COMMENT_PREFIX + wishes.definition,
    )
    given = handover.Handover(order, wishes.wait, wishes.quiet)
    if wishes.warn:
        given = replace(given, warn_s=parse_moments(wishes.warn))
    text = handover.encode(given)
    variables = {handover.RESOLVED_VARIABLE: f"{wishes.definition} {order.request.encode()}"}
    if len(parts) == 1:
        variables[handover.CPUS_VARIABLE] = str(parts[0].cpus)
    return Submission(allocation_argv(job, config.batch.batch_args, wishes.slurm), text, variables, len(asked))


def _ask_for(
    parts: Sequence[Part], nodes: str | None, order: LaunchOrder, config: SiteConfig
) -> tuple[PartWishes, ...]:
    """What Slurm is asked for: a component for each size, or one task on one node for all of them.

    :raise UsageError: the sizes, their options and the number of nodes do not go together.
    """
    if len(parts) > 1 and nodes == "1":
        silent = [name for part in parts if part.memory_mib is None for name in part.templates]
        if silent and len(silent) < sum(len(part.templates) for part in parts):
            raise UsageError(
                f"template {silent[0]!r} does not say how much memory its VMs have, the others do",
                hint="on one node (-N 1) all or none have to; or say with -m what all shall have",
            )
        cpus = sum(part.count * part.cpus for part in parts)
        total = sum(part.count * (_allocated(part, order) or 0) for part in parts)
        return (PartWishes(1, cpus, total or None, "1", find_shared_args(parts, config)),)
    return tuple(
        PartWishes(part.count, part.cpus, _allocated(part, order), wanted, part.args)
        for part, wanted in zip(parts, spread_nodes(parts, nodes), strict=True)
    )


def _allocated(part: Part, order: LaunchOrder) -> int | None:
    if part.memory_mib is None:
        return None
    return allocated_memory_mib(part.memory_mib, order.accel, libvirt=needs_libvirt(order.templates))


def _check_components(submission: Submission) -> None:
    """A heterogeneous job would wait for ever where Slurm has fewer nodes than it has components.

    :raise UsageError: it has.
    """
    if submission.components == 1:
        return
    nodes = count_nodes()
    if nodes < submission.components:
        raise UsageError(
            f"VMs of {submission.components} sizes take as many nodes, and Slurm has {nodes}",
            hint="-N 1 puts all VMs on one node",
        )


def _check_options(wishes: ClusterWishes, components: int) -> None:
    """:raise UsageError: an option that means nodes, which components of a heterogeneous job cannot share."""
    for long, short in (("--nodelist", "-w"), ("--nodefile", "-F"), ("--array", "-a")):
        if components > 1 and find_slurm_option(wishes.slurm, long, short):
            raise UsageError(
                f"{long} is not for a cluster of VMs of {components} sizes: it is a heterogeneous job",
                hint="write it into slurm-args of each template, or put all VMs on one node with -N 1"
                if long != "--array"
                else "Slurm has no arrays of heterogeneous jobs",
            )


def parse_guest_memory(text: str) -> int:
    """MiB of -m.

    :raise UsageError: not a size, or too little for any guest.
    """
    try:
        wanted = parse_size(text, default_unit="m") // _MIB
    except ValueError as err:
        raise UsageError(f"-m {text}: {err}") from None
    from pvc.plan.qemu import MIN_GUEST_MIB

    if wanted < MIN_GUEST_MIB:
        raise UsageError(f"-m {text}: a guest needs {MIN_GUEST_MIB} MiB at least")
    return wanted


def allocated_memory_mib(wanted: int, accel: Accel, *, libvirt: bool = False) -> int:
    """What to ask of Slurm for one VM whose guest shall have ``wanted`` MiB of memory.

    :raise UsageError: too little for any guest.
    """
    from pvc.plan.qemu import MIN_GUEST_MIB, guest_memory_mib

    if wanted < MIN_GUEST_MIB:
        raise UsageError(f"{wanted}M of memory: a guest needs {MIN_GUEST_MIB} MiB at least")
    plenty = 1 << 30
    return wanted + plenty - guest_memory_mib(plenty, accel, libvirt=libvirt)


def parse_moments(texts: Sequence[str]) -> tuple[float, ...]:
    """Seconds before the job's end of --warn; "0": none.

    :raise UsageError: not a time.
    """
    try:
        return tuple(moment for moment in map(parse_duration, texts) if moment)
    except ValueError as err:
        raise UsageError(f"--warn: {err}") from None


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
