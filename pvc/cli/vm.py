# SPDX-License-Identifier: Apache-2.0
"""Commands for one VM of a cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pvc.cli import output
from pvc.cli.options import HostPath, cluster_options, json_option, raw_option
from pvc.model.vm import DUMP_FORMATS

if TYPE_CHECKING:
    from pvc.model.cluster import NodeEndpoint
    from pvc.model.vm import Order, VmStatus
    from pvc.ops.cluster import Cluster
    from pvc.ops.control import Control

_FOREIGN = {"ignore_unknown_options": True, "allow_interspersed_args": False}
_WAIT_S = 180.0
START_WAIT_S = 600.0


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
    control = find_control(job_id, job_name)
    (vm,) = _wait_for(control, [line.vm])
    jobdir = JobDir.of(control.record.job_id)
    openssh.become(openssh.ssh_argv(line, openssh.find_target(vm), jobdir, _carrier(control)))


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
    control = find_control(job_id, job_name)
    names = list(dict.fromkeys(names))
    targets = {vm.name: openssh.find_target(vm) for vm in _wait_for(control, names)}
    jobdir = JobDir.of(control.record.job_id)
    openssh.become(openssh.scp_argv(options, places, targets, jobdir, _carrier(control)))


@click.command("ssh-config", epilog="Example: pvc ssh-config && rsync -a data/ vm0:")
@click.option("--print", "show", is_flag=True, help="Print the settings instead of writing them.")
@cluster_options
def ssh_config(show: bool, job_id: int | None, job_name: str | None) -> None:
    """Write settings by which ssh, scp, rsync, VS Code and the like reach a cluster's VMs as vm0, vm1, and so on.

    They are in a file of the cluster's own, which goes with it: one line in ~/.ssh/config includes those of all
    clusters.
    """
    from pvc.files import write_atomic
    from pvc.ops import ssh as openssh
    from pvc.ops.jobdir import JobDir

    control = find_control(job_id, job_name)
    text = openssh.write_config(control.record, _carrier(control))
    if show:
        output.hand_over(text)
        return
    path = JobDir.of(control.record.job_id).ssh_config
    write_atomic(path, text, mode=0o600)
    output.hand_over(f"{path}\n")
    overrides = openssh.find_overrides(control.record, path)
    line = "Include ~/.pvc/jobs/*/ssh_config"
    if overrides is None:
        output.print_note(f"for ssh to read it, ~/.ssh/config has to begin with: {line}")
    elif overrides:
        output.print_note(f"~/.ssh/config says otherwise before it reads this ({', '.join(overrides)})")
        output.print_hint(f"let it begin with: {line}")


@click.command(hidden=True)
@click.argument("job", type=int)
@click.argument("vm")
def carry(job: int, vm: str) -> None:
    """Be ssh's connection to VM (vmN or vmN.JOB)."""
    from pvc.ops import relay
    from pvc.ops.status import parse_vms

    control = find_control(job, None)
    name = vm.removesuffix(f".{job}")
    (rank,) = only_one(parse_vms([name], control.record.placement.count), name)
    relay.carry(control, rank)


def _carrier(control: Control) -> Sequence[str]:
    """The command that carries a connection to the VM whose name is added."""
    from pvc.ops.launch import find_pvc

    return (find_pvc(), "carry", str(control.record.job_id))


@click.command()
@click.argument("vm", default="vm0")
@click.option("-l", "--log", is_flag=True, help="Print what the console has said, and return.")
@raw_option
@cluster_options
def console(vm: str, log: bool, raw: bool, job_id: int | None, job_name: str | None) -> None:
    """Attach to the serial console of VM (default: vm0); Ctrl-] leaves it.

    Several people may watch one console. What it said last is shown first.
    """
    from pvc.errors import UsageError
    from pvc.ops.console import attach
    from pvc.ops.logs import Lines
    from pvc.ops.status import find_endpoint, parse_vms

    if raw and not log:
        raise UsageError("--raw is for --log: a console that is attached sends every byte anyway")

    control = find_control(job_id, job_name)
    (rank,) = only_one(parse_vms([vm], control.record.placement.count), vm)
    endpoint = find_endpoint(control.record, rank)
    if log:
        lines = Lines(output.pass_on)
        (output.pass_on if raw else lines.put)(control.read_log(endpoint, rank, timeout_s=30.0))
        lines.end()
        return
    if sys.stdin.isatty():
        output.print_note(f"console of {vm}; Ctrl-] leaves it")
    attach(control, endpoint, rank)
    if sys.stdin.isatty():
        output.print_note(f"left the console of {vm}")


