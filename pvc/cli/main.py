# SPDX-License-Identifier: Apache-2.0
"""The command ``pvc``: which subcommands there are, and what happens to their errors.

Subcommands are named in a table and imported when used, so that ``pvc --help`` costs no more than click.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, TextIO

import click

import pvc
from pvc import log
from pvc.cli import output
from pvc.errors import ConfigError, PvcError


@dataclass(frozen=True)
class Entry:
    """Where a subcommand is defined; ``section`` is its heading in the list, empty for internal ones."""

    module: str
    function: str
    help: str
    section: str = ""


CLUSTERS, MACHINES, SITE = "Clusters", "Virtual machines", "Images and site"

COMMANDS = {
    "alloc": Entry("pvc.cli.cluster", "alloc", "Boot a cluster and open a shell, or run a script.", CLUSTERS),
    "batch": Entry("pvc.cli.cluster", "batch", "Queue a job that boots a cluster and runs a script.", CLUSTERS),
    "start": Entry("pvc.cli.cluster", "start", "Boot the VMs of a job made with --pvc; start stopped VMs.", CLUSTERS),
    "ps": Entry("pvc.cli.cluster", "ps", "List your running clusters.", CLUSTERS),
    "status": Entry("pvc.cli.status", "status", "Show how far each VM of a cluster has come.", CLUSTERS),
    "wait": Entry("pvc.cli.status", "wait", "Wait until VMs answer.", CLUSTERS),
    "stop": Entry("pvc.cli.cluster", "stop", "Shut a cluster down, or some of its VMs.", CLUSTERS),
    "exec": Entry("pvc.cli.execute", "execute", "Run a command in VMs by their agents.", MACHINES),
    "cp": Entry("pvc.cli.copy", "copy", "Copy files and directories by the agents of VMs.", MACHINES),
    "ssh": Entry("pvc.cli.vm", "ssh", "Log in to a VM, or run a command in it.", MACHINES),
    "scp": Entry("pvc.cli.vm", "scp", "Copy files to or from a VM.", MACHINES),
    "forward": Entry("pvc.cli.forward", "forward", "Let local ports lead to ports of VMs.", MACHINES),
    "ssh-config": Entry("pvc.cli.vm", "ssh_config", "Let plain ssh, scp and rsync reach the VMs.", MACHINES),
    "console": Entry("pvc.cli.vm", "console", "Attach to a VM's serial console, or print its log.", MACHINES),
    "logs": Entry("pvc.cli.logs", "logs", "Print what VMs and their supervisors have said.", MACHINES),
    "reset": Entry("pvc.cli.vm", "reset", "Press the reset button of VMs.", MACHINES),
    "monitor": Entry("pvc.cli.vm", "monitor", "Give a command to a VM's QEMU.", MACHINES),
    "dump": Entry("pvc.cli.vm", "dump", "Write a guest's memory to a file.", MACHINES),
    "save": Entry("pvc.cli.save", "save", "Save a VM's disk as an image, while it runs.", MACHINES),
    "display": Entry("pvc.cli.vm", "display", "Say where a VM's screen is served, or save what it shows.", MACHINES),
    "pause": Entry("pvc.cli.vm", "pause", "Let VMs stand still.", MACHINES),
    "resume": Entry("pvc.cli.vm", "resume", "Let paused VMs go on.", MACHINES),
    "image": Entry("pvc.cli.image", "image", "Import, build and manage images.", SITE),
    "repo": Entry("pvc.cli.repo", "repo", "Look at image repositories, verify and tidy them.", SITE),
    "template": Entry("pvc.cli.template", "template", "Look at templates and where their keys come from.", SITE),
    "network": Entry("pvc.cli.network", "network", "Look at networks and what your VMs do on them.", SITE),
    "config": Entry("pvc.cli.config", "config", "Check configuration files, and make them of pcocc's.", SITE),
    "doctor": Entry("pvc.cli.doctor", "doctor", "Say what this machine or your set-up lacks.", SITE),
    "completion": Entry("pvc.cli.completion", "completion", "Print what lets a shell complete pvc's words.", SITE),
    "testbed": Entry("pvc.cli.testbed", "testbed", "Run a Slurm cluster in namespaces on this machine.", SITE),
    "resolve": Entry("pvc.cli.cluster", "resolve", "Turn a definition into a request (called by the SPANK plug-in)."),
    "launch": Entry("pvc.cli.cluster", "launch", "Boot the VMs of the job around this process (called by alloc)."),
    "announce": Entry("pvc.cli.cluster", "announce", "Tell guests that the job ends soon (called by launch)."),
    "supervise": Entry("pvc.cli.supervise", "supervise", "Run the VMs of one node (called by launch)."),
    "carry": Entry("pvc.cli.vm", "carry", "Carry a connection of ssh (called by ssh)."),
    "mandoc": Entry("pvc.cli.mandoc", "mandoc", "Write the generated parts of the man pages."),
}


@dataclass
class Verbosity:
    """What the error boundary has to know of the command line."""

    debug: bool = False


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of this name; None when there is no such name."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        from importlib import import_module

        command: click.Command = getattr(import_module(entry.module), entry.function)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of ``args``.

        :raise click.UsageError: there is none; the message names the nearest one.
        """
        name = args[0]
        if name in COMMANDS or name.startswith("-"):
            return super().resolve_command(ctx, args)
        from difflib import get_close_matches

        near = get_close_matches(name, [key for key, entry in COMMANDS.items() if entry.section], n=1, cutoff=0.5)
        advice = f"; did you mean {near[0]!r}?" if near else ""
        raise click.UsageError(f"there is no command {name!r}{advice}", ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by section from the table alone."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, entry in COMMANDS.items():
            if entry.section:
                sections.setdefault(entry.section, []).append((name, entry.help))
        width = max(len(name) for rows in sections.values() for name, _ in rows)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 2 usage, 3 configuration, 4 Slurm, 5 state store, 6 node, 7 guest.",
)
@click.version_option(pvc.__version__, prog_name="pvc", message="%(prog)s %(version)s")
@click.option("-v", "--verbose", count=True, help="Say what is being done; twice: every command that is run.")
@click.option("--debug", is_flag=True, help="As -vv, and a traceback when something fails.")
@click.pass_obj
def command_line(verbosity: Verbosity, verbose: int, debug: bool) -> None:
    """Boot clusters of virtual machines as ordinary Slurm jobs.

    A cluster is written TEMPLATE[:COUNT][,TEMPLATE[:COUNT]...]: debian:4 is four VMs named vm0 to vm3.
    """
    verbosity.debug = debug
    levels = [logging.WARNING, logging.INFO, logging.DEBUG]
    log.setup(logging.DEBUG if debug else levels[min(verbose, 2)])


