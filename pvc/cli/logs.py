# SPDX-License-Identifier: Apache-2.0
"""``pvc logs``."""

from __future__ import annotations

from collections.abc import Callable

import click

from pvc.cli import output
from pvc.cli.options import cluster_options, raw_option
from pvc.ops.logs import SOURCES


@click.command(epilog="Example: pvc logs vm0 --follow")
@click.argument("vms", nargs=-1)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is said from now on, until the VM ends or Ctrl-C.")
@click.option("-s", "--source", type=click.Choice(list(SOURCES)), default="console", show_default=True,
              help="; ".join(f"{name}: {text}" for name, text in SOURCES.items()) + ".")  # fmt: skip
@click.option("-n", "--lines", type=click.IntRange(min=0), metavar="N", help="The last N lines only.")
@raw_option
@cluster_options
def logs(
    vms: tuple[str, ...],
    follow: bool,
    source: str,
    lines: int | None,
    raw: bool,
    job_id: int | None,
    job_name: str | None,
) -> None:
    """Print what VMs, or the supervisors that run them, have said; also of VMs that failed.

    VMS are names or sets of VMs, such as vm0 or vm[2-5]; default: vm0. Of several, each line begins with the VM's name.
    """
    from pvc.ops.cluster import Cluster
    from pvc.ops.logs import Lines, LogWish, read_launcher_log

    cluster = Cluster.find(job_id, job_name)
    if source == "launcher":
        filters = Lines(output.pass_on)
        (output.pass_on if raw else filters.put)(read_launcher_log(cluster.control, lines))
        filters.end()
        return
    vms = vms or ("vm0",)
    ranks = cluster.ranks(vms)
    shown: list[Lines] = []

    def writer(rank: int) -> Callable[[bytes], None]:
        if raw and len(ranks) == 1:
            return output.pass_on
        shown.append(Lines(output.pass_on, f"vm{rank}: " if len(ranks) > 1 else ""))
        return shown[-1].put

    try:
        cluster.read_logs(vms, LogWish(source, lines, follow), writer)
    finally:
        for each in shown:
            each.end()