def _order_command(name: str, does: str) -> click.Command:
    """The command that gives VMs the order of this name; ``does`` says what comes of it."""

    @click.command(name, help=f"{does}\n\nVMS are names or sets of VMs, such as vm0 or vm[2-5].")
    @click.argument("vms", nargs=-1, required=True)
    @cluster_options
    @json_option
    def command(vms: tuple[str, ...], job_id: int | None, job_name: str | None, as_json: bool) -> None:
        from pvc.model.vm import Order
        from pvc.ops.cluster import Cluster

        give_order(Cluster.find(job_id, job_name), Order(name), vms, as_json=as_json)

    return command


reset = _order_command(
    "reset", "Press the reset button of VMs: their guests boot again at once, whatever they were doing."
)
pause = _order_command(
    "pause", "Let the processors of VMs stand still until pvc resume; memory and connections stay as they are."
)
resume = _order_command("resume", "Let paused VMs go on.")


@click.command(context_settings=_FOREIGN)
@cluster_options
@click.option("--uri", "show", is_flag=True, help="Print the address for virsh(1) of a VM with hypervisor: libvirt.")
@click.argument("vm")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND]...")
@click.pass_context
def monitor(
    ctx: click.Context, vm: str, words: tuple[str, ...], job_id: int | None, job_name: str | None, show: bool
) -> None:
    """Give QEMU's monitor of VM a command, and print what it answers.

    A command that begins with { is QMP, such as '{"execute": "query-status"}'; anything else is for the human monitor,
    such as info block. Without a command, lines are read from standard input, one command each.
    """
    from pvc.ops.monitor import find_uri, parse_command
    from pvc.ops.status import find_endpoint, parse_vms

    control = find_control(job_id, job_name)
    (rank,) = only_one(parse_vms([vm], control.record.placement.count), vm)
    endpoint = find_endpoint(control.record, rank)
    if show:
        uri, node = find_uri(control, rank)
        output.say(uri)
        output.print_note(f"on node {node}, as the job's owner")
        return
    if words:
        ctx.exit(_ask_monitor(control, endpoint, rank, parse_command(words)))
    prompt = f"({vm}) " if sys.stdin.isatty() else ""
    code = 0
    while line := _read_line(prompt):
        if line.strip():
            code = _ask_monitor(control, endpoint, rank, parse_command([line]))
            if code and not prompt:
                break
    ctx.exit(0 if prompt else code)


def _read_line(prompt: str) -> str:
    output.say(prompt, end="", flush=True)
    return sys.stdin.readline()


def _ask_monitor(control: Control, endpoint: NodeEndpoint, rank: int, request: dict[str, Any]) -> int:
    """Print the answer; returns the exit code."""
    from pvc.errors import GuestError
    from pvc.ops import monitor

    found = monitor.run_command(control, endpoint, rank, request)
    if "qmp" in request:
        output.print_json(found)
        return 0
    text = str(found).replace("\r\n", "\n")
    output.say(text, end="" if text.endswith("\n") or not text else "\n", flush=True)
    return GuestError.exit_code if monitor.is_complaint(text) else 0


@click.command()
@click.argument("vm")
@click.argument("file", type=click.Path())
@click.option(
    "--format",
    "form",
    type=click.Choice(DUMP_FORMATS),
    default=DUMP_FORMATS[0],
    show_default=True,
    help="ELF, or a format of makedumpfile that leaves out empty pages and compresses.",
)
@click.option("-f", "--force", is_flag=True, help="Replace FILE if it exists.")
@cluster_options
def dump(vm: str, file: str, form: str, force: bool, job_id: int | None, job_name: str | None) -> None:
    """Write the memory of VM's guest to FILE, for crash(8) or gdb(1); the guest stands still meanwhile.

    The VM's node writes the file, so it should be in a directory that the nodes share, such as your home.
    """
    from pvc.ops.monitor import dump_memory
    from pvc.ops.status import find_endpoint, parse_vms

    control = find_control(job_id, job_name)
    (rank,) = only_one(parse_vms([vm], control.record.placement.count), vm)
    endpoint = find_endpoint(control.record, rank)
    bar = output.Bar(f"memory of {vm}")
    request = {"vm": rank, "path": os.path.abspath(file), "format": form, "force": force}
    try:
        size = dump_memory(control, endpoint, request, bar.show)
    finally:
        bar.end()
    output.print_note(f"the memory of {vm} is in {file} ({size >> 20} MiB)")


