# SPDX-License-Identifier: Apache-2.0
"""How a cluster's VMs are, once, again and again, or when they are ready."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from pvc.cli import output
from pvc.cli.options import cluster_options, json_option, quiet_option, time_option

if TYPE_CHECKING:
    from pvc.model.cluster import ClusterRecord
    from pvc.model.netview import Fault
    from pvc.model.vm import VmStatus
    from pvc.ops.control import Control
    from pvc.ops.statusview import Scene

# How long Slurm's answer is believed: the limit of a job seldom changes.
_ENDS_S = 60.0


@click.command()
@click.argument("vms", nargs=-1)
@click.option("-w", "--watch", is_flag=True, help="Show it again and again: on a terminal until q, elsewhere as lines.")
@time_option("--interval", "interval_s", default="2s", show_default=True, help="Between looks of --watch.")
@cluster_options
@json_option
@click.pass_context
def status(
    ctx: click.Context,
    /,
    vms: tuple[str, ...],
    watch: bool,
    interval_s: float,
    job_id: int | None,
    job_name: str | None,
    as_json: bool,
) -> None:
    """Show how far each VM has come, where it runs, how to reach it, and what to do about those that are not well.

    VMS are names or sets of VMs, such as vm0 or vm[2-5]; default: all.
    """
    from pvc.errors import UsageError
    from pvc.ops.cluster import Cluster
    from pvc.ops.status import read_faults

    cluster = Cluster.find(job_id, job_name)
    if watch and as_json:
        raise UsageError("--watch is for people; with --json, ask again as often as you like")
    if watch:
        ctx.exit(_watch(cluster.control, cluster.ranks(vms or None), interval_s))
    found = cluster.status(vms or None)
    faults = read_faults(cluster.control, cluster.ranks(vms or None))
    if as_json:
        output.print_json({"cluster": cluster.record, "vms": found, "faults": faults})
    else:
        _print(cluster.record, found, faults)


@click.command()
@click.argument("vms", nargs=-1)
@click.option(
    "--for",
    "goals",
    multiple=True,
    metavar="WHAT",
    help="ssh (the default), agent, cloud-init, port:NUMBER or cmd:COMMAND; given again, all of them.",
)
@time_option("--timeout", "timeout_s", default="10m", show_default=True, help="Give up after this time, as 90s.")
@quiet_option
@cluster_options
def wait(
    vms: tuple[str, ...],
    goals: tuple[str, ...],
    timeout_s: float,
    quiet: bool,
    job_id: int | None,
    job_name: str | None,
) -> None:
    """Wait until VMs are ready; exit code 7 when one never will be, or is not in time.

    VMS are names or sets of VMs, such as vm0 or vm[2-5]; default: all.
    """
    from pvc.ops.cluster import Cluster
    from pvc.ops.waiting import Lack, describe, parse_conditions

    parse_conditions(goals)
    cluster = Cluster.find(job_id, job_name)
    count = len(cluster.ranks(vms or None))
    line = output.Line(quiet=quiet)

    def tell(lacks: Mapping[int, Lack]) -> None:
        line.show(describe(lacks, count))

    try:
        cluster.wait(vms or None, until=goals or "ssh", timeout_s=timeout_s, on_progress=tell)
    finally:
        line.end()


def _print(record: ClusterRecord, vms: Sequence[VmStatus], faults: Mapping[str, Sequence[Fault]]) -> None:
    from pvc.ops import statusview

    ends = _Ends(record.job_id).read() if sys.stdout.isatty() else None
    scene = statusview.Scene(record, vms, time.time(), ends, faults)
    header, *rows = statusview.format_rows(statusview.build_table(scene, None))
    output.say("".join(f"\n{row}" for row in rows), label=output.paint(header, "bold", sys.stdout))
    for vm in vms:
        if vm.last_words:
            output.say(f"\nThe last words of {vm.name}:")
            output.say("\n".join(f"    {line}" for line in vm.last_words))
    troubles = statusview.format_troubles(scene)
    if troubles:
        output.say("\n" + "\n".join(f"! {line}" for line in troubles))
    if sys.stdout.isatty():
        output.print_note(statusview.format_headline(scene))


class _Ends:
    """When Slurm ends a job; asked now and then."""

    def __init__(self, job_id: int) -> None:
        self._job_id = job_id
        self._ends: float | None = None
        self._asked = -_ENDS_S

    def read(self) -> float | None:
        """Seconds since the epoch by this machine's clock, None: nobody knows."""
        from pvc.errors import JobError
        from pvc.slurm.clock import read_left

        if time.monotonic() - self._asked >= _ENDS_S:
            self._asked = time.monotonic()
            with suppress(JobError):
                left_s = read_left(self._job_id)
                self._ends = None if left_s is None else time.time() + left_s
        return self._ends


def _watch(control: Control, ranks: Sequence[int], interval_s: float) -> int:
    """Returns the exit code."""
    from pvc.cli import live
    from pvc.ops import statusview
    from pvc.ops.load import add_loads
    from pvc.ops.status import read_faults

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        _watch_lines(control, ranks, interval_s)
        return 0
    ends = _Ends(control.record.job_id)
    scene: Scene = statusview.Scene(control.record, (), time.time())

    def refresh() -> None:
        nonlocal scene
        found = add_loads(control, _read_live(control, ranks))
        faults = read_faults(control, ranks)
        scene = statusview.Scene(control.record, found, time.time(), ends.read(), faults)

    def draw(width: int, height: int, top: int) -> tuple[list[str], int]:
        lines, top = statusview.render(scene, width, height - 1, top)
        lines[1] = output.paint(lines[1], "bold", sys.stdout)
        coloured = [output.paint(line, "yellow", sys.stdout) if line.startswith("! ") else line for line in lines]
        return [*coloured, output.paint("q quits; arrows scroll"[:width], "dim", sys.stdout)], top

    try:
        live.show(refresh, draw, max(0.2, interval_s))
    except live.EndedError as err:
        return 128 + err.number
    _print(control.record, scene.vms, scene.faults)
    return 0


def _watch_lines(control: Control, ranks: Sequence[int], interval_s: float) -> None:
    """A line for each VM, and later for each change."""
    known: dict[int, tuple[object, str]] = {}
    while True:
        for vm in _read_live(control, ranks):
            now = (vm.phase, vm.detail)
            if known.get(vm.rank) != now:
                known[vm.rank] = now
                moment = time.strftime("%H:%M:%S")
                output.say(
                    f"{moment} {vm.name} {vm.node} {vm.phase.value}{f': {vm.detail}' if vm.detail else ''}", flush=True
                )
        time.sleep(interval_s)


def _read_live(control: Control, ranks: Sequence[int]) -> Sequence[VmStatus]:
    """:raise EndedError: the cluster has ended."""
    from pvc.errors import EndedError
    from pvc.ops.jobdir import JobDir
    from pvc.ops.status import read_status

    found = read_status(control, ranks)
    if not JobDir.of(control.record.job_id).record_path.exists():
        raise EndedError(f"cluster {control.record.job_id} has ended")
    return found
