"""Commands for a whole cluster of VMs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from pvc.cli.passthrough import SlurmCommand, slurm_words

Function = TypeVar("Function", bound=Callable[..., Any])


def _wishes_options(function: Function) -> Function:
    """Add the options that ``alloc`` and ``batch`` share."""
    decorators = [
        click.option("-c", "--cpus", "--cpus-per-task", default=1, show_default=True, type=click.IntRange(min=1),
                     help="Cores of each VM."),
        click.option("-m", "--memory", metavar="SIZE", help="Memory of each guest, as 2G; QEMU's own is added."),
        click.option("-N", "--nodes", metavar="N", help="Number of nodes, as for Slurm: 3 or 2-4."),
        click.option("-J", "--name", "--job-name", "name", default="pvc", show_default=True, metavar="NAME",
                     help="Name of the job."),
        click.option("-E", "--script", is_flag=False, metavar="SCRIPT",
                     help="Run SCRIPT with the ARGUMENTS instead of a shell; its exit code is the command's."),
        click.option("--image", "images", multiple=True, metavar="[TEMPLATE=]IMAGE",
                     help="Boot this image instead of the template's."),
        click.option("--user-data", metavar="FILE", help="Give the guests this cloud-config."),
        click.option("--resource-set", metavar="NAME", help="Use these networks instead of the templates'."),
        click.option("-Q", "--quiet", is_flag=True, help="Say nothing but errors."),
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

    Any option of salloc may be given; one that takes a value and is a plug-in's is written --option=value.
    """
    from pvc.ops.submission import ClusterWishes, run_alloc

    run_alloc(ClusterWishes(slurm=slurm_words(ctx), **options), _command_line(script, arguments))


@click.command(cls=SlurmCommand)
@_wishes_options
@click.option("--wait-vms", "wait", is_flag=True, help="Begin the script when all VMs answer, not when they boot.")
@click.pass_context
def batch(ctx: click.Context, /, script: str | None, arguments: tuple[str, ...], **options: Any) -> None:
    """Queue a job that boots a cluster of VMs and runs a script on its first node.

    The job's exit code is the script's. Any option of sbatch may be given; --wait is sbatch's own.
    """
    from pvc.ops.submission import ClusterWishes, run_batch

    run_batch(ClusterWishes(slurm=slurm_words(ctx), **options), _command_line(script, arguments))


@click.command(hidden=True)
@click.argument("definition")
def resolve(definition: str) -> None:
    """Print the request of DEFINITION: the SPANK plug-in calls this where a job is submitted."""
    from pvc.ops import handover

    known, _, request = os.environ.get(handover.RESOLVED_VARIABLE, "").rpartition(" ")
    if known != definition:
        from pvc.ops.definition import load_user_config, resolve_request

        cpus = os.environ.get(handover.CPUS_VARIABLE, "")
        request = resolve_request(definition, load_user_config(), int(cpus) if cpus.isdecimal() else None).encode()
    click.echo(request)


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


def _command_line(script: str | None, arguments: tuple[str, ...]) -> tuple[str, ...]:
    return arguments if script is None else (script, *arguments)