@click.command()
@click.argument("vm", default="vm0")
@click.option("--print", "show", is_flag=True, help="Print where the screen is served: protocol, node and socket.")
@click.option("--screenshot", "picture", metavar="FILE", type=HostPath(), help="Write what it shows now to FILE (PNG).")
@cluster_options
@json_option
def display(vm: str, show: bool, picture: Path | None, job_id: int | None, job_name: str | None, as_json: bool) -> None:
    """Show the screen of VM (default: vm0), which has one if its template says remote-display.

    It is served at a Unix socket of its node, which only the job's owner reaches.
    """
    from pvc.errors import UsageError
    from pvc.ops import monitor
    from pvc.ops.status import find_endpoint, parse_vms

    if not show and not as_json and picture is None:
        raise UsageError("say --print to see where a viewer finds the screen, or --screenshot FILE")
    control = find_control(job_id, job_name)
    (rank,) = only_one(parse_vms([vm], control.record.placement.count), vm)
    endpoint = find_endpoint(control.record, rank)
    if picture is not None:
        monitor.save_screenshot(control, endpoint, rank, picture)
    if show or as_json:
        found = control.ask(endpoint, {"op": "display", "vm": rank}, 30.0)
        place = {key: found.get(key) for key in ("protocol", "node", "socket")}
        if as_json:
            output.print_json(place)
        else:
            output.say("{protocol} {node} {socket}".format(**place))


def give_order(
    cluster: Cluster,
    order: Order,
    vms: Sequence[str],
    *,
    grace_s: float = 0.0,
    quiet: bool = False,
    as_json: bool = False,
) -> None:
    """Give an order to VMs, and print how each is afterwards.

    :raise PvcError: some could not carry it out; those that could have.
    """
    from pvc.ops.orders import check_results

    results = cluster.order(order, vms, grace_s=grace_s, check=False)
    if as_json:
        output.print_json(results)
    elif not quiet:
        rows = [[each.name, each.node, each.phase.value if each.phase else None, each.detail] for each in results]
        output.print_table(["VM", "NODE", "PHASE", "DETAIL"], rows)
    check_results(results)


def only_one(ranks: Sequence[int], text: str) -> Sequence[int]:
    """The VM that ``text`` means.

    :raise UsageError: it means several.
    """
    from pvc.errors import UsageError

    if len(ranks) != 1:
        raise UsageError(f"{text!r} is more than one VM")
    return ranks


def find_control(job_id: int | None, job_name: str | None) -> Control:
    """The control ports of the cluster that the options choose.

    :raise JobError: there is none, or several.
    """
    from pvc.ops.cluster import Cluster

    return Cluster.find(job_id, job_name).control


def _wait_for(control: Control, names: Sequence[str]) -> Sequence[VmStatus]:
    """The status of these VMs once their ssh, or without a port for it their agent, answers; who waits longer than a
    moment is told so.

    :raise GuestError: one never will, or does not in time.
    """
    from pvc.model.vm import Phase
    from pvc.ops.status import has_no_ssh, parse_vms, read_status, wait_reachable
    from pvc.ops.waiting import Lack, parse_conditions, wait_for

    told = False

    def tell(late: Sequence[str]) -> None:
        nonlocal told
        if late and not told:
            told = True
            output.print_note(f"waiting until {', '.join(late)} answers")

    def tell_phases(vms: Sequence[VmStatus]) -> None:
        tell([vm.name for vm in vms if vm.phase is not Phase.REACHABLE])

    def tell_lacks(lacks: Mapping[int, Lack]) -> None:
        tell([f"vm{rank}" for rank in lacks])

    ranks = parse_vms(names, control.record.placement.count)
    portless = [vm.rank for vm in read_status(control, ranks, timeout_s=15.0) if has_no_ssh(vm)]
    others = [rank for rank in ranks if rank not in portless]
    if portless:
        wait_for(control, portless, parse_conditions(["agent"]), _WAIT_S, on_progress=tell_lacks)
    if others:
        wait_reachable(control, others, _WAIT_S, on_status=tell_phases)
    return read_status(control, ranks, timeout_s=15.0)
