# SPDX-License-Identifier: Apache-2.0
"""Commands for a whole cluster of VMs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from pvc.cli import output
from pvc.cli.options import cluster_options, guest_options, json_option, quiet_option, time_option
from pvc.cli.passthrough import BatchCommand, SlurmCommand, slurm_words

Function = TypeVar("Function", bound=Callable[..., Any])


def _wishes_options(function: Function) -> Function:
    """Add the options that ``alloc`` and ``batch`` share."""
    decorators = [
        click.option("-c", "--cpus", "--cpus-per-task", metavar="N", type=click.IntRange(min=1),
                     help="Cores of each VM. Default: the template's, or 1."),
        click.option("-m", "--memory", metavar="SIZE",
                     help="Memory of each guest, as 2G; QEMU's own is added. Default: the template's, or Slurm's."),
        click.option("-N", "--nodes", metavar="N", help="Number of nodes, as for Slurm: 3 or 2-4."),
        click.option("-J", "--name", "--job-name", "name", default="pvc", show_default=True, metavar="NAME",
                     help="Name of the job."),
        click.option("-E", "--script", is_flag=False, metavar="SCRIPT",
                     help="Run SCRIPT with the ARGUMENTS instead of a shell; its exit code is the command's."),
        guest_options,
        click.option("--resource-set", metavar="NAME", help="Use these networks instead of the templates'."),
        time_option("--warn", "warn_s", multiple=True,
                    help="Warn here and in the guests so long before the job's end (default: 10m and 1m; 0: never)."),
        quiet_option,
        click.argument("definition", required=False),
        click.argument("arguments", nargs=-1, type=click.UNPROCESSED),
    ]  # fmt: skip
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


@click.command(cls=SlurmCommand)
@_wishes_options
@click.option(
    "--wait/--no-wait", default=None, help="Wait until all VMs answer (default: for a shell, not for a script)."
)
@click.pass_context
def alloc(ctx: click.Context, /, script: str | None, arguments: tuple[str, ...], **options: Any) -> None:
    """Boot a cluster of VMs in a new job, and open a shell beside it.

    DEFINITION is TEMPLATE[:COUNT][,TEMPLATE[:COUNT]...]; the VMs are vm0, vm1, and so on. With a SCRIPT, or a
    command after the definition, that is run instead of the shell. The VMs end with it.

    Any option of salloc may be given, also those of plug-ins.
    """
    from pvc.ops.submission import ClusterWishes, run_alloc

    run_alloc(ClusterWishes(slurm=slurm_words(ctx), **options), _command_line(script, arguments))


@click.command(cls=BatchCommand)
@_wishes_options
@click.option("--wait-vms", "wait", is_flag=True, help="Begin the script when all VMs answer, not when they boot.")
@click.pass_context
def batch(ctx: click.Context, /, script: str | None, arguments: tuple[str, ...], **options: Any) -> None:
    """Queue a job that boots a cluster of VMs and runs a script on its first node.

    The job's exit code is the script's. Any option of sbatch may be given, also in lines of the script that begin with
    #SBATCH; --wait is sbatch's own.
    """
    from pvc.ops.submission import ClusterWishes, run_batch

    run_batch(ClusterWishes(slurm=slurm_words(ctx), **options), _command_line(script, arguments))


@click.command(hidden=True)
@click.argument("definition")
def resolve(definition: str) -> None:
    """Print the request of DEFINITION: the SPANK plug-in calls this where a job is submitted."""
    from pvc.config.load import load_user_config
    from pvc.ops import handover
    from pvc.ops.sizing import resolve_by_hand
    from pvc.ops.wholenodes import find_dealing
    from pvc.slurm.caller import read_caller

    cpus = os.environ.get(handover.CPUS_VARIABLE, "")
    request = resolve_by_hand(definition, load_user_config(), int(cpus) if cpus.isdecimal() else None)
    caller = read_caller(os.getppid())
    if caller is not None:
        request = find_dealing(request, caller.words, os.environ, caller.program)
    output.say(request.encode())


@click.command(hidden=True)
@click.option("--script", is_flag=True, help="The words are a script; without it, a shell is opened.")
@click.option("--watch-parent", is_flag=True, help="End the job when the parent process dies.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def launch(ctx: click.Context, script: bool, watch_parent: bool, words: tuple[str, ...]) -> None:
    """Boot the cluster that the environment describes in the job around this process."""
    from pvc.errors import UsageError
    from pvc.ops import handover
    from pvc.ops.display import Display
    from pvc.ops.launch import Mission, launch

    text = os.environ.get(handover.VARIABLE)
    if text is None:
        raise UsageError(f"{handover.VARIABLE} is not set", hint="this command is for pvc alloc; try pvc start")
    given = handover.decode(text)
    if script and not words:
        raise UsageError("the script is missing")
    mission = Mission(given, words if script else (), watch_parent)
    ctx.exit(launch(mission, os.environ, Display(sys.stderr, quiet=given.quiet)))


@click.command(hidden=True)
@click.argument("job", type=int)
@click.argument("seconds", type=int)
@click.argument("text")
def announce(job: int, seconds: int, text: str) -> None:
    """Tell whoever is in the guests that the job ends soon: the launcher calls this."""
    from pvc.cli.vm import find_control
    from pvc.ops.announce import announce as tell

    output.say(f"told {tell(find_control(job, None), seconds, text)} VMs")


@click.command()
@click.argument("words", nargs=-1, metavar="[DEFINITION | VM...]")
@guest_options
@click.option("--wait", is_flag=True, help="Wait until all VMs answer, not only until they boot.")
@quiet_option
@cluster_options
@json_option
def start(
    words: tuple[str, ...],
    images: tuple[str, ...],
    user_data: str | None,
    mounts: tuple[str, ...],
    wait: bool,
    quiet: bool,
    job_id: int | None,
    job_name: str | None,
    as_json: bool,
) -> None:
    """Boot the VMs of the job around this command, and return when they run; or start stopped VMs of a cluster again.

    For jobs made with salloc --pvc=DEFINITION or sbatch --pvc=DEFINITION; that definition is the default. The
    VMs end with the job, or by pvc stop.

    With names or sets of VMs, such as vm0 or vm[2-5]: those of a running cluster that have stopped or failed
    boot again, on the disks, addresses and ports that they had. A template that is called as a VM is written vm0:1.
    """
    from pvc.errors import UsageError
    from pvc.ops.orders import is_vm_set

    if words and all(is_vm_set(word) for word in words):
        if images or user_data or mounts:
            raise UsageError(
                "--image, --user-data and --mount are for a whole cluster: a VM that is started again keeps its own"
            )
        _start_vms(words, job_id, job_name, wait=wait, quiet=quiet, as_json=as_json)
        return
    if len(words) > 1:
        raise UsageError(f"one definition or names of VMs, not {' '.join(words)!r}")
    if job_id is not None or job_name is not None or as_json:
        raise UsageError("--job, --name and --json are for VMs of a running cluster; a cluster starts in its own job")
    _start_cluster(words[0] if words else None, images, user_data, mounts, wait=wait, quiet=quiet)


def _start_cluster(
    definition: str | None,
    images: tuple[str, ...],
    user_data: str | None,
    mounts: tuple[str, ...],
    *,
    wait: bool,
    quiet: bool,
) -> None:
    from pvc.config.mounts import parse_mount
    from pvc.ops.definition import Overrides, parse_image_overrides
    from pvc.ops.handover import DEFINITION_VARIABLE
    from pvc.ops.start import start_cluster
    from pvc.ops.submission import read_user_data

    meant = definition or os.environ.get(DEFINITION_VARIABLE, "")
    overrides = Overrides(
        images=parse_image_overrides(images, meant) if images else {},
        user_data=read_user_data(user_data) if user_data else None,
        mounts=tuple(parse_mount(each, os.getcwd()) for each in mounts),
    )
    start_cluster(definition, overrides, os.environ, wait=wait, quiet=quiet)


def _start_vms(
    words: tuple[str, ...], job_id: int | None, job_name: str | None, *, wait: bool, quiet: bool, as_json: bool
) -> None:
    from pvc.cli.vm import START_WAIT_S, give_order
    from pvc.model.vm import Order
    from pvc.ops.cluster import Cluster

    cluster = Cluster.find(job_id, job_name)
    give_order(cluster, Order.START, words, quiet=quiet or wait, as_json=as_json)
    if wait:
        cluster.wait(words, timeout_s=START_WAIT_S)


@click.command()
@click.option("-a", "--all", "all_users", is_flag=True, help="Clusters of all users, as far as Slurm tells.")
@json_option
def ps(all_users: bool, as_json: bool) -> None:
    """List your clusters: those that run, and those that wait for their job."""
    from pvc.ops.registry import list_clusters

    clusters = list_clusters(all_users=all_users)
    if as_json:
        output.print_json(clusters)
        return
    if not clusters:
        output.print_note("no cluster runs" if all_users else "no cluster of yours runs")
        return
    header = ["JOB", "NAME", *(["USER"] if all_users else []), "STATE", "VMS", "TIME", "NODES", "DEFINITION"]
    rows = [
        [
            *(each.job_id, each.name, *([each.user] if all_users else [])),
            *(each.state, each.vms, each.elapsed, each.nodes or None, each.definition),
        ]
        for each in clusters
    ]
    output.print_table(header, rows)


@click.command()
@click.argument("vms", nargs=-1)
@time_option("--grace", "grace_s", default="10s", show_default=True, help="Time for the guests to shut down.")
@cluster_options
@json_option
def stop(vms: tuple[str, ...], grace_s: float, job_id: int | None, job_name: str | None, as_json: bool) -> None:
    """Shut a cluster's VMs down; the job of pvc alloc and pvc batch ends with them.

    With VMS, names or sets such as vm0 or vm[2-5], only these, and the cluster goes on even without a running VM: they
    keep their disks, addresses and ports, and pvc start boots them again. A guest that does not power down in time is
    switched off.
    """
    from pvc.cli.vm import give_order
    from pvc.errors import UsageError
    from pvc.model.vm import Order
    from pvc.ops.cluster import Cluster

    if vms:
        give_order(Cluster.find(job_id, job_name), Order.STOP, vms, grace_s=grace_s, as_json=as_json)
    elif as_json:
        raise UsageError("--json is for single VMs: a cluster that is stopped has nothing to show")
    else:
        Cluster.find(job_id, job_name).stop(grace_s=grace_s)


def _command_line(script: str | None, arguments: tuple[str, ...]) -> tuple[str, ...]:
    return arguments if script is None else (script, *arguments)
