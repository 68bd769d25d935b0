# SPDX-License-Identifier: Apache-2.0
"""What ``pvc alloc`` and ``pvc batch`` do before Slurm takes over: check everything, then become salloc or sbatch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import NoReturn

from pvc.config.load import load_user_config
from pvc.config.mounts import parse_mount
from pvc.errors import HostError, JobError, UsageError
from pvc.model.site import SiteConfig
from pvc.model.vm import has_disks, needs_libvirt
from pvc.ops import handover, shell
from pvc.ops.definition import LaunchOrder, Overrides, parse_image_overrides, resolve
from pvc.ops.display import Display
from pvc.ops.jobdir import check_jobs_dir
from pvc.ops.launch import find_pvc
from pvc.ops.registry import COMMENT_PREFIX
from pvc.ops.sizing import Part, find_parts, find_shared_args, make_sizes, spread_nodes
from pvc.ops.userdata import warn_of_schema
from pvc.ops.wholenodes import count_for_memory, gives_whole_nodes, is_exclusive, is_forced, is_packed
from pvc.parse import expand_home, parse_size
from pvc.slurm.ask import check_conf
from pvc.slurm.directives import read_directives
from pvc.slurm.installed import read_installed
from pvc.slurm.job import Selection, count_nodes, read_selection
from pvc.slurm.options import drop_options, find_slurm_option, find_values, split_words
from pvc.slurm.submit import (
    JobWishes,
    PartWishes,
    allocation_argv,
    batch_script,
    salloc_argv,
    sbatch_argv,
    submission_environment,
)

_MIB = 1024 * 1024

# Slurm's ways to say what the definition, -c and -m say already
_CLAIMED = (
    ("--ntasks", "-n", "the number of VMs is in the definition, as debian:4"),
    ("--mem", "", "give each VM's memory with -m"),
    ("--mem-per-cpu", "", "give each VM's memory with -m"),
    ("--mem-per-gpu", "", "give each VM's memory with -m"),
    ("--overcommit", "-O", "each VM has cores of its own: ask for fewer VMs, or fewer cores with -c"),
    ("--pvc", "", "the definition is the first word without a dash"),
    ("--no-shell", "", "VMs end with the shell or script beside them; pvc batch leaves them to themselves"),
    ("--wrap", "", "the script comes after the definition: pvc batch debian sh -c 'LINE'"),
    ("--container", "", "VMs have images of their own: --image"),
    ("--container-id", "", "VMs have images of their own: --image"),
)
# Of a script's #SBATCH lines; it may have been written for jobs without VMs.
_NOT_HONOURED = ("-n", "--pvc", *(long for long, _, _ in _CLAIMED))
_FIELDS = {
    **dict.fromkeys(("-J", "--job-name"), "name"),
    **dict.fromkeys(("-N", "--nodes"), "nodes"),
    **dict.fromkeys(("-c", "--cpus-per-task"), "cpus"),
}


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
    warn_s: tuple[float, ...] = ()  # how long before the job's end; 0: never


def run_alloc(wishes: ClusterWishes, script: Sequence[str]) -> NoReturn:
    """Check all, then become salloc, which runs the launcher in the job.

    :raise PvcError: something is wrong; nothing was asked of Slurm.
    """
    environment = _environment("salloc", quiet=wishes.quiet)
    submission = prepare(wishes)
    _check_components(submission)
    if not script:
        shell.check_shell(os.environ)
    words = ["--script", "--", *shell.find_script(script)] if script else []
    command = [find_pvc(), "launch", "--watch-parent", *words]
    variables = {**submission.variables, handover.VARIABLE: submission.text}
    _become(salloc_argv(submission.options, command), {**environment, **variables})


def run_batch(wishes: ClusterWishes, script: Sequence[str]) -> NoReturn:
    """Check all, then become sbatch, which queues a job that runs the launcher.

    :raise PvcError: something is wrong; nothing was asked of Slurm.
    """
    environment = _environment("sbatch", quiet=wishes.quiet)
    display = Display(sys.stderr, quiet=wishes.quiet)
    words = shell.find_script(script, display.warn) if script else []
    if words:
        wishes, ignored = add_directives(wishes, words[0])
        if ignored:
            display.say(
                f"not used of the script's #SBATCH lines: {' '.join(ignored)}; the definition, -c and -m say it"
            )
    submission = prepare(wishes, "sbatch")
    if not words:
        raise UsageError("a batch job needs a script", hint="pvc batch -E SCRIPT DEFINITION [ARGUMENTS]")
    _check_components(submission)
    command = [find_pvc(), "launch", "--script", "--", *words]
    job_text = batch_script(command, {handover.VARIABLE: submission.text})
    fd = os.memfd_create("pvc-batch")
    os.write(fd, os.fsencode(job_text))
    os.lseek(fd, 0, os.SEEK_SET)
    os.dup2(fd, 0)
    _become(sbatch_argv(submission.options), {**environment, **submission.variables})


def add_directives(wishes: ClusterWishes, program: str) -> tuple[ClusterWishes, tuple[str, ...]]:
    """The wishes with those of a script's #SBATCH lines, which the command line overrides; and what is left out.

    :raise UsageError: a line cannot be read, or has a word that is no option.
    """
    read = read_directives(Path(program))
    found = split_words(read, dict.fromkeys(_FIELDS, True), lambda: read_installed("sbatch")) if read else None
    if found is None:
        return wishes, ()
    if found.definition is not None:
        raise UsageError(f"{program}: {found.definition!r} in an #SBATCH line is no option")
    said: dict[str, str] = {}
    own = iter(found.own)
    for word in own:
        name, equals, value = word.partition("=") if word.startswith("--") else (word[:2], word[2:], word[2:])
        said[_FIELDS[name]] = value if equals else next(own, "")
    if "cpus" in said and wishes.cpus is None and not said["cpus"].isdecimal():
        raise UsageError(f"{program}: #SBATCH --cpus-per-task: {said['cpus']!r} is no number")
    slurm, ignored = drop_options(found.slurm, _NOT_HONOURED)
    wishes = replace(
        wishes,
        slurm=(*slurm, *wishes.slurm),
        name=wishes.name if wishes.name != ClusterWishes.name else said.get("name", wishes.name),
        nodes=wishes.nodes if wishes.nodes is not None else said.get("nodes"),
        cpus=wishes.cpus if wishes.cpus is not None or "cpus" not in said else int(said["cpus"]),
    )
    return wishes, ignored


def holder_argv(wishes: ClusterWishes) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of an alloc that tells its job's number once the VMs run, and lasts as long as its
    standard input.

    :raise PvcError: something is wrong; nothing was asked of Slurm.
    """
    environment = _environment("salloc", quiet=True)
    submission = prepare(wishes)
    _check_components(submission)
    script = ["/bin/sh", "-c", "echo $SLURM_JOB_ID; exec cat >/dev/null"]
    command = [find_pvc(), "launch", "--watch-parent", "--script", "--", *script]
    variables = {**submission.variables, handover.VARIABLE: submission.text}
    # Nobody sees what salloc says, but who gets no nodes in time reads there which job it is.
    options = [word for word in submission.options if word != "--quiet"]
    return salloc_argv(options, command), {**environment, **variables}


