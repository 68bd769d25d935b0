# SPDX-License-Identifier: Apache-2.0
"""The command ``pvc exec``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from pvc.cli import output
from pvc.cli.options import cluster_options, json_option, raw_option, time_option, user_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pvc.ops.cluster import Cluster
    from pvc.ops.execute import Command, Outcome

_LIST_S = 30.0
_SETTINGS = {"allow_interspersed_args": False}


@click.command("exec", context_settings=_SETTINGS)
@click.option(
    "-w", "--vms", "wanted", multiple=True, metavar="VMS", help="In these VMs, such as vm[0-3]; default: all."
)
@user_option
@click.option("-t", "--pty", is_flag=True, help="With a terminal; one VM only. ~. at the beginning of a line leaves.")
@click.option("-C", "--chdir", "cwd", metavar="DIR", help="In this directory of the guest; default: the user's home.")
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="With this variable in its environment.")
@time_option("--timeout", "timeout_s", help="End what takes longer, as 90s or 5m; its code is 124.")
@click.option("-n", "--no-stdin", is_flag=True, help="Do not read standard input.")
@click.option("-b", "--gather", is_flag=True, help="Print output at the end, the same output of several VMs once.")
@raw_option
@click.option("--detach", is_flag=True, help="Leave it running, and print its number.")
@click.option("--attach", type=click.IntRange(1), metavar="ID", help="Take up a detached command; one VM only.")
@click.option("--list", "listing", is_flag=True, help="List detached commands, those too whose result nobody has seen.")
@cluster_options
@json_option
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[VMS] [--] COMMAND [ARGUMENT]...")
@click.pass_context
def execute(ctx: click.Context, /, words: tuple[str, ...], **options: Any) -> None:
    """Run a command in VMs by their agents, without a network: at once in all of them, or in those of VMS or -w.

    Standard input goes to all. With several VMs each line of output begins with the VM's name. The exit code is the
    command's own (128 and its number for a signal, 124 if the time ran out, 7 if a VM or its agent failed); with
    several VMs the largest.
    """
    from pvc.errors import UsageError
    from pvc.ops.cluster import Cluster

    if options["detach"] and options["timeout_s"] is not None:
        raise UsageError(
            "nobody looks at the clock for a command that is left running: --timeout does not go with --detach",
            hint="let the guest do it: pvc exec --detach -- timeout 90 COMMAND",
        )
    cluster = Cluster.find(options["job_id"], options["job_name"])
    chosen, words = split_words(options["wanted"], words)
    wanted = chosen or None
    ranks = cluster.ranks(wanted)
    if options["listing"]:
        _print_detached(cluster, wanted, as_json=options["as_json"])
        return
    single = options["pty"] or options["attach"] is not None
    if single and len(ranks) != 1:
        raise UsageError("a terminal and --attach are for one VM", hint="choose it with -w vm0")
    if not words and not single:
        raise UsageError(
            "say which command to run", hint="pvc exec -w vm0 -- uname -a; with -t alone a shell is started"
        )
    if options["detach"] and single:
        raise UsageError("--detach goes with neither --pty nor --attach")
    if options["detach"] and options["timeout_s"] is not None:
        raise UsageError(
            "--timeout is for what is waited for, and nobody waits with --detach",
            hint="let the guest do it: pvc exec --detach vm0 -- timeout 60 COMMAND",
        )
    ctx.exit(_run(cluster, wanted, _make_command(words, options), options))


def split_words(wanted: tuple[str, ...], words: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The VMs and the command: without -w a first word such as vm[0-3] says where, as for the other commands."""
    from pvc.ops.vmsets import is_set

    if not wanted and words and is_set(words[0]):
        wanted, words = words[:1], words[1:]
        words = words[1:] if words[:1] == ("--",) else words
    return wanted, words


