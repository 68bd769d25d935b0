"""Commands for one VM of a cluster."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from pvc.cli import output
from pvc.cli.options import cluster_options

if TYPE_CHECKING:
    from pvc.model.vm import VmStatus
    from pvc.ops.control import Control

_FOREIGN = {"ignore_unknown_options": True, "allow_interspersed_args": False}
_WAIT_S = 180.0


@click.command(context_settings=_FOREIGN)
@cluster_options
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[SSH OPTIONS] [USER@]VM [COMMAND]...")
def ssh(words: tuple[str, ...], job_id: int | None, job_name: str | None) -> None:
    """Log in to a VM as root or USER, or run a command in it; the exit code is ssh's.

    Waits for a VM that still boots. The guest's host key is known and checked; for an image that keeps
    its own, give -o StrictHostKeyChecking=no.
    """
    from pvc.ops import ssh as openssh
    from pvc.ops.jobdir import JobDir

    line = openssh.parse_ssh_line(words)
    control = _find_control(job_id, job_name)
    (vm,) = _wait_for(control, [line.vm])
    openssh.become(openssh.ssh_argv(line, openssh.find_target(vm), JobDir.of(control.record.job_id)))


@click.command(context_settings=_FOREIGN)
@cluster_options
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[SCP OPTIONS] SOURCE... DESTINATION")
def scp(words: tuple[str, ...], job_id: int | None, job_name: str | None) -> None:
    """Copy files to or from VMs, written [USER@]VM:PATH; the exit code is scp's."""
    from pvc.errors import UsageError
    from pvc.ops import ssh as openssh
    from pvc.ops.jobdir import JobDir

    options, places = openssh.parse_scp_line(words)
    names = [parts[1] for parts in map(openssh.split_place, places) if parts is not None]
    if not names:
        raise UsageError("no place is in a VM", hint="write it as vm0:/path")
    control = _find_control(job_id, job_name)
    names = list(dict.fromkeys(names))
    targets = {vm.name: openssh.find_target(vm) for vm in _wait_for(control, names)}
    openssh.become(openssh.scp_argv(options, places, targets, JobDir.of(control.record.job_id)))


@click.command()
@click.argument("vm", default="vm0")
@click.option("-l", "--log", is_flag=True, help="Print what the console has said, and return.")
@cluster_options
def console(vm: str, log: bool, job_id: int | None, job_name: str | None) -> None:
    """Attach to the serial console of VM (default: vm0); Ctrl-] leaves it.

    Several people may watch one console. What it said last is shown first.
    """
    from pvc.ops.console import attach
    from pvc.ops.status import find_endpoint, parse_vms

    control = _find_control(job_id, job_name)
    (rank,) = _only_one(parse_vms([vm], control.record.placement.count), vm)
    endpoint = find_endpoint(control.record, rank)
    if log:
        sys.stdout.buffer.write(control.read_log(endpoint, rank, timeout_s=30.0))
        return
    if sys.stdin.isatty():
        output.print_note(f"console of {vm}; Ctrl-] leaves it")
    attach(control, endpoint, rank)
    if sys.stdin.isatty():
        output.print_note(f"left the console of {vm}")


def _only_one(ranks: Sequence[int], text: str) -> Sequence[int]:
    from pvc.errors import UsageError

    if len(ranks) != 1:
        raise UsageError(f"{text!r} is more than one VM")
    return ranks


def _find_control(job_id: int | None, job_name: str | None) -> Control:
    from pvc.ops.control import Control
    from pvc.ops.jobdir import JobDir
    from pvc.ops.registry import find_cluster

    record = find_cluster(job_id, job_name)
    return Control(record, JobDir.of(record.job_id))


def _wait_for(control: Control, names: Sequence[str]) -> Sequence[VmStatus]:
    """The status of these VMs once they answer; who waits longer than a moment is told so.

    :raise GuestError: one never will, or does not in time.
    """
    from pvc.model.vm import Phase
    from pvc.ops.status import parse_vms, wait_reachable

    told = False

    def tell(vms: Sequence[VmStatus]) -> None:
        nonlocal told
        late = [vm.name for vm in vms if vm.phase is not Phase.REACHABLE]
        if late and not told:
            told = True
            output.print_note(f"waiting until {', '.join(late)} answers")

    ranks = parse_vms(names, control.record.placement.count)
    return wait_reachable(control, ranks, _WAIT_S, on_status=tell)