@dataclass(frozen=True)
class Submission:
    """Slurm's options, the hand-over to the launcher, and what the shim's ``pvc resolve`` has to know."""

    options: list[str]
    text: str
    variables: dict[str, str]
    components: int = 1


def prepare(wishes: ClusterWishes, program: str = "salloc") -> Submission:
    """Resolve and check everything that can be checked before the job exists, which ``program`` will ask for.

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
    warn_of_schema(order.templates.values())
    selection = cache(read_selection)
    asked, whole = _ask_for(parts, wishes, order, config, program, selection)
    words = (*config.batch.batch_args, *(word for part in parts for word in part.args), *wishes.slurm)
    spread = not is_forced(order.request.count, wishes.nodes)
    pack = is_packed(find_values(words, "--distribution", "-m"), selection if spread else Selection)
    order = replace(
        order,
        request=replace(order.request, pack=pack, whole=whole),
        memory_mib=tuple(_allocated(part, order) for part in parts),
    )
    _check_options(wishes, len(asked))
    job = JobWishes(
        definition=wishes.definition,
        name=wishes.name,
        parts=asked,
        quiet=wishes.quiet,
        comment=None if find_slurm_option(wishes.slurm, "--comment") else COMMENT_PREFIX + wishes.definition,
    )
    given = handover.Handover(order, wishes.wait, wishes.quiet)
    if wishes.warn_s:
        given = replace(given, warn_s=tuple(moment for moment in wishes.warn_s if moment))
    text = handover.encode(given)
    variables = {handover.RESOLVED_VARIABLE: f"{wishes.definition} {order.request.encode()}"}
    if len(parts) == 1:
        variables[handover.CPUS_VARIABLE] = str(parts[0].cpus)
    return Submission(allocation_argv(job, config.batch.batch_args, wishes.slurm), text, variables, len(asked))


def _ask_for(
    parts: Sequence[Part],
    wishes: ClusterWishes,
    order: LaunchOrder,
    config: SiteConfig,
    program: str,
    selection: Callable[[], Selection],
) -> tuple[tuple[PartWishes, ...], bool]:
    """What Slurm is asked for: a component for each size, or one task on one node for all of them; and whether the
    nodes are known to be given whole.

    :raise UsageError: the sizes, their options and the number of nodes do not go together.
    :raise JobError: Slurm does not answer.
    """
    nodes = wishes.nodes
    if len(parts) > 1 and nodes == "1":
        silent = [name for part in parts if part.memory_mib is None for name in part.templates]
        if silent and len(silent) < sum(len(part.templates) for part in parts):
            raise UsageError(
                f"template {silent[0]!r} does not say how much memory its VMs have, the others do",
                hint="on one node (-N 1) all or none have to; or say with -m what all shall have",
            )
        cpus = sum(part.count * part.cpus for part in parts)
        total = sum(part.count * (_allocated(part, order) or 0) for part in parts)
        return (PartWishes(1, cpus, total or None, "1", find_shared_args(parts, config), 1),), False
    found = []
    whole = False

    def is_whole(words: Sequence[str]) -> bool:
        nonlocal whole
        whole = gives_whole_nodes(words, os.environ, program, selection=selection)
        return whole

    for part, wanted in zip(parts, spread_nodes(parts, nodes), strict=True):
        memory_mib, on_node = _allocated(part, order), None
        words = (*config.batch.batch_args, *part.args, *wishes.slurm)
        whole = whole or is_exclusive(words, os.environ, program)
        if memory_mib is not None:
            on_node = count_for_memory(part.count, wanted, words, partial(is_whole, words), selection)
        found.append(PartWishes(part.count, part.cpus, memory_mib, wanted, part.args, on_node))
    return tuple(found), whole


def _allocated(part: Part, order: LaunchOrder) -> int | None:
    if part.memory_mib is None:
        return None
    from pvc.plan.qemumemory import needed_memory_mib

    templates = order.templates
    return needed_memory_mib(part.memory_mib, order.accel, libvirt=needs_libvirt(templates), disks=has_disks(templates))


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
    from pvc.plan.qemumemory import MIN_GUEST_MIB

    if wanted < MIN_GUEST_MIB:
        raise UsageError(f"-m {text}: a guest needs {MIN_GUEST_MIB} MiB at least")
    return wanted


def read_user_data(name: str) -> str:
    """What is in a --user-data file.

    :raise UsageError: it cannot be read, or cloud-init would not understand it.
    """
    from pvc.config.userdata import read_user_data_file

    try:
        return read_user_data_file(Path(expand_home(name, os.path.expanduser("~"))))
    except ValueError as err:
        raise UsageError(f"--user-data: {err}") from None


def _environment(program: str, *, quiet: bool) -> dict[str, str]:
    """What the program gets of this process' environment; wishes in it that cannot be followed are told.

    :raise JobError: SLURM_CONF names no file.
    :raise HostError: a cluster's directory cannot be made.
    """
    check_conf(os.environ)
    check_jobs_dir()
    kept, ignored = submission_environment(os.environ, program)
    if ignored:
        display = Display(sys.stderr, quiet=quiet)
        display.say(f"not used: {', '.join(ignored)}; the definition, -c and -m say what VMs need")
    return kept


def _become(argv: Sequence[str], environment: dict[str, str]) -> NoReturn:
    try:
        os.execvpe(argv[0], list(argv), environment)
    except FileNotFoundError as err:
        raise JobError(f"there is no {argv[0]}", hint="install Slurm's client commands on this machine") from err
    except OSError as err:
        raise HostError(f"cannot start {argv[0]}") from err