def _make_command(words: tuple[str, ...], options: dict[str, Any]) -> Command:
    from pvc.errors import UsageError
    from pvc.ops.execute import Command

    bad = [each for each in options["env"] if "=" not in each[1:]]
    if bad:
        raise UsageError(f"{bad[0]!r} is not NAME=VALUE")
    return Command(
        words,
        user=options["user"],
        cwd=options["cwd"],
        env=options["env"],
        pty=options["pty"],
        detach=options["detach"],
        attach=options["attach"],
        stdin=not (options["no_stdin"] or options["detach"]),
    )


def _run(cluster: Cluster, wanted: tuple[str, ...] | None, command: Command, options: dict[str, Any]) -> int:
    from contextlib import nullcontext
    from dataclasses import replace

    from pvc.cli.outputs import Gathered, Passed, Prefixed
    from pvc.ops.console import raw_terminal
    from pvc.ops.execute import total_code

    ranks = cluster.ranks(wanted)
    as_json, many = options["as_json"], len(ranks) > 1
    raw = options["raw"]
    printer: Gathered | Passed | Prefixed = Prefixed(len(f"vm{ranks[-1]}"), raw=raw) if many else Passed()
    if as_json or options["gather"]:
        printer = Gathered(raw=raw)
    # A person at a terminal types for one VM, not for all.
    command = replace(command, stdin=command.stdin and not (many and sys.stdin.isatty()))
    with raw_terminal() if command.pty else nullcontext():
        outcomes = cluster.run(
            command,
            wanted,
            on_output=printer.take,
            stdin_fd=sys.stdin.fileno() if command.stdin else None,
            timeout_s=options["timeout_s"],
            interactive=True,
        )
    printer.end()
    if as_json:
        output.print_json([_describe(outcome, printer) for outcome in outcomes])
        return total_code(outcomes)
    if isinstance(printer, Gathered):
        printer.show(outcomes)
    _tell(outcomes)
    return total_code(outcomes)


def _describe(outcome: Outcome, printer: Any) -> dict[str, Any]:
    return {
        "vm": outcome.name,
        "node": outcome.node,
        "code": outcome.code,
        "exit": outcome.exit,
        "signal": outcome.signal,
        "error": outcome.error,
        "hint": outcome.hint,
        "id": outcome.id if outcome.detached else None,
        "stdout": printer.text(outcome.rank, second=False),
        "stderr": printer.text(outcome.rank, second=True),
    }


def _tell(outcomes: Sequence[Outcome]) -> None:
    """What is not told by output: numbers of what was left running, and codes that are not 0, each once."""
    from pvc.ops.vmsets import fold_vms

    for outcome in outcomes:
        if outcome.detached:
            output.say(f"{outcome.name} {outcome.id}")
    groups: dict[tuple[str, str | None], list[int]] = {}
    for outcome in outcomes:
        if outcome.error is not None:
            groups.setdefault((outcome.error, outcome.hint), []).append(outcome.rank)
        elif outcome.code and len(outcomes) > 1:
            how = f"signal {outcome.signal}" if outcome.signal is not None else f"exit code {outcome.exit}"
            groups.setdefault((how, None), []).append(outcome.rank)
    hints: dict[str, None] = {}
    for (text, hint), ranks in groups.items():
        # What begins with the name of its VM, or says it anyway, needs no other beginning.
        shown = text if len(ranks) == 1 and f"vm{ranks[0]}" in text else f"{fold_vms(ranks)}: {text}"
        output.print_error(shown)
        if hint:
            hints[hint] = None
    for hint in list(hints)[:3]:
        output.print_hint(hint)


def _print_detached(cluster: Cluster, vms: Sequence[str] | None, *, as_json: bool) -> None:
    from pvc.ops.execute import list_detached

    found = list_detached(cluster.control, cluster.ranks(vms), _LIST_S)
    if as_json:
        output.print_json(found)
        return
    keys = ("vm", "id", "pid", "state", "result", "command")
    output.print_table([key.upper() for key in keys], [[each[key] for key in keys] for each in found])