def run(argv: Sequence[str]) -> int:
    """Run ``pvc`` with these arguments and return its exit code; errors are told on standard error."""
    verbosity = Verbosity()
    try:
        result = command_line.main(args=list(argv), prog_name="pvc", obj=verbosity, standalone_mode=False)
        code = result if isinstance(result, int) else 0
        sys.stdout.flush()
        return code
    except click.ClickException as err:
        _show_usage(err)
        return err.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        _forget(sys.stdout)
        return 1
    except SystemExit as err:
        return err.code if isinstance(err.code, int) else int(err.code is not None)
    except PvcError as err:
        if isinstance(err, output.OutputError):
            _forget(sys.stdout)
        if verbosity.debug:
            _print_traceback()
        _show(err)
        return err.exit_code
    except Exception as err:  # noqa: BLE001  the boundary: whatever is left is a defect of pvc, told in one line
        fault = _find_output_fault()
        if fault is not None:
            _forget(sys.stdout)
            output.print_error(f"cannot write to standard output: {fault.strerror}")
            return 1
        if verbosity.debug:
            _print_traceback()
        output.print_error(f"internal error: {type(err).__name__}: {err}", "run the command with pvc --debug")
        return 1


def public_helps() -> dict[str, str]:
    """What each command for users does, in the order of the table."""
    return {name: entry.help for name, entry in COMMANDS.items() if entry.section}


def main() -> NoReturn:
    """The entry point of ``pvc``."""
    if (shell := os.environ.pop("PVC_COMPLETE", None)) is not None:
        from pvc.cli import completing

        sys.exit(completing.main(command_line, public_helps(), shell))
    code = run(sys.argv[1:])
    try:
        sys.stderr.flush()
    except OSError:
        _forget(sys.stderr)
    sys.exit(code)


def _show(error: PvcError) -> None:
    text, details = str(error), list[str]()
    if isinstance(error, ConfigError) and len(error.problems) > 1:
        text = f"{len(error.problems)} problems in the configuration"
        details = [str(problem) for problem in error.problems]
    output.print_error(text, error.find_hint(), details)


def _show_usage(error: click.ClickException) -> None:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return
    hint = None
    if isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"{error.ctx.command_path} --help"
    output.print_error(error.format_message(), hint)


def _print_traceback() -> None:
    import traceback

    output.say(traceback.format_exc(), error=True, end="")


def _find_output_fault() -> OSError | None:
    """Why standard output takes nothing; what could not be written is still in its buffer."""
    try:
        sys.stdout.flush()
    except OSError as err:
        return err
    return None


def _forget(stream: TextIO) -> None:
    """Keep the interpreter from flushing into a broken pipe or a full disk again when it ends (docs of SIGPIPE)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
